# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Nothing leaves the plugin but answers: the decorator around every hook, and a logger that cannot flood."""

import functools
import logging
import threading
import time
from typing import Any, Callable, Dict

# Below "vllm", so that it appears wherever vLLM's own log goes.
logger = logging.getLogger("vllm.terrace")


class RateLimited:
    """Logs a message at most once per key and `period_s`, with the number of those left out.

    Threads: any. Keys are few (names of hooks and of events), so nothing is ever forgotten.
    """

    def __init__(self, period_s: float = 30.0) -> None:
        self._period_s = period_s
        self._lock = threading.Lock()
        self._last: Dict[str, float] = {}
        self._skipped: Dict[str, int] = {}

    def log(self, level: int, key: str, message: str, *args: Any, exc_info: Any = None) -> None:
        now = time.monotonic()
        with self._lock:
            last = self._last.get(key)
            if last is not None and now - last < self._period_s:
                self._skipped[key] = self._skipped.get(key, 0) + 1
                return
            self._last[key] = now
            skipped = self._skipped.pop(key, 0)
        if skipped:
            message += f" ({skipped} more like this were not logged)"
        logger.log(level, message, *args, exc_info=exc_info)


limited = RateLimited()


def guarded(default: Any) -> Callable:
    """Wraps a hook: whatever goes wrong inside is counted and logged, and `default` is answered.

    default: the neutral answer, or a callable that makes one (a fresh set, fresh metadata).
    Only KeyboardInterrupt and SystemExit pass: they are the operator's, not ours.
    """

    def decorate(hook: Callable) -> Callable:
        @functools.wraps(hook)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                try:
                    self.note_error(hook.__name__, error)
                except Exception:  # not even the report of a failure may fail the engine
                    pass
                return default() if callable(default) else default

        return call

    return decorate
