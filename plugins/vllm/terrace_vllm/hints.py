# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What a request says about the future of its blocks. Clients write it, so every value is checked; what is
wrong is logged and ignored, never raised."""

import logging
import math
from typing import Any, Mapping, Optional

from terrace_vllm.client import Retention
from terrace_vllm.guard import limited

_LONGEST_S = 3600.0  # the daemon forgets hints after an hour
_MAX_PRIORITY = 7
_KEYS = ("pin_s", "reuse_after_s", "done", "priority")


def retention_of(request: Any) -> Optional[Retention]:
    """The hints of a vLLM request; None: it says nothing.

    From kv_transfer_params["terrace"], a map of _KEYS; and where that names no priority, from the
    request's own scheduling priority: vLLM serves lower numbers first, so -3 keeps blocks like 3.
    """
    try:
        retention = _parse(getattr(request, "kv_transfer_params", None))
    except (TypeError, ValueError) as error:
        limited.log(logging.WARNING, "request hints", "terrace: kv_transfer_params: %s; the hints of this "
                    "request are ignored", error)
        retention = None
    if retention is None or retention.priority == 0:
        urgency = getattr(request, "priority", 0)
        if isinstance(urgency, int) and urgency < 0:
            retention = (retention or Retention())._replace(priority=min(-urgency, _MAX_PRIORITY))
    return retention if retention and any(retention) else None


def _parse(params: Any) -> Optional[Retention]:
    hints = params.get("terrace") if isinstance(params, Mapping) else None
    if hints is None:
        return None
    if not isinstance(hints, Mapping):
        raise TypeError(f"terrace must be a map of {', '.join(_KEYS)}, not {type(hints).__name__}")
    for key in hints:
        if key not in _KEYS:
            raise ValueError(f"unknown key terrace.{str(key)[:40]}; known: {', '.join(_KEYS)}")
    done = hints.get("done", False)
    if not isinstance(done, bool):
        raise TypeError(f"terrace.done must be true or false, not {type(done).__name__}")
    priority = hints.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= _MAX_PRIORITY:
        raise ValueError(f"terrace.priority must be a whole number from 0 to {_MAX_PRIORITY}")
    return Retention(_milliseconds(hints, "reuse_after_s"), _milliseconds(hints, "pin_s"), done, priority)


def _milliseconds(hints: Mapping, key: str) -> int:
    seconds = hints.get(key, 0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"terrace.{key} must be a number, not {type(seconds).__name__}")
    if not 0 <= seconds <= _LONGEST_S:  # nor NaN
        raise ValueError(f"terrace.{key} must be between 0 and {_LONGEST_S:g} seconds")
    return math.ceil(seconds * 1000)
