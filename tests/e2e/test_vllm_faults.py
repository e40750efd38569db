# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Bad blocks, aborted loads, a daemon that is absent, hangs or dies: the tokens stay the same."""

import time

import arena
import pytest
from conftest import attach

TOKENS = 12


def expected_tokens(engine, model, batch, tokens=TOKENS, **options):
    with engine(model, connector=None, **options) as plain:
        return [r.token_ids for r in plain.generate(batch, tokens)]


def until(what, timeout=15.0):
    """Polls until what() is true."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)  # poll


def test_loaded_bytes_are_the_stored_bytes(engine, models, prompts):
    [prompt] = prompts(500)
    with engine(models()) as first:
        first.generate([prompt], 1)
        first.call("engine_side:wait_stored")
        computed = first.call("engine_side:kv_digest", prompt)
    with engine(models()) as second:
        assert second.generate([prompt], 1)[0].cached_tokens == 480
        loaded = second.call("engine_side:kv_digest", prompt)
    assert len(computed) == 15 and len(set(computed)) == 15
    assert loaded == computed


def test_wrong_kv_would_change_the_tokens(engine, models, prompts):
    """Without this the tests above would prove nothing: tokens must depend on every block."""
    [prompt] = prompts(500)
    with engine(models()) as node:
        good = node.generate([prompt], TOKENS)[0].token_ids
        assert node.generate([prompt], TOKENS)[0].token_ids == good
        assert node.call("engine_side:spoil_kv", prompt) == 15
        [bad] = node.generate([prompt], TOKENS)
        assert bad.cached_tokens == 480 and bad.token_ids != good


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_corrupt_block_is_recomputed(kind, server, own_daemon, models, prompts):
    own_daemon.start()
    model = models() if kind == "full" else models("sliding", window=96)
    connector = attach(own_daemon)
    batch = prompts(500, 300)
    with server.engine(model, connector=connector, before=["engine_side:watch"]) as first:
        expected = [r.token_ids for r in first.generate(batch, TOKENS)]
        first.call("engine_side:wait_stored")
    assert arena.flip_payload_bits(own_daemon.pid) > 0
    with server.engine(model, connector=connector, before=["engine_side:watch"]) as second:
        assert [r.token_ids for r in second.generate(batch, TOKENS)] == expected
        counters = second.call("engine_side:counters")
        assert counters["loads_failed"] == 2 and counters["missed_blocks:corrupt"] > 0
        left = second.call("engine_side:leftovers")
        assert all(n == 0 for n in left.values()), left
        # The bad blocks were dropped: what was recomputed has been stored in their place.
        second.call("engine_side:wait_stored")
    with server.engine(model, connector=connector, before=["engine_side:watch"]) as third:
        warm = third.generate(batch, TOKENS)
        assert [r.token_ids for r in warm] == expected
        assert third.call("engine_side:counters").get("loads_failed", 0) == 0


def test_one_bad_ref_fails_the_load_once(engine, models, prompts):
    [prompt] = prompts(300)
    with engine(models()) as first:
        expected = first.generate([prompt], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
    with engine(models(), enable_prefix_caching=False, failure_policy="fail") as second:
        second.call("engine_side:fail_next_load")
        [result] = second.generate([prompt], TOKENS)
        assert (result.token_ids, result.finish_reason) == (expected, "length")
        counters = second.call("engine_side:counters")
        assert counters["loads_failed"] == 1 and counters.get("loads", 0) == 0
        [again] = second.generate([prompt], TOKENS)  # another request may load
        assert (again.token_ids, again.cached_tokens) == (expected, 288)


def test_abort_while_loading(engine, models, prompts):
    [prompt] = prompts(500)
    with engine(models()) as first:
        expected = first.generate([prompt], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
    with engine(models()) as second:
        seen = second.call("engine_side:abort_while_loading", prompt)
        assert seen == {"status": "FINISHED_ABORTED", "held": 15, "not_given_back": 0}
        left = second.call("engine_side:leftovers")
        assert all(n == 0 for n in left.values()), left
        assert second.generate([prompt], TOKENS)[0].token_ids == expected


def test_daemon_absent_then_there(server, own_daemon, models, prompts):
    model, connector = models(), attach(own_daemon, connect_timeout_ms=50)
    batch = prompts(300, 200)
    with server.engine(model, connector=connector, before=["engine_side:watch"]) as node:
        expected = [r.token_ids for r in node.generate(batch, TOKENS)]
        own_daemon.start()

        def stored():
            assert node.call("engine_side:reset_local_cache")
            assert [r.token_ids for r in node.generate(batch, TOKENS)] == expected
            return node.call("engine_side:counters").get("store_blocks", 0) > 0

        until(stored)
        node.call("engine_side:wait_stored")
    with server.engine(model, connector=connector) as other:
        warm = other.generate(batch, TOKENS)
        assert [r.token_ids for r in warm] == expected and warm[0].cached_tokens == 288


def test_daemon_killed_in_mid_run_and_restarted(server, own_daemon, models, prompts):
    own_daemon.start()
    model, connector = models(), attach(own_daemon)
    batch = prompts(600, 500, 400, 300)
    options = dict(connector=connector, before=["engine_side:watch"], enable_prefix_caching=False)
    with server.engine(model, connector=None) as plain:
        expected = [r.token_ids for r in plain.generate(batch, 120)]
    with server.engine(model, **options) as node:
        for moment in (0.0, 0.1, 0.2):  # in the loads, in the prefill, while decoding and storing
            node.generate(batch, 1)
            node.call("engine_side:wait_stored")
            node.submit("terrace_vllm.testing.forkserver:_generate", batch, 120, [], {})
            time.sleep(moment)  # tidy: sleep: where the kill falls is left to chance
            own_daemon.kill()
            assert [r.token_ids for r in node.answer()] == expected
            # Without a daemon:
            assert [r.token_ids for r in node.generate(batch, 120)] == expected
            own_daemon.start()

            def hits():
                results = node.generate(batch, 120)
                assert [r.token_ids for r in results] == expected
                return all(r.cached_tokens > 0 for r in results)

            until(hits, timeout=30)
        left = node.call("engine_side:leftovers")
        assert all(n == 0 for n in left.values()), left
        assert node.call("engine_side:counters").get("errors", 0) == 0


def test_hanging_daemon_costs_little(server, own_daemon, models, prompts):
    own_daemon.start()
    batch = prompts(200, 300)
    connector = attach(own_daemon, lookup_timeout_ms=20)
    with server.engine(models(), connector=None) as plain:
        expected = [r.token_ids for r in plain.generate(batch, TOKENS)]
    with server.engine(models(), connector=connector, before=["engine_side:watch"],
                       enable_prefix_caching=False) as node:
        assert [r.token_ids for r in node.generate(batch, TOKENS)] == expected
        node.call("engine_side:wait_stored")
        own_daemon.pause()
        try:
            results = node.generate(batch, TOKENS, timeout=60)
        finally:
            own_daemon.resume()
        assert [r.token_ids for r in results] == expected
        assert node.call("engine_side:counters")["lookup_timeouts"] >= 1
        assert node.generate(batch, TOKENS)[0].token_ids == expected[0]


def test_engine_killed_while_it_stores(server, own_daemon, models, prompts):
    """What a dying engine leaves behind is whole blocks or nothing."""
    own_daemon.start()
    connector = attach(own_daemon)
    batch = prompts(1500, 1400, 1300)
    with server.engine(models(), connector=None) as plain:
        expected = [r.token_ids for r in plain.generate(batch, TOKENS)]
    for delay in (0.1, 0.2, 0.4):
        victim = server.engine(models(), connector=connector)
        victim.submit("terrace_vllm.testing.forkserver:_generate", batch, TOKENS, [], {})
        time.sleep(delay)  # tidy: sleep: where the kill falls is left to chance
        victim.kill()
    with server.engine(models(), connector=connector, before=["engine_side:watch"]) as node:
        assert [r.token_ids for r in node.generate(batch, TOKENS)] == expected
        assert node.call("engine_side:counters").get("loads_failed", 0) == 0


@pytest.mark.parametrize("connector", [
    {"library": "/no/such/libterrace.so"}, {"enabled": False}, {"soket": "/x", "min_tokens": "many"},
    {"token_file": "/no/such/token"}, {"tenant": "no such tenant"},
])
def test_wrong_configuration_serves_without_cache(connector, server, daemon, models, prompts):
    batch = prompts(100)
    extra = attach(daemon, connect_timeout_ms=100, **connector)
    with server.engine(models(), connector=extra) as node:
        results = node.generate(batch, TOKENS)
        assert len(results[0].token_ids) == TOKENS and results[0].cached_tokens == 0
