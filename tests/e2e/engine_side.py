# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What tests do inside an engine's process (called through Engine.call, the LLM object comes first)."""

import ctypes
import hashlib
import time
from typing import Any, Dict, List, Optional, Tuple

TOTALS: Dict[str, int] = {}


def watch(_: Any) -> None:
    """Keeps the plugin's counters, which vLLM takes away in every step."""
    from terrace_vllm import stats

    take = stats.Counters.take

    def keep(self: Any) -> Optional[dict]:
        data = take(self)
        stats.merge(TOTALS, data or {})
        return data

    stats.Counters.take = keep


def counters(llm: Any) -> Dict[str, int]:
    """Sums since the start, both sides."""
    for side in (scheduler(llm).connector, worker(llm)):
        side._counters.take()
    return dict(TOTALS)


def fork_workers(_: Any) -> None:
    """Tensor-parallel workers as forks of this process, not as fresh interpreters (a minute each)."""
    import multiprocessing

    from vllm.v1.executor import multiproc_executor

    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")


def make_model(_: Any, directory: str, seed: int = 0, dtype: str = "bfloat16", **shape: Any) -> str:
    from terrace_vllm.testing.model import Shape, write_model

    return write_model(directory, Shape(**shape), seed, dtype)


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def worker(_: Any) -> Any:
    """The connector in role WORKER (executor in this process only)."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()


def leftovers(llm: Any) -> Dict[str, int]:
    """Must be all zero on an idle engine: blocks, leases and loads that nobody gave back."""
    pool = scheduler(llm).kv_cache_manager.block_pool
    out = {"blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()}
    side = scheduler(llm).connector._scheduler_side
    if side is not None:
        out["requests"] = len(side._requests)
        out["leases"] = sum(map(len, side._leases_loading.values())) + sum(
            len(r.hit.leases) for r in side._requests.values() if r.hit is not None)
    if worker(llm)._worker_side is not None:
        out["loads"] = len(worker(llm)._worker_side._loads)
    return out


def wait_stored(llm: Any, timeout: float = 20.0) -> None:
    """Until no store is under way (they go on in the background after the last step)."""
    side = worker(llm)._worker_side
    deadline = time.monotonic() + timeout
    while side._stores:
        for operation in side._stores:
            operation.wait(50_000)
        side._reap_stores()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(side._stores)} stores still under way")


def count_preemptions(llm: Any) -> None:
    core = scheduler(llm)
    original = core._preempt_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        TOTALS["preemptions"] = TOTALS.get("preemptions", 0) + 1
        return original(*args, **kwargs)

    core._preempt_request = counted


def _submit(llm: Any, name: str, prompt: List[int], max_tokens: int) -> str:
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False, ignore_eos=True)
    return llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, settings)


def abort_while_loading(llm: Any, prompt: List[int]) -> Dict[str, Any]:
    """Aborts a request whose blocks are just being written; they come free only when that has ended."""
    side = worker(llm)._worker_side
    poll, side.poll = side.poll, lambda: (set(), set())
    pool = scheduler(llm).kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    name = _submit(llm, "to-abort", prompt, 4)
    steps = 0
    while not side._loads:
        llm.llm_engine.step()
        steps += 1
        assert steps < 1000, "no load was started"
    llm.llm_engine.abort_request([name], internal=True)
    status = scheduler(llm).requests[name].status.name
    for _ in range(5):
        llm.llm_engine.step()
    held = free - pool.get_num_free_blocks()
    side.poll = poll
    deadline = time.monotonic() + 10
    while pool.get_num_free_blocks() < free and time.monotonic() < deadline:
        llm.llm_engine.step()
    return {"status": status, "held": held, "not_given_back": free - pool.get_num_free_blocks()}


def kv_digest(llm: Any, prompt: List[int]) -> List[str]:
    """A digest of each full block's bytes of this prompt in the engine's KV cache, first group."""
    pages = _prompt_pages(llm, prompt)
    return [hashlib.sha256(b"".join(ctypes.string_at(a, n) for a, n in page)).hexdigest()
            for page in pages]


def spoil_kv(llm: Any, prompt: List[int]) -> int:
    """Turns over every bit of the prompt's blocks in the engine's own prefix cache."""
    pages = _prompt_pages(llm, prompt)
    for page in pages:
        for address, size in page:
            data = ctypes.string_at(address, size)
            ctypes.memmove(address, bytes(b ^ 0x85 for b in data), size)
    return len(pages)


def _prompt_pages(llm: Any, prompt: List[int]) -> List[List[Tuple[int, int]]]:
    """(address, bytes) of every layer's page of each block that the prefix cache has of the prompt."""
    from types import SimpleNamespace

    core = llm.llm_engine.engine_core.engine_core
    manager = scheduler(llm).kv_cache_manager
    request = SimpleNamespace(
        block_hashes=[], num_tokens=len(prompt), all_token_ids=prompt, mm_features=[],
        lora_request=None, cache_salt=None, prompt_embeds=None,
        prompt_embeds_per_block_hashes=lambda *a: None)
    hashes = core.request_block_hasher(request)
    plan = worker(llm)._worker_side._groups[0]
    pages = []
    for block_hash in hashes:
        cached = manager.block_pool.get_cached_block(block_hash, [0])
        if cached is None:
            break
        block = cached[0].block_id
        pages.append([(p.address + block * p.stride, p.bytes) for p in plan.planes])
    return pages


def fail_next_load(llm: Any) -> None:
    """The scheduler side hands out refs of which one is foreign: the library must refuse the block."""
    side = scheduler(llm).connector._scheduler_side
    original = side._order_load

    def spoiled(*args: Any) -> Any:
        side._order_load = original
        order = original(*args)
        part = order.parts[0]
        refs = bytearray(part.refs)
        refs[48:96] = bytes(48)
        return order._replace(parts=[part._replace(refs=bytes(refs)), *order.parts[1:]])

    side._order_load = spoiled


def reset_local_cache(llm: Any) -> bool:
    return llm.reset_prefix_cache()
