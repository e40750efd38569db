# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""No exception leaves the connector: every hook with every kind of wrong argument, in every state."""

import copy
import itertools
import random
import types

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from engine_parts import FakeBlocks, FakeRequest, Node, step_output
from terrace_vllm import connector as module
from terrace_vllm.connector import TerraceConnector, TerraceMetadata

# Hooks and their number of arguments, as vLLM 0.32 calls them.
HOOKS = {
    "get_num_new_matched_tokens": 2, "update_state_after_alloc": 3, "build_connector_meta": 1,
    "on_new_request": 1, "update_connector_output": 1, "request_finished": 2,
    "request_finished_all_groups": 2, "take_events": 0, "has_pending_push_work": 0,
    "bind_gpu_block_pool": 1, "get_finished_count": 0, "set_xfer_handshake_metadata": 1,
    "set_xfer_handshake_metadata_pp_aware": 1, "reset_cache": 0, "get_kv_connector_stats": 0,
    "register_kv_caches": 1, "set_host_xfer_buffer_ops": 1, "handle_preemptions": 1,
    "bind_connector_metadata": 1, "clear_connector_metadata": 0, "has_connector_metadata": 0,
    "start_load_kv": 1, "wait_for_layer_load": 1, "save_kv_layer": 3, "wait_for_save": 0,
    "finish_forward": 0, "get_transfer_results": 1, "get_block_ids_with_load_errors": 0,
    "get_kv_connector_kv_cache_events": 0, "get_handshake_metadata": 0,
    "build_connector_worker_meta": 0, "build_kv_connector_stats": 1, "build_prom_metrics": 4,
    "get_mem_pool_context": 0,
}


class Hostile:
    """Every attribute is a trap."""

    def __getattr__(self, name):
        raise OSError(f"{name} is a trap")


WRONG = [None, 0, -1, 2**63, 1.5, "x", b"x", (), [], {}, {1: 2}, {(0, 0): None}, object(), Hostile(),
         float("nan"), lambda: None, [None], "\0" * 5000, TerraceMetadata(),
         TerraceMetadata(loads=[None], stores=[None], abandoned=[None]), FakeBlocks([1, 2, 3, 4])]


def call_all(connector, rounds=1):
    """Each hook with each wrong value in each place (the same one twice only for many arguments)."""
    called = 0
    for name, count in HOOKS.items():
        hook = getattr(connector, name)
        choices = itertools.product(WRONG, repeat=count) if count < 2 else (
            tuple(random.Random(f"{name}{i}").choices(WRONG, k=count)) for i in range(60))
        for arguments in choices:
            for _ in range(rounds):
                hook(*arguments)
                called += 1
    return called


def vllm_config(extra, role="kv_both"):
    transfer = types.SimpleNamespace(kv_connector_extra_config=extra, kv_load_failure_policy="fail",
                                     is_kv_producer=True, is_kv_consumer=True, kv_role=role)
    return types.SimpleNamespace(
        kv_transfer_config=transfer, use_v2_model_runner=False, speculative_config=None,
        parallel_config=types.SimpleNamespace(world_size=1, tensor_parallel_size=1,
                                              pipeline_parallel_size=1),
        cache_config=types.SimpleNamespace(prefix_caching_hash_algo="sha256", block_size=4,
                                           cache_dtype="auto"),
        model_config=types.SimpleNamespace(
            model="m", dtype="bfloat16", enforce_eager=True, seed=0, model_weights="",
            hf_config=types.SimpleNamespace(to_dict=lambda: {})),
        load_config=types.SimpleNamespace(load_format="dummy"),
        compilation_config=types.SimpleNamespace(static_forward_context={}))


def kv_config():
    spec = type("FullAttentionSpec", (), {"block_size": 4})()
    return types.SimpleNamespace(
        num_blocks=64, kv_cache_groups=[types.SimpleNamespace(layer_names=["l0"], kv_cache_spec=spec)],
        prefix_cacheable_group_ids=(0,), kv_cache_layout="LBHNC")


@pytest.fixture(params=[KVConnectorRole.SCHEDULER, KVConnectorRole.WORKER])
def role(request, monkeypatch):
    monkeypatch.setattr(module, "_rank", lambda: (0, 0))
    return request.param


@pytest.fixture
def with_fake(fake, monkeypatch):
    from fake_client import FakeLibrary

    monkeypatch.setattr("terrace_vllm.client.Library", FakeLibrary)
    monkeypatch.setattr("terrace_vllm.client.Client", fake)
    return fake


def test_every_hook_of_the_base_class_is_called_here():
    own = {n for n in vars(KVConnectorBase_V1) if not n.startswith("_")
           and callable(getattr(KVConnectorBase_V1, n))}
    # get_finished is not called by a vLLM that has get_transfer_results; the others take no part here.
    rest = {"get_finished", "shutdown", "bind_kv_cache_manager", "get_loaded_kv_cache_group_ids",
            "get_external_cache_hit_sources", "register_finished_partial_tail",
            "has_pending_block_frees", "get_required_kvcache_layout", "reset_capture_state",
            "requires_piecewise_for_cudagraph"}
    assert own - rest <= set(HOOKS)


@pytest.mark.parametrize("arguments", [
    (None, None, None), (Hostile(), Hostile(), Hostile()), (1, "x", []),
    (vllm_config(None), None, None), (vllm_config({}), KVConnectorRole.WORKER, None),
])
def test_construction_with_nonsense(arguments):
    connector = TerraceConnector(*arguments)
    assert call_all(connector) > 500
    assert connector.get_num_new_matched_tokens(None, 0) == (0, False)
    assert isinstance(connector.build_connector_meta(None), KVConnectorMetadata)
    connector.shutdown()


@pytest.mark.parametrize("extra", [
    None, 7, {"library": "/no/such/library.so"}, {"token_file": "/no/such/file"}, {"enabled": False},
    {"what": 1},
])
def test_construction_that_fails_serves_neutrally(role, extra, monkeypatch):
    monkeypatch.setenv("TERRACE_LIBRARY", "/no/such/library.so")
    connector = TerraceConnector(vllm_config(extra), role, kv_config())
    call_all(connector)
    assert connector.get_num_new_matched_tokens(FakeRequest("r", "p", 16), 0) == (0, False)
    assert connector.get_transfer_results(set()).finished_recving == set()
    assert connector.requires_kv_delivery is False


def test_wrong_arguments_while_working(role, with_fake):
    connector = TerraceConnector(vllm_config({}), role, kv_config())
    assert (connector._scheduler_side or connector._worker_side) is not None
    assert call_all(connector) > 500
    connector.shutdown()
    call_all(connector)


def test_policy_is_set_so_that_a_failed_load_never_fails_a_request(with_fake):
    config = vllm_config({})
    TerraceConnector(config, KVConnectorRole.SCHEDULER, kv_config())
    assert config.kv_transfer_config.kv_load_failure_policy == "recompute"
    config = vllm_config({"load_failure_policy": "engine"})
    TerraceConnector(config, KVConnectorRole.SCHEDULER, kv_config())
    assert config.kv_transfer_config.kv_load_failure_policy == "fail"


class Exploding:
    """A client of which any call may fail in any way."""

    def __init__(self, real, rng, chance):
        self._real, self._rng, self._chance = real, rng, chance

    def __getattr__(self, name):
        value = getattr(self._real, name)
        if not callable(value) or name in ("is_ready", "close"):
            return value

        def call(*args, **kwargs):
            if self._rng.random() < self._chance:
                raise self._rng.choice([OSError, MemoryError, ValueError, RuntimeError])(name)
            return value(*args, **kwargs)

        return call


@pytest.mark.parametrize("seed", range(20))
def test_every_promised_load_is_answered_whatever_fails(fake, seed, monkeypatch):
    """Random failures of the client in both sides: each load ends exactly once, the sides live on."""
    rng = random.Random(seed)
    full = Node(fake)
    first = FakeRequest("first", "p", 64)
    full.scheduler.on_new_request(first)
    full.step(step_output({"first": 64}, {"first": (list(range(1, 17)),)}))
    full.step()

    node = Node(fake)
    connector = {}
    for role, side in (("scheduler", node.scheduler), ("worker", node.workers[0, 0])):
        made = TerraceConnector(None, None, None)
        setattr(made, f"_{role}_side", side)
        connector[role] = made
    node.scheduler._open(), node.workers[0, 0]._open(node.hash_id)
    node.scheduler._client = Exploding(node.scheduler._client, rng, 0.15)
    node.workers[0, 0]._client = Exploding(node.workers[0, 0]._client, rng, 0.3)
    waiting, ended = set(), []
    for i in range(60):
        request = FakeRequest(f"r{i}", "p", 64)
        connector["scheduler"].on_new_request(request)
        tokens, is_async = connector["scheduler"].get_num_new_matched_tokens(request, 0)
        assert is_async == (tokens > 0)
        ids = rng.choice([list(range(20, 36)), [20], [0] * 16])
        connector["scheduler"].update_state_after_alloc(request, FakeBlocks(ids), tokens)
        if tokens:
            waiting.add(request.request_id)
        output = step_output({f"r{i}": 64 - tokens}, {f"r{i}": (ids,)})
        orders = connector["scheduler"].build_connector_meta(copy.copy(output))
        worker = connector["worker"]
        worker.handle_preemptions(orders)
        worker.bind_connector_metadata(orders)
        worker.start_load_kv(None)
        worker.wait_for_save()
        results = worker.get_transfer_results(set())
        assert results.failed_recving <= results.finished_recving
        ended += results.finished_recving
        connector["scheduler"].update_connector_output(results)
        if rng.random() < 0.5:
            connector["scheduler"].request_finished_all_groups(request, (ids,))
    for _ in range(3):
        ended += connector["worker"].get_transfer_results(set()).finished_recving
    assert sorted(ended) == sorted(waiting) and waiting
