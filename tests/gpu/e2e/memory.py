# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Where an engine's KV cache lies: private and shared host memory, GPU memory of the driver, PyTorch's.

Each kind allocates, writes in the engine's own order (GPU: on its stream, without waiting), reads back, and
registers the pages with libterrace. Standard library only, but for the kind `torch`.
"""

import ctypes
import fcntl
import mmap
import os
from typing import Any, List, Optional, Sequence, Tuple

from driver import Driver, DriverError
from terrace_vllm import client as api

_BUSY_BYTES = 64 << 20
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 2, 4


class Skipped(Exception):
    """This machine lacks what the kind of memory needs; the text says what."""


class HostMemory:
    """Anonymous memory that the library copies with this process's processors, or sealed memfds."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._maps: List[Tuple[int, mmap.mmap, int, int]] = []

    def allocate(self, n_bytes: int) -> int:
        fd = -1
        if self._shared:
            fd = os.memfd_create("paged-engine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, n_bytes)
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        mapping = mmap.mmap(fd, n_bytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._maps.append((fd, mapping, address, n_bytes))
        return address

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def read(self, address: int, n_bytes: int) -> bytes:
        return ctypes.string_at(address, n_bytes)

    def stage(self, n_bytes: int) -> None:
        pass

    def submit(self) -> None:
        pass

    def register(self, client: api.Client, planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> api.Pages:
        if not self._shared:
            return client.register_pages(planes, n_blocks)
        memory = [(fd, address, size) for fd, _, address, size in self._maps]
        return client.register_shared_pages(memory, planes, n_blocks)


class CudaMemory:
    """GPU memory by the driver API.

    export: `ipc` cuMemAlloc; `vmm` the VMM API, one physical allocation each; `pieces` many physical allocations
    mapped one after the other, as PyTorch's expandable segments are; `private` VMM without a handle to export;
    `refused` cuMemAlloc, and the library is told not to export it.
    """

    def __init__(self, export: str) -> None:
        try:
            self.driver = Driver()
        except DriverError as error:
            raise Skipped(str(error)) from error
        self._export = export
        self._stream = self.driver.stream()
        self._reader = self.driver.stream()
        self._scratch = (0, 0)
        self._used = 0
        self._writes: List[Tuple[int, int, int]] = []
        self._busy = self.driver.allocate(_BUSY_BYTES)
        # A few milliseconds of work for either kind of device.
        self._busy_rounds = 2 if self.driver.name() == "softcuda" else 128

    def allocate(self, n_bytes: int) -> int:
        if self._export in ("ipc", "refused"):
            return self.driver.allocate(n_bytes)
        return self.driver.map(n_bytes, exportable=self._export != "private", in_pieces=self._export == "pieces")

    def stage(self, n_bytes: int) -> None:
        """GPU memory through which the next writes go, so that their last step is a copy on the stream."""
        if self._scratch[1] < n_bytes:
            if self._scratch[0]:
                self.driver.wait(self._stream)
                self.driver.free(self._scratch[0])
            self._scratch = (self.driver.allocate(n_bytes), n_bytes)
        self._used = 0
        self._writes = []

    def write(self, address: int, data: bytes) -> None:
        source = self._scratch[0] + self._used
        self._used += len(data)
        assert self._used <= self._scratch[1], "stage() was given too little"
        self.driver.copy(source, data, len(data), self._reader)
        self.driver.wait(self._reader)
        self._writes.append((address, source, len(data)))

    def submit(self) -> None:
        """Puts the writes on the stream, behind other work: what does not wait for them comes too early."""
        half = _BUSY_BYTES // 2
        for _ in range(self._busy_rounds):
            self.driver.copy(self._busy, self._busy + half, half, self._stream)
        for write in self._writes:
            self.driver.copy(*write, self._stream)  # nobody waits for these
        self._writes = []

    def read(self, address: int, n_bytes: int) -> bytes:
        out = ctypes.create_string_buffer(n_bytes)
        self.driver.copy(ctypes.addressof(out), address, n_bytes, self._reader)
        self.driver.wait(self._reader)
        return out.raw

    def register(self, client: api.Client, planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> api.Pages:
        flags = api.PAGES_NO_EXPORT if self._export == "refused" else 0
        return client.register_device_pages(planes, n_blocks, self._stream, flags)


class TorchMemory:
    """PyTorch's CUDA tensors. export: `ipc`; `pieces` with its expandable segments; `refused`."""

    def __init__(self, export: str) -> None:
        if export == "pieces":  # read when torch allocates first
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        try:
            import torch
        except ImportError as error:
            raise Skipped(f"PyTorch is not installed: {error}") from error
        if not torch.cuda.is_available():
            raise Skipped("PyTorch sees no CUDA device")
        self._torch: Any = torch
        self._tensors: List[Tuple[int, Any]] = []
        self._writes: List[Tuple[Any, Any]] = []
        self._engine = torch.cuda.current_stream()
        self._reader = torch.cuda.Stream()
        self._flags = api.PAGES_NO_EXPORT if export == "refused" else 0

    def allocate(self, n_bytes: int) -> int:
        tensor = self._torch.zeros(n_bytes, dtype=self._torch.uint8, device="cuda")
        self._torch.cuda.synchronize()
        self._tensors.append((tensor.data_ptr(), tensor))
        return tensor.data_ptr()

    def _view(self, address: int, n_bytes: int) -> Any:
        for base, tensor in self._tensors:
            if base <= address and address + n_bytes <= base + tensor.numel():
                return tensor[address - base:address - base + n_bytes]
        raise ValueError(f"no tensor holds {address:#x}")

    def stage(self, n_bytes: int) -> None:
        self._writes = []

    def write(self, address: int, data: bytes) -> None:
        source = self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8).to("cuda")
        self._writes.append((self._view(address, len(data)), source))

    def submit(self) -> None:
        """As CudaMemory: other work first, then the writes, on the engine's stream."""
        self._torch.cuda._sleep(5_000_000)  # cycles: some milliseconds
        for target, source in self._writes:
            target.copy_(source)
        self._writes = []

    def read(self, address: int, n_bytes: int) -> bytes:
        with self._torch.cuda.stream(self._reader):
            return self._view(address, n_bytes).cpu().numpy().tobytes()

    def register(self, client: api.Client, planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> api.Pages:
        return client.register_device_pages(planes, n_blocks, self._engine.cuda_stream, self._flags)


def make(kind: str) -> Any:
    """kind: `private`, `host`, `cuda[:export]`, `torch[:export]`."""
    name, _, export = kind.partition(":")
    if name in ("private", "host"):
        return HostMemory(shared=name == "host")
    if name == "cuda":
        return CudaMemory(export or "ipc")
    if name == "torch":
        return TorchMemory(export or "ipc")
    raise ValueError(f"no kind of memory {kind}")


def why_not(kind: str) -> Optional[str]:
    """Why this kind cannot be had here; None if it can. Asked in a process of its own (__main__)."""
    try:
        make(kind)
    except Skipped as error:
        return str(error)
    return None
