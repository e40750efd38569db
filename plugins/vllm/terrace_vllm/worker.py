# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Worker side: registers the KV cache's pages, submits loads and stores, reports what is done.

No byte is copied and nothing waits in Python here: libterrace's threads copy, the hooks submit and poll.
The exception is the barrier before pages may change, see barrier().
"""

import logging
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from terrace_vllm import client as api
from terrace_vllm.fingerprint import ModelIdentity, Unresolved, canonical
from terrace_vllm.guard import limited, logger
from terrace_vllm.layout import Group, GroupPages, Unsupported, plan_group
from terrace_vllm.meta import LoadOrder, Rank, RankReport, StepOrders, StoreOrder
from terrace_vllm.stats import Counters
from terrace_vllm.streams import EngineStream

# One slice of the wait for stores to have read their pages; it goes on until they have.
_BARRIER_SLICE_US = 200_000
# Stores under way beyond which new ones are left out: libterrace refuses at its own limit anyway.
_MAX_STORES = 4096


class _Load:
    """One request's loads on this rank."""

    __slots__ = ("operations", "failed", "blocks", "bytes", "at")

    def __init__(self) -> None:
        self.operations: List[Any] = []
        self.failed = False
        self.blocks = 0
        self.bytes = 0
        self.at = time.monotonic()


class WorkerSide:
    """One per rank.

    Owner: the connector in role WORKER. Threads: the worker's. Limits: one operation per group and
    request, _MAX_STORES stores. Failure: every ordered load is reported exactly once, as failed if
    anything went wrong with it; a store that fails is counted and forgotten.
    """

    def __init__(self, client: Any, rank: Rank, counters: Counters, export: bool = True,
                 make_stream: Callable[[str], Any] = EngineStream) -> None:
        """export: the daemon may open this process's GPU memory. make_stream: of a device, for tests."""
        self._client = client
        self._rank = rank
        self._counters = counters
        self._export = export
        self._make_stream = make_stream
        self._stream: Optional[Any] = None  # None: pages in host memory
        self._copier_said = False
        self._groups: Dict[int, GroupPages] = {}
        self._pages: Dict[int, Any] = {}
        self._key_spaces: Dict[int, Any] = {}
        self._hash_id: Optional[str] = None
        self._report = RankReport(problem="its KV cache was never registered")
        self._loads: Dict[str, _Load] = {}
        self._stores: List[Any] = []
        self._reading: List[Any] = []  # stores that may still read their pages
        self._load_orders: List[LoadOrder] = []
        self._store_orders: List[StoreOrder] = []

    # ------------------------------------------------------------ start-up

    def register(self, groups: Sequence[Group], kv_caches: Dict[str, Any], n_blocks: int,
                 storage_layout: Optional[str], kernels: Dict[str, Dict[str, Any]],
                 identity: ModelIdentity, parallel: str, extra: str) -> None:
        """Registers the pages and writes the report for the scheduler side.

        Raises layout.Unsupported, Unresolved, TerraceError; the report then names the problem.
        """
        try:
            planned = [plan_group(group, kv_caches, n_blocks, storage_layout, kernels)
                       for group in groups]
            fingerprint = identity.digest()
            devices = sorted({plan.device for plan in planned})
            if len(devices) != 1:
                raise Unsupported(f"KV caches lie on {', '.join(devices)}; one device is needed")
            if devices[0] != "cpu":
                self._stream = self._make_stream(devices[0])
            for plan in planned:
                self._pages[plan.group.index] = self._register_pages(plan)
                self._groups[plan.group.index] = plan
            self._report = RankReport({
                plan.group.index: dict(
                    model=identity.name(), model_fingerprint=fingerprint, kv_dtype=plan.kv_dtype,
                    layout=plan.layout, parallel=parallel, group=plan.group.name(), extra=extra,
                    block_bytes=plan.block_bytes, tokens_per_block=plan.group.block_tokens)
                for plan in planned
            })
        except Exception as error:
            self._report = RankReport(problem=_explain(error))
            raise

    def _register_pages(self, plan: GroupPages) -> Any:
        if self._stream is None:
            return self._client.register_pages(plan.planes, plan.n_blocks)
        return self._client.register_device_pages(plan.planes, plan.n_blocks, self._stream.handle,
                                                  0 if self._export else api.PAGES_NO_EXPORT)

    def _order_behind_engine(self) -> None:
        """GPU pages: what is submitted next sees, and overwrites, nothing of kernels still to run."""
        if self._stream is None:
            return
        self._stream.follow()
        if not self._copier_said and self._client.is_ready():
            self._copier_said = True
            said = {pages.copier() for pages in self._pages.values()}
            for copier, why in sorted(said):
                if copier == api.COPIER_DAEMON:
                    logger.info("terrace: terraced copies from and to this worker's GPU memory")
                else:
                    logger.warning("terrace: this worker copies its GPU pages itself, slower than terraced "
                                   "would: %s", why)

    def report(self) -> RankReport:
        return self._report

    def _open(self, hash_id: Optional[str]) -> None:
        """Opens the key spaces once the scheduler side has told how blocks are hashed."""
        if hash_id is None or self._hash_id is not None or self._report.problem:
            return
        for index, desc in self._report.key_spaces.items():
            if index not in self._key_spaces:
                self._key_spaces[index] = self._client.open_key_space(hash=hash_id, **desc)
        self._hash_id = hash_id

    # ------------------------------------------------------------ a step

    def take(self, orders: StepOrders) -> None:
        """This step's orders. Loads are taken first: whatever else fails, they get an answer."""
        self._load_orders += orders.loads
        self._load_orders += [LoadOrder(request_id, []) for request_id in orders.abandoned]
        self._store_orders = list(orders.stores)
        for order in orders.loads:
            self._loads.setdefault(order.request_id, _Load())
        for request_id in orders.abandoned:
            self._loads.setdefault(request_id, _Load()).failed = True
        self._open(orders.hash_id)

    def start_loads(self) -> None:
        orders, self._load_orders = self._load_orders, []
        for order in orders:
            load = self._loads.get(order.request_id)
            if load is None:
                continue
            try:
                self._start(order, load)
            except Exception as error:
                load.failed = True
                limited.log(logging.WARNING, "load", "terrace: a load could not be started: %s", error)

    def _start(self, order: LoadOrder, load: _Load) -> None:
        self._order_behind_engine()
        for part in order.parts:
            if tuple(part.rank) != self._rank:
                continue
            key_space = self._key_spaces.get(part.group)
            if key_space is None:
                raise RuntimeError("this rank's key spaces are not open")
            load.operations.append(self._client.load(
                key_space, part.refs, part.keys, self._pages[part.group], part.block_ids))
            load.blocks += len(part.block_ids)
            load.bytes += len(part.block_ids) * key_space.block_bytes

    def start_stores(self) -> None:
        """Submits this step's stores: the forward that filled their pages has run."""
        self._reap_stores()
        orders, self._store_orders = self._store_orders, []
        if orders:
            self._order_behind_engine()
        for order in orders:
            n = len(order.block_ids)
            key_space = self._key_spaces.get(order.group)
            if key_space is None or len(self._stores) >= _MAX_STORES:
                self._counters.add("store_failed_blocks", n)
                continue
            flags = api.STORE_INDEPENDENT if order.independent else api.STORE_CHAIN
            try:
                operation = self._client.store(key_space, order.parent, order.keys, flags,
                                               self._pages[order.group], order.block_ids,
                                               order.retention)
            except api.TerraceError as error:
                self._counters.add("store_failed_blocks", n)
                limited.log(logging.INFO, "store", "terrace: blocks are not stored: %s", error)
                continue
            self._stores.append(operation)
            self._reading.append(operation)

    def barrier(self) -> None:
        """Returns once no store reads pages any more.

        A store reads its pages in the background after wait_for_save(). The pages may be freed by the
        scheduler and given to another request at once, but nothing writes to a page before the next
        step's first worker hook (V1 runner: handle_preemptions comes before zeroing, copy-on-write and
        the forward). So that hook waits here; it overlaps the copies with sampling and scheduling.
        There is no way on without them: a page changed while it is read would be stored torn, under a
        checksum that calls it right. The wait ends in any case: when the daemon hangs or goes away,
        libterrace ends the operation as UNAVAILABLE within its request time limit.
        On a GPU the copy runs behind the forward in the order of the engine's stream, so the wait includes what
        is left of that forward; an engine that samples between steps has waited for it already.
        """
        if not self._reading:
            return
        begun = time.monotonic()
        for operation in self._reading:
            while not (operation.wait_sources(_BARRIER_SLICE_US) or operation.done()):
                limited.log(logging.WARNING, "barrier", "terrace: waiting for stores to read their "
                            "pages; terraced is slow or busy")
        self._reading = []
        self._counters.add("save_wait_microseconds", int((time.monotonic() - begun) * 1e6))

    def poll(self) -> Tuple[Set[str], Set[str]]:
        """Requests whose loads ended since the last call: (all of them, those that failed)."""
        if not self._loads:
            return set(), set()
        finished: Set[str] = set()
        failed: Set[str] = set()
        waiting = {order.request_id for order in self._load_orders}  # not even started yet
        for request_id, load in list(self._loads.items()):
            if request_id in waiting:
                continue
            # The pages may be written until every operation is done, so even a failed load waits.
            if not all(operation.done() for operation in load.operations):
                continue
            try:
                ok = self._end(load)
            except Exception as error:
                ok = False
                limited.log(logging.WARNING, "load end", "terrace: the end of a load: %r", error)
            del self._loads[request_id]
            finished.add(request_id)
            if not ok:
                failed.add(request_id)
        return finished, failed

    def _end(self, load: _Load) -> bool:
        for operation in load.operations:
            reasons = operation.reasons()
            if len(reasons) != operation.n_blocks or any(reasons):
                load.failed = True
                self._count(reasons)
            operation.close()
        if not load.failed:
            self._counters.add("loads")
            self._counters.add("load_blocks", load.blocks)
            self._counters.add("load_bytes", load.bytes)
            self._counters.add("load_microseconds", int((time.monotonic() - load.at) * 1e6))
        return not load.failed

    def _reap_stores(self) -> None:
        under_way = []
        for operation in self._stores:
            if not operation.done():
                under_way.append(operation)
                continue
            reasons = operation.reasons()
            stored = reasons.count(api.REASON_NONE)
            duplicate = reasons.count(api.REASON_DUPLICATE)
            self._counters.add("store_blocks", stored)
            self._counters.add("store_duplicate_blocks", duplicate)
            self._counters.add("store_failed_blocks", len(reasons) - stored - duplicate)
            self._count(reasons.replace(bytes([api.REASON_DUPLICATE]), b""))
            operation.close()
        self._stores = under_way

    def _count(self, reasons: bytes) -> None:
        for reason in set(reasons):
            if reason != api.REASON_NONE:
                self._counters.add_reason(self._client.library.reason_text(reason),
                                          reasons.count(reason))

    # ------------------------------------------------------------ end

    def shutdown(self) -> None:
        """Waits for the copies that touch this process's pages, then closes everything."""
        for load in self._loads.values():
            for operation in load.operations:
                operation.close()
        self._loads = {}
        # A store that is not finished is finished as far as the daemon lets it: a short engine's last
        # blocks would be lost otherwise.
        deadline = time.monotonic() + 5.0
        for operation in self._stores:
            operation.wait(max(1, int((deadline - time.monotonic()) * 1e6)))
            operation.close()
        self._stores, self._reading = [], []
        for pages in self._pages.values():
            pages.close()
        self._pages = {}
        for key_space in self._key_spaces.values():
            key_space.close()
        self._key_spaces = {}
        self._client.close()


def kernel_facts(vllm_config: Any, layers: Sequence[str], on_cpu: bool = True) -> Dict[str, Dict[str, Any]]:
    """Per layer, what beside the tensor decides the bytes in a page: the attention kernel and its scales.

    The CPU kernel packs K in an order of its instruction set (layer.isa); fp8 caches are scaled.
    """
    context = getattr(getattr(vllm_config, "compilation_config", None), "static_forward_context", None)
    facts: Dict[str, Dict[str, Any]] = {}
    for name in layers:
        layer = (context or {}).get(name)
        backend = getattr(layer, "attn_backend", None)
        get_name = getattr(backend, "get_name", None)
        facts[name] = {
            "backend": str(get_name() if get_name else getattr(backend, "__name__", backend)),
            "isa": str(_isa(vllm_config, layer) if on_cpu else None),
            "cache_dtype": str(getattr(layer, "kv_cache_dtype", None)),
            "k_scale": str(getattr(layer, "_k_scale_float", None)),
            "v_scale": str(getattr(layer, "_v_scale_float", None)),
        }
    return facts


def _isa(vllm_config: Any, layer: Any) -> Any:
    isa = getattr(layer, "isa", None) or getattr(getattr(layer, "impl", None), "isa", None)
    if isa is not None:
        return isa
    try:  # the layers learn theirs when the attention metadata builders are made, maybe later
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        return _get_attn_isa(vllm_config.model_config.dtype, vllm_config.cache_config.block_size,
                             getattr(layer, "head_size", None), vllm_config.cache_config.cache_dtype)
    except Exception:
        return None


def cpu_facts() -> str:
    """The instruction sets on which the CPU kernels' page formats depend."""
    try:
        import torch

        names = ("_is_amx_tile_supported", "_is_avx512_supported", "_is_avx512_bf16_supported")
        return canonical({n: bool(getattr(torch.cpu, n)()) for n in names if hasattr(torch.cpu, n)})
    except Exception as error:
        return f"unknown ({type(error).__name__})"


def _explain(error: Exception) -> str:
    if isinstance(error, Unresolved):
        return f"{error}; set kv_connector_extra_config.model_fingerprint to name the weights yourself"
    return str(error) or type(error).__name__
