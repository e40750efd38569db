# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Scheduler side: asks Terrace for prefixes, holds their leases, and writes the workers' orders.

Runs on the engine core's thread inside its scheduling step, so nothing here waits except one lookup,
and that for at most lookup_timeout_ms. Does not import vLLM: requests and scheduler output are used by
their attributes (as of vLLM 0.30).
"""

import hashlib
import logging
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from terrace_vllm import client as api
from terrace_vllm.config import Settings
from terrace_vllm.fingerprint import digest_adapter
from terrace_vllm.guard import limited, logger
from terrace_vllm.hints import retention_of
from terrace_vllm.hits import Present, usable_tokens
from terrace_vllm.layout import FULL, SLIDING, Group
from terrace_vllm.meta import LoadOrder, LoadPart, Rank, RankReport, StepOrders, StoreOrder
from terrace_vllm.stats import Counters

# A hit is leased while its request waits for room; a daemon may end leases after minutes.
_HIT_FRESH_S = 60.0
# A waiting request is asked about in every step; what was not there a moment ago still is not.
_MISS_FRESH_S = 0.5
# Blocks of the engine's own prefix cache are offered to Terrace again (it may have evicted them), but not
# those that went there a moment ago: a prefix shared by many requests would be offered by each of them.
_STORED_FRESH_S = 60.0
_STORED_MAX = 1 << 16
# After this many lookups in a row without an answer, none is sent for a while.
_TIMEOUTS_TO_PAUSE = 3
_PAUSE_S = 1.0


class _Hit:
    """What a lookup found for one request: blocks of tokens [start, end), leased."""

    __slots__ = ("start", "end", "leases", "refs", "at")

    def __init__(self, start: int, end: int, leases: List[int],
                 refs: Dict[Tuple[Rank, int], bytes]) -> None:
        self.start, self.end, self.leases, self.refs = start, end, leases, refs
        self.at = time.monotonic()


class _Request:
    """What is known of one request between on_new_request and request_finished."""

    __slots__ = ("request", "salt", "usable", "hit", "answered_start", "loading", "failed", "loaded",
                 "next_store", "retention")

    def __init__(self, request: Any, n_groups: int) -> None:
        self.request = request
        self.salt: Optional[bytes] = None  # mixed into every key: a LoRA adapter's content
        self.usable = True  # False: neither looked up nor stored
        self.hit: Optional[_Hit] = None
        self.answered_start = 0  # num_computed_tokens of the last answer
        self.loading: Optional[Tuple[int, int]] = None  # tokens being loaded
        self.failed = False  # a load failed: never offer a hit again, or it could loop for ever
        self.loaded: Optional[Tuple[int, int]] = None  # tokens that came from Terrace: not stored again
        self.next_store = [0] * n_groups  # first block of each group not yet handed to the workers
        self.retention = retention_of(request)


class SchedulerSide:
    """One per engine core.

    Owner: the connector in role SCHEDULER. Threads: the engine core's. Limits: one entry per live
    request; leases end with the load, the request or a smaller allocation. Failure: every question has
    the neutral answer "no hit"; a load that was promised and cannot be ordered is named in
    StepOrders.abandoned, so that no request waits for ever.
    """

    def __init__(self, settings: Settings, client: Any, groups: Sequence[Group], hash_tokens: int,
                 align: int, hash_identity: Callable[[], Optional[str]], counters: Counters,
                 may_load: bool = True, may_store: bool = True) -> None:
        self._settings = settings
        self._client = client
        self._groups = list(groups)
        self._hash_tokens = hash_tokens
        self._align = align
        self._hash_identity = hash_identity
        self._counters = counters
        self._may_load, self._may_store = may_load, may_store
        self._requests: Dict[str, _Request] = {}
        self._leases_loading: Dict[str, List[int]] = {}  # outlives its request after an abort
        self._orders = StepOrders()
        self._reports: Optional[Dict[Rank, RankReport]] = None
        self._key_spaces: Dict[Tuple[Rank, int], Any] = {}
        self._hash_id: Optional[str] = None
        self._timeouts = 0
        self._paused_until = 0.0
        self._stored: "OrderedDict[Tuple[int, bytes], float]" = OrderedDict()  # when ordered last
        self._adapters: "OrderedDict[str, Optional[bytes]]" = OrderedDict()

    # ------------------------------------------------------------ start-up

    def set_reports(self, reports: Dict[Rank, RankReport], expected_ranks: int) -> None:
        """The workers' key spaces. Until this was called, and if one cannot take part, nothing hits."""
        problems = sorted({r.problem for r in reports.values() if r.problem})
        if problems or len(reports) != expected_ranks:
            text = "; ".join(problems) or f"{len(reports)} of {expected_ranks} workers reported"
            logger.warning("terrace: not caching: %s", text)
            return
        self._reports = dict(reports)

    def _open(self) -> bool:
        """True when all ranks' key spaces are open (the daemon may still be away)."""
        if self._key_spaces:
            return True
        if self._reports is None:
            return False
        self._hash_id = self._hash_identity()
        if self._hash_id is None:
            return False
        opened = {}
        for rank, report in self._reports.items():
            for group in self._groups:
                opened[rank, group.index] = self._client.open_key_space(
                    hash=self._hash_id, **report.key_spaces[group.index])
        self._key_spaces = opened
        return True

    # ------------------------------------------------------------ lookup

    def on_new_request(self, request: Any) -> None:
        self._known(request)

    def _known(self, request: Any) -> _Request:
        entry = self._requests.get(request.request_id)
        if entry is None:
            entry = _Request(request, len(self._groups))
            lora = getattr(request, "lora_request", None)
            if lora is not None:
                entry.salt = self._adapter_salt(str(getattr(lora, "lora_path", "")))
                entry.usable = entry.salt is not None
            self._requests[request.request_id] = entry
        return entry

    def _adapter_salt(self, path: str) -> Optional[bytes]:
        if path not in self._adapters:
            self._adapters[path] = digest_adapter(path)
            if self._adapters[path] is None:
                limited.log(logging.WARNING, "lora", "terrace: LoRA adapter %s cannot be read as a "
                            "folder; its requests are not cached", path)
            while len(self._adapters) > 1024:
                self._adapters.popitem(last=False)
        return self._adapters[path]

    def matched_tokens(self, request: Any, computed: int) -> Tuple[int, bool]:
        """Tokens that can be loaded beyond `computed`; always asynchronously.

        Idempotent: vLLM asks in every step while the request waits for room, and the answer, with its
        lease, is kept between the questions.
        """
        if not self._may_load or getattr(request, "skip_reading_prefix_cache", False):
            return 0, False
        entry = self._known(request)
        if not entry.usable or entry.failed or entry.loading is not None:
            return 0, False
        hit = entry.hit
        if hit is not None:
            found = hit.end > hit.start
            age = time.monotonic() - hit.at
            if computed < hit.start or age > (_HIT_FRESH_S if found else _MISS_FRESH_S):
                self._drop_hit(entry)
                hit = None
        if hit is None:
            hit = self._lookup(entry, computed)
            if hit is None:
                return 0, False
            entry.hit = hit
        tokens = hit.end - computed
        if tokens < max(1, self._settings.min_tokens):
            return 0, False
        entry.answered_start = computed
        return tokens, True

    def _lookup(self, entry: _Request, computed: int) -> Optional[_Hit]:
        """One round trip for all ranks and groups. None: nothing is known (and nothing is leased)."""
        request = entry.request
        total = min(len(request.block_hashes) * self._hash_tokens, request.num_tokens)
        total -= total % self._align
        if total - computed < max(1, self._settings.min_tokens) or not self._open():
            return None
        now = time.monotonic()
        if now < self._paused_until or not self._client.is_ready():
            return None
        where, parts = [], []
        for group in self._groups:
            keys = self._keys(entry, group, computed // group.block_tokens,
                              total // group.block_tokens)
            mode = api.MODE_PREFIX if group.kind == FULL else api.MODE_ALL
            for rank in self._reports or ():
                where.append((rank, group))
                parts.append((self._key_spaces[rank, group.index], keys, mode))
        # Blocks of lower tiers are hits: their load starts now and the workers' loads wait for them.
        status, answers = self._client.lookup(
            parts, self._settings.lookup_timeout_ms * 1000, may_wait=True,
            recompute_ns_per_token=min(self._settings.recompute_us_per_token * 1000, 2**32 - 1))
        self._counters.add("lookups")
        if status == api.OK:
            self._timeouts = 0
        else:
            self._note_timeout(now)
        leases = [answer.lease for answer in answers if answer.lease]
        try:
            return self._judge(computed, total, where, answers, leases)
        except BaseException:
            self._release(leases)
            raise

    def _note_timeout(self, now: float) -> None:
        self._counters.add("lookup_timeouts")
        self._timeouts += 1
        if self._timeouts >= _TIMEOUTS_TO_PAUSE:
            self._timeouts = 0
            self._paused_until = now + _PAUSE_S
            limited.log(logging.WARNING, "slow", "terrace: terraced does not answer within %d ms; "
                        "no lookups for %g s", self._settings.lookup_timeout_ms, _PAUSE_S)

    def _judge(self, computed: int, total: int, where: List[Tuple[Rank, Group]],
               answers: List[Any], leases: List[int]) -> _Hit:
        """Turns the answers into a hit: what all ranks have, cut to a length that is of use."""
        present: Dict[int, Present] = {}
        refs: Dict[Tuple[Rank, int], bytes] = {}
        for (rank, group), answer in zip(where, answers):
            n_keys = len(answer.reasons)
            taken = (api.REASON_NONE, api.REASON_PENDING) if answer.n_pending else (api.REASON_NONE,)
            here = [reason in taken for reason in answer.reasons]
            if group.kind == FULL:
                here = []
            self._counters.add("lookup_blocks", n_keys)
            self._counters.add("hit_blocks", answer.n_here)
            self._counters.add("pending_blocks", answer.n_pending)
            if answer.n_here < n_keys:
                self._count_reasons(answer.reasons, taken)
            before = present.get(group.index)
            if before is None:
                present[group.index] = Present(group, answer.n_prefix, here)
            else:
                present[group.index] = Present(
                    group, min(before.n_prefix, answer.n_prefix),
                    [a and b for a, b in zip(before.here, here)])
            refs[rank, group.index] = answer.refs
        end = usable_tokens(computed, total, self._align, list(present.values()))
        if end - computed < max(1, self._settings.min_tokens):
            end = computed
            refs = {}
            self._release(leases)
            leases = []
        self._counters.add("hit_tokens", end - computed)
        return _Hit(computed, end, leases, refs)

    def _count_reasons(self, reasons: bytes, taken: Sequence[int]) -> None:
        for reason in set(reasons):
            if reason not in taken:
                self._counters.add_reason(self._client.library.reason_text(reason),
                                          reasons.count(reason))

    def _keys(self, entry: _Request, group: Group, first: int, last: int) -> bytes:
        """Keys of the group's blocks [first, last): the hash of a coarse block is its last fine one."""
        ratio = group.block_tokens // self._hash_tokens
        hashes = entry.request.block_hashes[(first + 1) * ratio - 1:last * ratio:ratio]
        if entry.salt is not None:
            return b"".join(hashlib.sha256(entry.salt + bytes(h)).digest() for h in hashes)
        if hashes and len(hashes[0]) != api.KEY_BYTES:  # xxhash gives 16 bytes
            return b"".join(bytes(h).ljust(api.KEY_BYTES, b"\0") for h in hashes)
        return b"".join(hashes)

    def _release(self, leases: List[int]) -> None:
        for lease in leases:
            self._client.release(lease)

    def _drop_hit(self, entry: _Request) -> None:
        hit, entry.hit = entry.hit, None
        if hit is not None:
            self._release(hit.leases)

    # ------------------------------------------------------------ load

    def allocated(self, request: Any, blocks: Any, external_tokens: int) -> None:
        """Pages were given to the request; with external_tokens > 0 it now waits for their load."""
        entry = self._known(request)
        if external_tokens <= 0:
            # Also the second call, after a load: its lease went with update_output() already.
            self._drop_hit(entry)
            return
        self._leases_loading.setdefault(request.request_id, [])
        try:
            self._orders.loads.append(self._order_load(entry, blocks, external_tokens))
        except BaseException:
            self._orders.abandoned.append(request.request_id)
            raise

    def _order_load(self, entry: _Request, blocks: Any, external_tokens: int) -> LoadOrder:
        hit, entry.hit = entry.hit, None
        if hit is None:
            raise RuntimeError("pages were allocated for a hit that was never offered")
        request_id = entry.request.request_id
        self._leases_loading[request_id] += hit.leases
        start, end = entry.answered_start, entry.answered_start + external_tokens
        entry.loading = (start, end)
        if end > hit.end:
            raise RuntimeError(f"pages for {end} tokens, but only {hit.end} were offered")
        all_ids = blocks.get_block_ids()
        parts = []
        for group in self._groups:
            size = group.block_tokens
            if start % size or end % size:
                raise RuntimeError(f"tokens [{start}, {end}) are not whole blocks of {size}")
            ids = all_ids[group.index]
            # A window's blocks that are out of it have no page (id 0, the null block).
            wanted = [i for i in range(start // size, end // size)
                      if group.kind == FULL or ids[i] != 0]
            if not wanted:
                continue
            if any(ids[i] == 0 for i in wanted):
                raise RuntimeError("a block to be loaded has no page")
            base = hit.start // size
            keys = self._keys(entry, group, base, end // size)
            key_of = [keys[(i - base) * 32:(i - base + 1) * 32] for i in wanted]
            for rank in self._reports or ():
                refs = hit.refs[rank, group.index]
                n = api.REF_BYTES
                ref_of = [refs[(i - base) * n:(i - base + 1) * n] for i in wanted]
                if any(not any(ref) for ref in ref_of):
                    raise RuntimeError("a block to be loaded is not among those offered")
                parts.append(LoadPart(rank, group.index, b"".join(key_of), b"".join(ref_of),
                                      [ids[i] for i in wanted]))
        return LoadOrder(request_id, parts)

    def update_output(self, finished: Sequence[str], failed: Sequence[str]) -> None:
        """The workers' word on loads: all ranks are done with these requests."""
        failed = set(failed)
        for request_id in finished:
            self._release(self._leases_loading.pop(request_id, []))
            entry = self._requests.get(request_id)
            if request_id in failed:
                self._counters.add("loads_failed")
                limited.log(logging.WARNING, "load failed",
                            "terrace: a load failed; request %s is recomputed", request_id)
            if entry is None:
                continue
            if request_id in failed:
                entry.failed = True
            else:
                entry.loaded = entry.loading
            entry.loading = None

    def finished(self, request: Any) -> None:
        """The request ended or was aborted. A load under way keeps its lease until it is reported."""
        entry = self._requests.pop(request.request_id, None)
        if entry is not None:
            self._drop_hit(entry)
            if entry.retention is not None:
                self._hint(entry)

    def _hint(self, entry: _Request) -> None:
        """At its end: its blocks that were here before it. Those it stored carry the hint already."""
        if not entry.usable or not self._key_spaces or not self._client.is_ready():
            return
        tokens = min(entry.request.num_computed_tokens,
                     len(entry.request.block_hashes) * self._hash_tokens)
        for group in self._groups:
            keys = self._keys(entry, group, 0, tokens // group.block_tokens)
            if not keys:
                continue
            self._counters.add("hint_blocks", len(keys) // api.KEY_BYTES)
            for rank in self._reports or ():
                try:
                    self._client.hint(self._key_spaces[rank, group.index], keys, entry.retention)
                except api.TerraceError as error:  # advice; the daemon may be away
                    limited.log(logging.INFO, "hint", "terrace: a hint was not taken: %s", error)

    # ------------------------------------------------------------ orders of a step

    def take_orders(self) -> StepOrders:
        """The step's loads. Called before anything that can fail: they must reach the workers."""
        orders, self._orders = self._orders, StepOrders()
        orders.hash_id = self._hash_id
        return orders

    def order_stores(self, output: Any, orders: StepOrders) -> None:
        """Adds the blocks that are full once this step has run."""
        if not self._may_store or not output.num_scheduled_tokens:
            return
        if not self._client.is_ready() or not self._open():
            self._stored.clear()  # the daemon that comes back may be an empty one
            return  # next_store stays: what is still in pages is stored when the daemon is back
        orders.hash_id = self._hash_id
        drafts = getattr(output, "scheduled_spec_decode_tokens", None) or {}
        state = output.kv_connector_block_state
        for request_id, scheduled in output.num_scheduled_tokens.items():
            entry = self._requests.get(request_id)
            if entry is None or not entry.usable:
                continue
            request = entry.request
            # Draft tokens may be rejected and their positions written again: not theirs.
            tokens = request.num_computed_tokens + scheduled - len(drafts.get(request_id, ()))
            tokens = min(tokens, len(request.block_hashes) * self._hash_tokens)
            ids = None
            for group in self._groups:
                full = tokens // group.block_tokens
                if full <= entry.next_store[group.index]:
                    continue
                if ids is None:
                    ids = state.get_block_ids(request_id)
                self._order_group(entry, group, full, ids[group.index], orders)

    def _order_group(self, entry: _Request, group: Group, full: int, ids: Sequence[int],
                     orders: StepOrders) -> None:
        first = entry.next_store[group.index]
        full = min(full, len(ids))
        skip = range(0)
        if entry.loaded is not None:
            skip = range(entry.loaded[0] // group.block_tokens,
                         entry.loaded[1] // group.block_tokens)
        wanted = [i for i in range(first, full) if i not in skip and ids[i] != 0]
        if first == 0 and entry.request.num_computed_tokens >= group.block_tokens:
            wanted = self._not_stored_lately(entry, group, wanted)
        for begin, end in _runs(wanted):
            parent = None
            if group.kind == FULL and begin > 0:
                parent = self._keys(entry, group, begin - 1, begin)
            keys = self._keys(entry, group, begin, end)
            orders.stores.append(StoreOrder(group.index, parent, keys, group.kind == SLIDING,
                                            list(ids[begin:end]), entry.retention))
            now = time.monotonic()
            for i in range(0, len(keys), api.KEY_BYTES):
                self._stored[group.index, keys[i:i + api.KEY_BYTES]] = now
        while len(self._stored) > _STORED_MAX:
            self._stored.popitem(last=False)
        entry.next_store[group.index] = max(first, full)

    def _not_stored_lately(self, entry: _Request, group: Group, wanted: List[int]) -> List[int]:
        """Without the blocks of the engine's own cache that were ordered to be stored a moment ago."""
        local = entry.request.num_computed_tokens // group.block_tokens
        since = time.monotonic() - _STORED_FRESH_S
        return [i for i in wanted if i >= local or self._stored.get(
            (group.index, self._keys(entry, group, i, i + 1)), since) <= since]

    # ------------------------------------------------------------ end

    def forget_hits(self) -> None:
        """Drops every remembered answer; leases of loads under way stay."""
        for entry in self._requests.values():
            self._drop_hit(entry)

    def shutdown(self) -> None:
        for key_space in self._key_spaces.values():
            key_space.close()
        self._key_spaces = {}
        self._reports = None
        self._client.close()


def _runs(indices: Sequence[int]) -> List[Tuple[int, int]]:
    """Consecutive numbers as half-open ranges."""
    runs: List[Tuple[int, int]] = []
    for i in indices:
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs
