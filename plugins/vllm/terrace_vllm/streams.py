# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The GPU stream behind which loads and stores are ordered, whichever one the engine computes on."""

from typing import Any


class EngineStream:
    """The stream that pages are registered with.

    libterrace orders a load or store behind what this stream holds at the call. An engine may compute on
    another stream than the one that was current at registration (vLLM makes its own at first use), so each
    call is preceded by follow(). Owner: WorkerSide. Threads: the worker's. Raises ImportError without torch.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._device = device
        self._stream = torch.cuda.current_stream(device)
        self.handle: int = self._stream.cuda_stream

    def follow(self) -> None:
        """Puts what the current stream holds before what is ordered next. Costs an event at most."""
        current = self._cuda.current_stream(self._device)
        if current.cuda_stream != self.handle:
            self._stream.wait_stream(current)
