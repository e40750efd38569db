# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""As much of NVIDIA's driver API as an engine needs, by ctypes: one device, its primary context."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any, Union

LIBRARY = "libcuda.so.1"
_STREAM_NON_BLOCKING = 1
_PINNED, _ON_DEVICE, _READ_WRITE, _POSIX_FD = 1, 1, 3, 1


class DriverError(Exception):
    """A call failed, or there is no driver or device; the text says which."""


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Properties(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = [("type", c_int), ("handle_types", c_int), ("location", _Location),
                ("win32", c_void_p), ("flags", ctypes.c_ubyte * 8)]


class _Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = [("location", _Location), ("flags", c_int)]


class Driver:
    """Owner: the engine's process, one thread. What it allocates lives as long as the process."""

    def __init__(self) -> None:
        try:
            self._dll = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DriverError(f"no NVIDIA driver: {error}") from error
        self._call("cuInit", c_uint(0))
        count, device, context = c_int(), c_int(), c_void_p()
        self._call("cuDeviceGetCount", byref(count))
        if count.value == 0:
            raise DriverError("the driver has no device")
        self._call("cuDeviceGet", byref(device), c_int(0))
        self._device = device.value
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxPushCurrent_v2", context)

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._dll, name)(*arguments)
        if result != 0:
            text = c_char_p()
            self._dll.cuGetErrorName(c_int(result), byref(text))
            raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({result})")

    def name(self) -> str:
        out = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", out, c_int(128), c_int(self._device))
        return out.value.decode()

    def stream(self) -> int:
        out = c_void_p()
        self._call("cuStreamCreateWithPriority", byref(out), c_uint(_STREAM_NON_BLOCKING), c_int(0))
        return out.value or 0

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", c_void_p(stream))

    def copy(self, target: int, source: Union[int, bytes], n_bytes: int, stream: int) -> None:
        """Either end may be host or GPU memory. bytes: must live until the stream was waited for."""
        if isinstance(source, bytes):
            source = ctypes.cast(c_char_p(source), c_void_p).value or 0
        self._call("cuMemcpyAsync", c_uint64(target), c_uint64(source), c_size_t(n_bytes), c_void_p(stream))

    def allocate(self, n_bytes: int) -> int:
        out = c_uint64()
        self._call("cuMemAlloc_v2", byref(out), c_size_t(n_bytes))
        return out.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def map(self, n_bytes: int, exportable: bool, in_pieces: bool) -> int:
        """A range of addresses over one physical allocation, or over many of two granules each."""
        location = _Location(_ON_DEVICE, self._device)
        wanted = _Properties(_PINNED, _POSIX_FD if exportable else 0, location)
        granule = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(granule), byref(wanted), c_int(0))
        total = -(-n_bytes // (2 * granule.value)) * 2 * granule.value
        piece = 2 * granule.value if in_pieces else total
        base = c_uint64()
        self._call("cuMemAddressReserve", byref(base), c_size_t(total), c_size_t(0), c_uint64(0), c_ulonglong(0))
        for offset in range(0, total, piece):
            handle = c_ulonglong()
            self._call("cuMemCreate", byref(handle), c_size_t(piece), byref(wanted), c_ulonglong(0))
            self._call("cuMemMap", c_uint64(base.value + offset), c_size_t(piece), c_size_t(0), handle,
                       c_ulonglong(0))
            self._call("cuMemRelease", handle)
        access = _Access(location, _READ_WRITE)
        self._call("cuMemSetAccess", base, c_size_t(total), POINTER(_Access)(access), c_size_t(1))
        return base.value
