# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Both sides together over a fake client and real memory: what is stored, hit, loaded, released."""

import os

import pytest
from engine_parts import FakeBlocks, FakeRequest, Node, hashes, step_output
from terrace_vllm import client as api
from terrace_vllm.layout import FULL, SLIDING, Group


def fill_request(node, request, ids, seed=1):
    """Runs the request's prefill in one step: pages filled, blocks stored."""
    node.scheduler.on_new_request(request)
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    node.scheduler.allocated(request, FakeBlocks(ids), 0)
    for rank in node.workers:
        for i, block in enumerate(ids):
            node.fill(block, bytes([seed + i]) * 16, rank)
    node.step(step_output({request.request_id: request.num_tokens}, {request.request_id: (ids,)}))
    request.num_computed_tokens = request.num_tokens
    node.step()


def leases(node):
    return node.client.leases


def test_one_engine_computes_another_loads(fake):
    first, second = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 14), [5, 6, 7, 8])

    request = FakeRequest("r2", "p", 14)
    second.scheduler.on_new_request(request)
    assert second.scheduler.matched_tokens(request, 0) == (12, True)
    assert len(leases(second)) == 1
    second.scheduler.allocated(request, FakeBlocks([9, 3, 4, 2]), 12)
    assert second.step() == ({"r2"}, set())
    assert [second.page(b) for b in (9, 3, 4)] == [bytes([i]) * 16 for i in (1, 2, 3)]
    assert second.page(2) == bytes(16)  # the partial block is the engine's own affair
    assert leases(second) == {}
    second.scheduler.finished(request)


def test_local_prefix_is_not_loaded(fake):
    first, second = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    request = FakeRequest("r2", "p", 16)
    second.scheduler.on_new_request(request)
    assert second.scheduler.matched_tokens(request, 8) == (8, True)
    second.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 8)
    assert second.step() == ({"r2"}, set())
    assert [second.page(b) for b in (1, 2, 3, 4)] == [bytes(16), bytes(16), b"\3" * 16, b"\4" * 16]


def test_question_is_idempotent_and_follows_the_local_prefix(fake):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    request = FakeRequest("r2", "p", 16)
    node.scheduler.on_new_request(request)
    for _ in range(50):  # no room: vLLM asks in every step
        assert node.scheduler.matched_tokens(request, 4) == (12, True)
    assert node.client.lookups == 1 and len(leases(node)) == 1
    assert node.scheduler.matched_tokens(request, 8) == (8, True)  # another request filled a block
    assert node.client.lookups == 1
    assert node.scheduler.matched_tokens(request, 0) == (16, True)  # it was evicted again
    assert node.client.lookups == 2 and len(leases(node)) == 1
    assert node.scheduler.matched_tokens(request, 12) == (4, True)
    node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 4)
    assert node.step() == ({"r2"}, set())
    assert node.page(4) == b"\4" * 16 and node.page(3) == bytes(16)


def test_miss_is_remembered_for_a_moment_only(fake, monkeypatch):
    node = Node(fake)
    request = FakeRequest("r", "p", 16)
    for _ in range(10):
        assert node.scheduler.matched_tokens(request, 0) == (0, False)
    assert node.client.lookups == 1
    fill_request(Node(fake), FakeRequest("other", "p", 16), [5, 6, 7, 8])
    monkeypatch.setattr("terrace_vllm.scheduler._MISS_FRESH_S", 0)
    assert node.scheduler.matched_tokens(request, 0) == (16, True)


def test_old_hit_is_asked_again(fake, monkeypatch):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    request = FakeRequest("r2", "p", 16)
    node.scheduler.matched_tokens(request, 0)
    monkeypatch.setattr("terrace_vllm.scheduler._HIT_FRESH_S", 0)
    assert node.scheduler.matched_tokens(request, 0) == (16, True)
    assert node.client.lookups == 2 and len(leases(node)) == 1


@pytest.mark.parametrize("end", ["abort", "no allocation", "shutdown"])
def test_unused_lease_is_released(fake, end):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    request = FakeRequest("r2", "p", 16)
    node.scheduler.matched_tokens(request, 0)
    assert len(leases(node)) == 1
    if end == "abort":
        node.scheduler.finished(request)
    elif end == "no allocation":
        node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 0)
    else:
        node.scheduler.shutdown()
    assert leases(node) == {}


def test_abort_while_loading_is_reported_once_and_releases(fake):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    worker_client = node.workers[0, 0]._client
    worker_client.hold = True
    request = FakeRequest("r2", "p", 16)
    node.scheduler.matched_tokens(request, 0)
    node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 16)
    assert node.step() == (set(), set())
    node.scheduler.finished(request)
    assert len(leases(node)) == 1  # the copy is still under way
    worker_client.operations[-1].run()
    assert node.step() == ({"r2"}, set())
    assert leases(node) == {} and node.step() == (set(), set())
    assert worker_client.operations[-1].closed


def test_failed_load_is_reported_and_never_offered_again(fake):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    node.workers[0, 0]._client.fail_loads = True
    request = FakeRequest("r2", "p", 16)
    assert node.scheduler.matched_tokens(request, 0) == (16, True)
    node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 16)
    assert node.step() == ({"r2"}, {"r2"})
    assert leases(node) == {}
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    assert node.counters.take()["loads_failed"] == 1
    # Another request may try again.
    node.workers[0, 0]._client.fail_loads = False
    other = FakeRequest("r3", "p", 16)
    assert node.scheduler.matched_tokens(other, 0) == (16, True)


def test_load_that_cannot_start_fails_at_once(fake):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    node.workers[0, 0]._client.refuse_loads = True
    request = FakeRequest("r2", "p", 16)
    node.scheduler.matched_tokens(request, 0)
    node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 16)
    assert node.step() == ({"r2"}, {"r2"})


@pytest.mark.parametrize("ids, tokens", [([1, 2, 0, 4], 16), ([1, 2], 16), ([1, 2, 3, 4], 32), ([], 4)])
def test_allocation_that_does_not_fit_is_abandoned_not_forgotten(fake, ids, tokens):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    request = FakeRequest("r2", "p", 16)
    node.scheduler.matched_tokens(request, 0)
    with pytest.raises((RuntimeError, IndexError)):  # the connector's guard takes it from here
        node.scheduler.allocated(request, FakeBlocks(ids), tokens)
    assert node.step() == ({"r2"}, {"r2"})
    assert leases(node) == {}


def test_load_never_offered_is_abandoned(fake):
    node = Node(fake)
    request = FakeRequest("r", "p", 16)
    with pytest.raises(RuntimeError):
        node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 16)
    assert node.step() == ({"r"}, {"r"})


def test_chunks_store_each_block_once_with_its_parent(fake):
    node = Node(fake)
    request = FakeRequest("r", "p", 20)
    node.scheduler.matched_tokens(request, 0)
    table = {"r": ([1, 2, 3, 4, 5],)}
    seen = []
    for chunk in (6, 6, 6, 2):
        orders = node.scheduler.take_orders()
        node.scheduler.order_stores(step_output({"r": chunk}, table), orders)
        seen += [(o.parent, o.keys, o.block_ids) for o in orders.stores]
        request.num_computed_tokens += chunk
    keys = request.block_hashes
    assert seen == [
        (None, keys[0], [1]), (keys[0], keys[1] + keys[2], [2, 3]), (keys[2], keys[3], [4]),
        (keys[3], keys[4], [5])]


def test_loaded_blocks_are_not_stored_again(fake):
    first, node = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 12), [5, 6, 7])
    request = FakeRequest("r2", "p", 24)
    request.block_hashes[:3] = FakeRequest("x", "p", 12).block_hashes
    assert node.scheduler.matched_tokens(request, 4) == (8, True)
    node.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4, 5, 6]), 8)
    node.step()
    request.num_computed_tokens = 12
    orders = node.scheduler.take_orders()
    node.scheduler.order_stores(step_output({"r2": 12}, {"r2": ([1, 2, 3, 4, 5, 6],)}), orders)
    assert [(o.parent, o.block_ids) for o in orders.stores] == [
        (None, [1]), (request.block_hashes[2], [4, 5, 6])]


def test_shared_prefix_is_offered_once_in_a_while(fake, monkeypatch):
    node = Node(fake)

    def stored_by(name, tail, computed):
        request = FakeRequest(name, "p", 12)
        request.block_hashes += hashes(tail, 1)
        request.num_tokens, request.num_computed_tokens = 16, computed
        node.scheduler.on_new_request(request)
        orders = node.scheduler.take_orders()
        node.scheduler.order_stores(step_output({name: 16 - computed}, {name: ([1, 2, 3, 4],)}), orders)
        return [(o.parent, o.block_ids) for o in orders.stores]

    parent = hashes("p", 3)[2]
    assert stored_by("r1", "one", 0) == [(None, [1, 2, 3, 4])]
    assert stored_by("r2", "two", 12) == [(parent, [4])]  # the prefix comes from the engine's own cache
    assert stored_by("r3", "three", 0) == [(None, [1, 2, 3, 4])]  # computed anew: it may be gone
    monkeypatch.setattr("terrace_vllm.scheduler._STORED_FRESH_S", 0)
    assert stored_by("r4", "four", 12) == [(None, [1, 2, 3, 4])]
    monkeypatch.undo()
    node.client.ready = False
    assert stored_by("r5", "five", 12) == []
    node.client.ready = True  # maybe another daemon
    assert stored_by("r6", "six", 12) == [(None, [1, 2, 3, 4])]


def test_draft_tokens_are_not_stored(fake):
    node = Node(fake)
    request = FakeRequest("r", "p", 16)
    node.scheduler.on_new_request(request)
    request.num_computed_tokens = 3
    orders = node.scheduler.take_orders()
    node.scheduler.order_stores(step_output({"r": 3}, {"r": ([1, 2],)}, {"r": [7, 7]}), orders)
    assert [o.block_ids for o in orders.stores] == [[1]]


def test_daemon_away_then_back_stores_what_is_still_there(fake):
    node = Node(fake)
    request = FakeRequest("r", "p", 16)
    node.client.ready = False
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    orders = node.scheduler.take_orders()
    node.scheduler.order_stores(step_output({"r": 8}, {"r": ([1, 2],)}), orders)
    assert orders.stores == [] and node.client.lookups == 0
    request.num_computed_tokens = 8
    node.client.ready = True
    node.scheduler.order_stores(step_output({"r": 8}, {"r": ([1, 2, 3, 4],)}), orders)
    assert [o.block_ids for o in orders.stores] == [[1, 2, 3, 4]]


def test_no_pages_are_touched_after_the_barrier(fake):
    """A store submitted in one step has read its pages before the next one may change them."""
    node, reader = Node(fake), Node(fake)
    node.workers[0, 0]._client.hold = True
    request = FakeRequest("r", "p", 4)
    node.scheduler.on_new_request(request)
    node.fill(1, b"a" * 16)
    node.step(step_output({"r": 4}, {"r": ([1],)}))
    assert not node.workers[0, 0]._client.operations[-1].done()
    node.workers[0, 0].barrier()
    node.fill(1, b"b" * 16)
    other = FakeRequest("r2", "p", 4)
    assert reader.scheduler.matched_tokens(other, 0) == (4, True)
    reader.scheduler.allocated(other, FakeBlocks([2]), 4)
    reader.step()
    assert reader.page(2) == b"a" * 16


def test_two_ranks_need_both(fake):
    ranks = ((0, 0), (0, 1))
    first, second = Node(fake, ranks=ranks), Node(fake, ranks=ranks)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    # Rank 1 lost its third block.
    lost = first.workers[0, 1]
    os.unlink(lost._client._path(lost._key_spaces[0], FakeRequest("x", "p", 16).block_hashes[2]))
    request = FakeRequest("r2", "p", 16)
    assert second.scheduler.matched_tokens(request, 0) == (8, True)
    second.scheduler.allocated(request, FakeBlocks([1, 2, 3, 4]), 8)
    second.workers[0, 1]._client.hold = True
    assert second.step() == (set(), set())  # rank 0 is done, rank 1 is not
    assert len(leases(second)) == 2
    second.workers[0, 1]._client.operations[-1].run()
    assert second.step() == ({"r2"}, set())
    assert leases(second) == {}
    for rank in ranks:
        assert [second.page(b, rank) for b in (1, 2)] == [b"\1" * 16, b"\2" * 16]


def test_nothing_hits_until_all_ranks_reported(fake):
    fill_request(Node(fake), FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    node = Node(fake)
    node.scheduler._reports, reports = None, node.scheduler._reports
    request = FakeRequest("r2", "p", 16)
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    node.scheduler.set_reports(reports, 2)  # one is missing
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    node.scheduler.set_reports(reports, 1)
    assert node.scheduler.matched_tokens(request, 0) == (16, True)


def test_nothing_hits_before_the_hash_seed_is_known(fake):
    fill_request(Node(fake), FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    node = Node(fake)
    node.hash_id = None
    assert node.scheduler.matched_tokens(FakeRequest("r2", "p", 16), 0) == (0, False)
    node.hash_id = "sha256 seed=01"  # another seed than the first engine's
    assert node.scheduler.matched_tokens(FakeRequest("r3", "p", 16), 0) == (0, False)


def test_other_model_never_hits(fake):
    fill_request(Node(fake, model="a"), FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    assert Node(fake, model="b").scheduler.matched_tokens(FakeRequest("r", "p", 16), 0) == (0, False)


def test_window_group_stores_and_loads_its_tail(fake):
    groups = [Group(0, FULL, 4, 0, ("a",)), Group(1, SLIDING, 4, 6, ("b",))]
    first, second = Node(fake, groups), Node(fake, groups)
    request = FakeRequest("r1", "p", 16)
    first.scheduler.on_new_request(request)
    full, window = [1, 2, 3, 4], [0, 10, 11, 12]  # the window's first block is gone already
    for i, block in enumerate(full):
        first.fill(block, bytes([i]) * 16)
    for i, block in enumerate(window[1:]):
        first.fill(block, bytes([100 + i]) * 16, group=1)
    first.step(step_output({"r1": 16}, {"r1": (full, window)}))
    first.step()
    other = FakeRequest("r2", "p", 16)
    assert second.scheduler.matched_tokens(other, 0) == (16, True)
    second.scheduler.allocated(other, FakeBlocks([1, 2, 3, 4], [0, 0, 8, 9]), 16)
    assert second.step() == ({"r2"}, set())
    assert [second.page(b, group=1) for b in (8, 9)] == [b"\x65" * 16, b"\x66" * 16]
    # 6 tokens of window before token 8 would need its first block: nothing shorter is of use.
    third = FakeRequest("r3", "p", 8)
    assert Node(fake, groups).scheduler.matched_tokens(third, 0) == (0, False)


def test_lookups_pause_when_the_daemon_does_not_answer(fake):
    node = Node(fake)
    node.client.lookup_status = api.DEADLINE_EXCEEDED
    for i in range(20):
        assert node.scheduler.matched_tokens(FakeRequest(f"r{i}", "p", 16), 0) == (0, False)
    assert node.client.lookups == 3
    assert node.counters.take()["lookup_timeouts"] == 3


def test_short_hits_and_switches(fake):
    fill_request(Node(fake), FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    node = Node(fake, min_tokens=20)
    assert node.scheduler.matched_tokens(FakeRequest("r", "p", 16), 0) == (0, False)
    node = Node(fake)
    request = FakeRequest("r", "p", 16)
    request.skip_reading_prefix_cache = True
    assert node.scheduler.matched_tokens(request, 0) == (0, False)
    assert leases(node) == {}


def test_adapter_content_is_in_the_key(fake, tmp_path):
    def request(name, text):
        import types
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter.safetensors").write_text(text)
        made = FakeRequest(name, "p", 16)
        made.lora_request = types.SimpleNamespace(lora_path=str(folder))
        return made

    fill_request(Node(fake), request("r1", "one"), [5, 6, 7, 8])
    assert Node(fake).scheduler.matched_tokens(request("r2", "one"), 0) == (16, True)
    assert Node(fake).scheduler.matched_tokens(request("r3", "two"), 0) == (0, False)
    assert Node(fake).scheduler.matched_tokens(FakeRequest("r4", "p", 16), 0) == (0, False)
    gone = FakeRequest("r5", "p", 16)
    gone.lora_request = object()
    node = Node(fake)
    assert node.scheduler.matched_tokens(gone, 0) == (0, False) and node.client.lookups == 0


def test_short_hashes_are_padded_never_cut(fake):
    node = Node(fake)
    request = FakeRequest("r", "p", 8)
    request.block_hashes = [b"0123456789abcdef", b"fedcba9876543210"]
    node.scheduler.on_new_request(request)
    orders = node.scheduler.take_orders()
    node.scheduler.order_stores(step_output({"r": 8}, {"r": ([1, 2],)}), orders)
    assert orders.stores[0].keys == b"0123456789abcdef" + bytes(16) + b"fedcba9876543210" + bytes(16)


def test_worker_shutdown_finishes_its_stores(fake):
    node = Node(fake)
    client = node.workers[0, 0]._client
    request = FakeRequest("r", "p", 4)
    node.scheduler.on_new_request(request)
    node.step(step_output({"r": 4}, {"r": ([1],)}))
    pages = node.workers[0, 0]._pages[0]
    node.workers[0, 0].shutdown()
    assert all(operation.closed for operation in client.operations)
    assert pages.closed and client.closed


def test_pending_blocks_are_hits_that_load_as_they_arrive(fake):
    first, second = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    second.client.on_lower_tier = True
    request = FakeRequest("r2", "p", 16)
    second.scheduler.on_new_request(request)
    assert second.scheduler.matched_tokens(request, 0) == (16, True)
    second.scheduler.allocated(request, FakeBlocks([9, 3, 4, 2]), 16)
    worker = second.workers[0, 0]
    worker._client.hold = True  # on their way
    for _ in range(5):
        assert second.step() == (set(), set())  # no step waits for them
    assert len(leases(second)) == 1  # and they are held
    for operation in worker._client.operations:
        operation.run()
    assert second.step() == ({"r2"}, set())
    assert [second.page(b) for b in (9, 3, 4, 2)] == [bytes([i]) * 16 for i in (1, 2, 3, 4)]
    assert leases(second) == {}
    taken = second.counters.take()
    assert taken["pending_blocks"] == taken["hit_blocks"] == 4
    assert not any(name.startswith("missed") for name in taken)


def test_pending_blocks_that_do_not_arrive_are_recomputed(fake):
    first, second = Node(fake), Node(fake)
    fill_request(first, FakeRequest("r1", "p", 16), [5, 6, 7, 8])
    worker = second.workers[0, 0]
    for client in (second.client, worker._client):
        client.on_lower_tier = client.lose_pending = True
    request = FakeRequest("r2", "p", 16)
    assert second.scheduler.matched_tokens(request, 0) == (16, True)
    second.scheduler.allocated(request, FakeBlocks([9, 3, 4, 2]), 16)
    assert second.step() == ({"r2"}, {"r2"})
    assert leases(second) == {}
    assert second.counters.take()["missed_blocks:20"] == 4  # why: deadline
    assert second.scheduler.matched_tokens(request, 0) == (0, False)  # never offered again


def test_windows_take_pending_blocks_too(fake):
    groups = [Group(0, FULL, 4, 0, ("l0",)), Group(1, SLIDING, 4, 8, ("l1",))]
    first, second = Node(fake, groups=groups), Node(fake, groups=groups)
    request = FakeRequest("r1", "p", 16)
    first.scheduler.on_new_request(request)
    first.scheduler.matched_tokens(request, 0)
    first.scheduler.allocated(request, FakeBlocks([5, 6, 7, 8], [5, 6, 7, 8]), 0)
    first.step(step_output({"r1": 16}, {"r1": ([5, 6, 7, 8], [5, 6, 7, 8])}))
    second.client.on_lower_tier = True
    assert second.scheduler.matched_tokens(FakeRequest("r2", "p", 16), 0) == (16, True)


def test_what_prefill_costs_is_told_only_when_configured(fake):
    node = Node(fake)
    node.scheduler.matched_tokens(FakeRequest("r", "p", 16), 0)
    assert node.client.recompute_ns_per_token == 0
    node = Node(fake, recompute_us_per_token=25)
    node.scheduler.matched_tokens(FakeRequest("r", "p", 16), 0)
    assert node.client.recompute_ns_per_token == 25_000
    node = Node(fake, recompute_us_per_token=2**32 - 1)
    node.scheduler.matched_tokens(FakeRequest("r", "p", 16), 0)
    assert node.client.recompute_ns_per_token == 2**32 - 1  # fits its field


def test_hints_travel_with_stores_and_reach_what_was_here(fake):
    node = Node(fake)
    request = FakeRequest("r1", "p", 16)
    request.kv_transfer_params = {"terrace": {"pin_s": 60, "priority": 3}}
    fill_request(node, request, [5, 6, 7, 8])
    wanted = api.Retention(pin_ms=60_000, priority=3)
    stored = node.workers[0, 0]._client.retentions
    assert stored == {key: wanted for key in hashes("p", 4)}
    node.scheduler.finished(request)
    assert [(keys, retention) for _, keys, retention in node.client.hints] == [
        (b"".join(hashes("p", 4)), wanted)]


def test_without_hints_nothing_is_said(fake):
    node = Node(fake)
    request = FakeRequest("r1", "p", 16)
    fill_request(node, request, [5, 6, 7, 8])
    node.scheduler.finished(request)
    assert node.client.hints == [] and node.workers[0, 0]._client.retentions == {}


def test_a_daemon_that_takes_no_hints_disturbs_nothing(fake, monkeypatch):
    node = Node(fake)
    request = FakeRequest("r1", "p", 16)
    request.priority = -1
    fill_request(node, request, [5, 6, 7, 8])

    def refuse(*_):
        raise api.TerraceError(api.UNAVAILABLE, "gone")

    monkeypatch.setattr(node.client, "hint", refuse)
    node.scheduler.finished(request)
