# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The few of vLLM's objects that the two sides look at, without vLLM."""

import ctypes
import hashlib
import types
from typing import Dict, List, Optional

from terrace_vllm.config import Settings
from terrace_vllm.layout import FULL, Group, GroupPages
from terrace_vllm.meta import RankReport
from terrace_vllm.scheduler import SchedulerSide
from terrace_vllm.stats import Counters
from terrace_vllm.worker import WorkerSide

HASH_ID = "sha256 seed=00"


def hashes(text: str, n: int) -> List[bytes]:
    """A chain of n block hashes; equal texts give equal chains."""
    out, parent = [], b""
    for i in range(n):
        parent = hashlib.sha256(parent + f"{text}{i}".encode()).digest()
        out.append(parent)
    return out


class FakeRequest:
    def __init__(self, request_id: str, text: str, tokens: int, hash_tokens: int = 4) -> None:
        self.request_id = request_id
        self.block_hashes = hashes(text, tokens // hash_tokens)
        self.num_tokens = tokens
        self.num_computed_tokens = 0
        self.skip_reading_prefix_cache = False
        self.lora_request = None


class FakeBlocks:
    def __init__(self, *groups: List[int]) -> None:
        self._groups = groups

    def get_block_ids(self):
        return self._groups


def step_output(scheduled: Dict[str, int], tables: Dict[str, tuple], drafts: Optional[dict] = None):
    """A SchedulerOutput: tokens scheduled per request, and the block tables of these requests."""
    state = types.SimpleNamespace(get_block_ids=lambda request_id: tables[request_id])
    return types.SimpleNamespace(num_scheduled_tokens=scheduled, kv_connector_block_state=state,
                                 scheduled_spec_decode_tokens=drafts or {})


class Node:
    """An engine: one scheduler side and one worker side per rank over fake clients, real memory."""

    def __init__(self, fake, groups: Optional[List[Group]] = None, ranks=((0, 0),), n_blocks: int = 64,
                 hash_tokens: int = 4, align: int = 4, model: str = "m", **settings) -> None:
        self.groups = groups or [Group(0, FULL, 4, 0, ("l0",))]
        self.counters = Counters()
        self.client = fake(None, name="scheduler")
        self.library = self.client.library or types.SimpleNamespace(reason_text=str)
        self.client.library = self.library
        self.hash_id: Optional[str] = HASH_ID
        self.scheduler = SchedulerSide(Settings(**settings), self.client, self.groups, hash_tokens,
                                       align, lambda: self.hash_id, self.counters)
        self.workers, self.memory = {}, {}
        reports = {}
        for rank in ranks:
            client = fake(self.library, name=f"worker{rank}")
            worker = WorkerSide(client, rank, self.counters)
            pages = {}
            for group in self.groups:
                memory = ctypes.create_string_buffer(n_blocks * 16)
                self.memory[rank, group.index] = memory
                plan = GroupPages(group, [(ctypes.addressof(memory), 16, 16)], 16, n_blocks, "u8", "x")
                worker._groups[group.index] = plan
                worker._pages[group.index] = client.register_pages(plan.planes, n_blocks)
                pages[group.index] = dict(
                    model=model, model_fingerprint="f", kv_dtype="u8", layout="x",
                    parallel=str(rank), group=group.name(), extra="", block_bytes=16,
                    tokens_per_block=group.block_tokens)
            worker._report = RankReport(pages)
            self.workers[rank] = worker
            reports[rank] = worker.report()
        self.scheduler.set_reports(reports, len(ranks))

    def page(self, block: int, rank=(0, 0), group: int = 0) -> bytes:
        return self.memory[rank, group].raw[block * 16:block * 16 + 16]

    def fill(self, block: int, data: bytes, rank=(0, 0), group: int = 0) -> None:
        assert len(data) == 16
        ctypes.memmove(ctypes.addressof(self.memory[rank, group]) + block * 16, data, 16)

    def step(self, output=None) -> tuple:
        """One engine step: orders out, hooks in vLLM's order, results back. Returns (done, failed)."""
        orders = self.scheduler.take_orders()
        if output is not None:
            self.scheduler.order_stores(output, orders)
        finished, failed = None, set()
        for worker in self.workers.values():
            worker.barrier()
            worker.take(orders)
            worker.barrier()
            worker.start_loads()
            worker.start_stores()
            done, bad = worker.poll()
            self.pending = getattr(self, "pending", {})
            for request_id in done:
                self.pending.setdefault(request_id, set()).add(id(worker))
            failed |= bad
        finished = {r for r, who in self.pending.items() if len(who) == len(self.workers)}
        self.bad = getattr(self, "bad", set()) | failed
        failed = self.bad & finished
        for request_id in finished:
            del self.pending[request_id]
        self.bad -= finished
        if finished:
            self.scheduler.update_output(finished, failed)
        return finished, failed
