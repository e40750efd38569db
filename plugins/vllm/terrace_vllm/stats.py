# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Counters of both sides, carried through vLLM's own statistics into its log line and its /metrics."""

from typing import Any, Dict, Optional

# Name -> help text. Every name becomes vllm:terrace_<name>_total with vLLM's engine labels.
COUNTERS = {
    "lookups": "Lookups sent to terraced",
    "lookup_timeouts": "Lookups without an answer in time (counted as misses)",
    "lookup_blocks": "Blocks asked for, all groups and ranks",
    "hit_blocks": "Blocks found, all groups and ranks",
    "pending_blocks": "Blocks found on a lower tier, whose loading the lookup has started",
    "hint_blocks": "Blocks for which a request's retention hints were given",
    "hit_tokens": "Tokens offered to the scheduler as hits",
    "loads": "Requests whose blocks were loaded",
    "loads_failed": "Requests whose load failed and that were recomputed",
    "load_blocks": "Blocks loaded into the KV cache",
    "load_bytes": "Bytes loaded into the KV cache",
    "load_microseconds": "Time from ordering loads to their end, summed over requests",
    "store_blocks": "Blocks stored",
    "store_duplicate_blocks": "Blocks that were in Terrace already",
    "store_failed_blocks": "Blocks not stored (their reason is in terrace_missed_blocks)",
    "save_wait_microseconds": "Time steps waited for stores to have read their pages",
    "errors": "Errors inside the plugin, caught before they reached vLLM",
}
# Blocks not served or stored, by libterrace's closed list of reasons: one counter with a label.
MISSED = "missed_blocks"


class Counters:
    """What happened since the last take(). Owner: one side of the connector; its thread only."""

    def __init__(self) -> None:
        self._values: Dict[str, int] = {}
        self._reasons: Dict[str, int] = {}

    def add(self, name: str, n: int = 1) -> None:
        assert name in COUNTERS, name
        if n:
            self._values[name] = self._values.get(name, 0) + n

    def add_reason(self, reason: str, n: int = 1) -> None:
        if n:
            self._reasons[reason] = self._reasons.get(reason, 0) + n

    def take(self) -> Optional[Dict[str, int]]:
        """The counters as one flat map (reasons as "missed_blocks:<reason>"), or None; starts anew."""
        if not self._values and not self._reasons:
            return None
        data = dict(self._values)
        data.update((f"{MISSED}:{reason}", n) for reason, n in self._reasons.items())
        self._values, self._reasons = {}, {}
        return data


def merge(into: Dict[str, int], other: Dict[str, int]) -> Dict[str, int]:
    for name, n in other.items():
        into[name] = into.get(name, 0) + n
    return into


def make_stats_class() -> Any:
    """TerraceStats as a subclass of this vLLM's KVConnectorStats (absent in very old versions)."""
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

    class TerraceStats(KVConnectorStats):
        """A flat map of counters; adding up is all there is to do with it."""

        def reset(self) -> None:
            self.data = {}

        def aggregate(self, other: Any) -> Any:
            merge(self.data, other.data)
            return self

        def reduce(self) -> Dict[str, Any]:
            return {f"Terrace {name}": n for name, n in sorted(self.data.items())}

        def is_empty(self) -> bool:
            return not self.data

    # Pickled between processes by name, so the name must lead back to this class.
    TerraceStats.__qualname__ = "TerraceStats"
    TerraceStats.__module__ = "terrace_vllm.connector"
    return TerraceStats


def make_prom_class() -> Any:
    """Prometheus side: made in vLLM's front-end process only."""
    from prometheus_client import Counter
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics

    class TerracePromMetrics(KVConnectorPromMetrics):
        """vllm:terrace_*_total: one child per engine, as vLLM's own metrics have."""

        def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any,
                     per_engine_labelvalues: Any) -> None:
            super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
            make = metric_types[Counter]
            self._children = {
                name: make(name=f"vllm:terrace_{name}", documentation=text, labelnames=labelnames)
                for name, text in COUNTERS.items()
            }
            self._missed = make(name=f"vllm:terrace_{MISSED}",
                                documentation="Blocks not served or not stored, by reason",
                                labelnames=list(labelnames) + ["reason"])

        def observe(self, transfer_stats_data: Dict[str, Any], engine_idx: int = 0) -> None:
            labels = self.per_engine_labelvalues[engine_idx]
            for name, n in transfer_stats_data.items():
                if name.startswith(MISSED + ":"):
                    self._missed.labels(*labels, name.split(":", 1)[1]).inc(n)
                elif name in self._children:
                    self._children[name].labels(*labels).inc(n)

    return TerracePromMetrics
