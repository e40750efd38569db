# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What the two sides of the connector tell each other; plain values that pickle well.

Rank = (pipeline rank, tensor rank). Keys and refs are 32 and 48 bytes a block, one after the other.
"""

import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from terrace_vllm.client import Retention

Rank = Tuple[int, int]


class LoadPart(NamedTuple):
    """Blocks of one group for one rank; every rank has refs of its own key space."""

    rank: Rank
    group: int
    keys: bytes
    refs: bytes
    block_ids: List[int]


class LoadOrder(NamedTuple):
    request_id: str
    parts: List[LoadPart]


class StoreOrder(NamedTuple):
    """A run of blocks of one group, the same for all ranks: each stores its own share."""

    group: int
    parent: Optional[bytes]
    keys: bytes
    independent: bool  # no block has a parent: a window's blocks are useful without those before
    block_ids: List[int]
    retention: Optional[Retention] = None  # what the request's client knows of their future


@dataclasses.dataclass
class StepOrders:
    """Scheduler side -> workers, once a step."""

    hash_id: Optional[str] = None  # None: not known yet; the workers cannot open key spaces
    loads: List[LoadOrder] = dataclasses.field(default_factory=list)
    stores: List[StoreOrder] = dataclasses.field(default_factory=list)
    # Requests that wait for a load which could not be ordered: reported as failed at once.
    abandoned: List[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class RankReport:
    """Worker -> scheduler side, once: the rank's key spaces without their hash part, by group index."""

    key_spaces: Dict[int, Dict[str, Any]] = dataclasses.field(default_factory=dict)
    problem: Optional[str] = None  # why this rank cannot take part
