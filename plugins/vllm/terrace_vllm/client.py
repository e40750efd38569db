# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""ctypes over libterrace (src/api/client/terrace.h). Knows nothing of vLLM or torch.

Every call maps to one C call; texts, limits and thread rules are those of the header. A failed call
raises TerraceError with the library's own text; a miss is a value. ctypes releases the interpreter
lock during every call, and the library's threads never enter Python.
"""

import ctypes
import glob
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

KEY_BYTES = 32
REF_BYTES = 48
API_VERSION = 2

OK = 0
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
FAILED_PRECONDITION = 9
UNAVAILABLE = 14
DATA_LOSS = 15

MODE_PREFIX = 0
MODE_ALL = 1
STORE_CHAIN = 0
STORE_INDEPENDENT = 1

LOOKUP_MAY_WAIT = 2

PAGES_NO_EXPORT = 1

COPIER_LIBRARY = 0
COPIER_DAEMON = 1
COPIER_LIBRARY_STREAM = 2

REASON_NONE = 0
REASON_PENDING = 10
REASON_DUPLICATE = 14


class TerraceError(Exception):
    """A call into libterrace failed: `status` is a terrace_status, the text says what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Options(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", c_size_t), ("socket_path", c_char_p), ("tenant", c_char_p),
        ("token", c_char_p), ("client_name", c_char_p), ("copy_threads", c_uint32),
        ("request_timeout_ms", c_uint32), ("staging_bytes", c_uint64),
        ("load_timeout_ms", c_uint32),
    ]


class _KeyspaceDesc(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", c_size_t), ("model", c_char_p), ("model_fingerprint", c_char_p),
        ("kv_dtype", c_char_p), ("layout", c_char_p), ("parallel", c_char_p), ("hash", c_char_p),
        ("group", c_char_p), ("extra", c_char_p), ("block_bytes", c_uint64),
        ("tokens_per_block", c_uint32), ("block_class", c_uint32),
    ]


class _Plane(ctypes.Structure):
    _fields_ = [("base", c_void_p), ("stride", c_uint64), ("bytes", c_uint64)]


class _DevicePages(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", c_size_t), ("planes", POINTER(_Plane)), ("n_planes", c_uint32),
        ("flags", c_uint32), ("n_blocks", c_uint64), ("stream", c_void_p),
    ]


class _SharedMemory(ctypes.Structure):
    _fields_ = [("fd", c_int), ("base", c_void_p), ("bytes", c_uint64)]


class _LookupPart(ctypes.Structure):
    _fields_ = [
        ("keyspace", c_void_p), ("keys", c_void_p), ("n_keys", c_uint32), ("mode", c_uint32),
        ("refs", c_void_p), ("reasons", c_void_p), ("n_prefix", c_uint32), ("n_here", c_uint32),
        ("lease", c_uint64), ("n_pending", c_uint32), ("recompute_ns_per_token", c_uint32),
    ]


class _Retention(ctypes.Structure):
    _fields_ = [
        ("reuse_after_ms", c_uint32), ("pin_ms", c_uint32), ("done", c_uint8), ("priority", c_uint8),
    ]


class _ClientStats(ctypes.Structure):
    _fields_ = [("struct_bytes", c_size_t)] + [
        (name, c_uint64) for name in (
            "connects", "lookups", "lookup_blocks", "hit_blocks", "load_blocks", "load_bytes",
            "load_failed_blocks", "store_blocks", "store_bytes", "store_duplicate_blocks",
            "store_failed_blocks")
    ] + [("reasons", c_uint64 * 32)]


_SIGNATURES = {
    "terrace_version": (c_char_p, []),
    "terrace_status_name": (c_char_p, [c_int]),
    "terrace_reason_name": (c_char_p, [c_int]),
    "terrace_error_text": (c_char_p, []),
    "terrace_connect": (c_int, [POINTER(_Options), POINTER(c_void_p)]),
    "terrace_wait_ready": (c_int, [c_void_p, c_uint32]),
    "terrace_is_ready": (c_int, [c_void_p]),
    "terrace_close": (None, [c_void_p]),
    "terrace_keyspace_open": (c_int, [c_void_p, POINTER(_KeyspaceDesc), POINTER(c_void_p)]),
    "terrace_keyspace_digest": (c_int, [c_void_p, c_uint8 * 32]),
    "terrace_keyspace_free": (None, [c_void_p]),
    "terrace_pages_register": (c_int, [c_void_p, POINTER(_Plane), c_uint32, c_uint64,
                                       POINTER(c_void_p)]),
    "terrace_pages_free": (None, [c_void_p]),
    "terrace_lookup": (c_int, [c_void_p, POINTER(_LookupPart), c_uint32, c_uint32, c_uint32]),
    "terrace_release": (c_int, [c_void_p, c_uint64]),
    "terrace_load": (c_int, [c_void_p, c_void_p, c_char_p, c_char_p, c_uint32, c_void_p, c_void_p,
                             POINTER(c_void_p)]),
    "terrace_store": (c_int, [c_void_p, c_void_p, c_char_p, c_char_p, c_uint32, c_uint32,
                              POINTER(_Retention), c_void_p, c_void_p, POINTER(c_void_p)]),
    "terrace_hint": (c_int, [c_void_p, c_void_p, c_char_p, c_uint32, POINTER(_Retention)]),
    "terrace_op_done": (c_int, [c_void_p]),
    "terrace_op_sources_read": (c_int, [c_void_p]),
    "terrace_op_wait": (c_int, [c_void_p, c_uint32]),
    "terrace_op_wait_sources": (c_int, [c_void_p, c_uint32]),
    "terrace_op_reasons": (POINTER(c_uint8), [c_void_p, POINTER(c_uint32)]),
    "terrace_op_free": (None, [c_void_p]),
    "terrace_get_stats": (c_int, [c_void_p, POINTER(_ClientStats)]),
}

# Since API 3. A library without them serves engines in host memory, whose pages it copies itself.
_SIGNATURES_3 = {
    "terrace_device_pages_register": (c_int, [c_void_p, POINTER(_DevicePages), POINTER(c_void_p)]),
    "terrace_shared_pages_register": (c_int, [c_void_p, POINTER(_SharedMemory), c_uint32,
                                              POINTER(_Plane), c_uint32, c_uint64,
                                              POINTER(c_void_p)]),
    "terrace_pages_copier": (c_int, [c_void_p, POINTER(c_char_p)]),
    "terrace_op_planes_done": (c_uint32, [c_void_p]),
    "terrace_op_wait_planes": (c_int, [c_void_p, c_uint32, c_uint32]),
}


def library_candidates(explicit: Optional[str] = None) -> List[str]:
    """Where libterrace.so is looked for, in order. An explicit path is the only candidate."""
    if explicit:
        return [explicit]
    if os.environ.get("TERRACE_LIBRARY"):
        return [os.environ["TERRACE_LIBRARY"]]
    here = os.path.dirname(os.path.abspath(__file__))
    found = [os.path.join(here, "libterrace.so")]
    # A source checkout: plugins/vllm/terrace_vllm -> build/<preset>/lib, the newest build first.
    checkout = os.path.normpath(os.path.join(here, "..", "..", ".."))
    builds = glob.glob(os.path.join(checkout, "build", "*", "lib", "libterrace.so*"))
    # A sanitizer's library only loads into a program that was linked with its runtime.
    builds = [path for path in builds
              if not any(word in path for word in ("asan", "tsan", "ubsan", "san/"))]
    found += sorted(builds, key=os.path.getmtime, reverse=True)
    return [path for path in found if os.path.exists(path)] + ["libterrace.so.2", "libterrace.so"]


class Library:
    """libterrace, loaded. One per process is enough; loading twice is harmless.

    Failure: OSError naming every place that was tried and what to do about it.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        tried = []
        for candidate in library_candidates(path):
            try:
                self._dll = ctypes.CDLL(candidate)
                self.path = candidate
                break
            except OSError as error:
                tried.append(f"{candidate}: {error}")
        else:
            raise OSError("libterrace.so cannot be loaded; install Terrace, or set "
                          "kv_connector_extra_config.library or $TERRACE_LIBRARY to its path. "
                          "Tried: " + "; ".join(tried))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._dll, name, None)
            if function is None:
                raise OSError(f"{candidate} lacks {name}: it is older than this plugin; update Terrace")
            function.restype, function.argtypes = result, arguments
            setattr(self, name[len("terrace_"):], function)
        self.has_regions = all(hasattr(self._dll, name) for name in _SIGNATURES_3)
        for name, (result, arguments) in _SIGNATURES_3.items() if self.has_regions else ():
            function = getattr(self._dll, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name[len("terrace_"):], function)

    def need_regions(self, what: str) -> None:
        if not self.has_regions:
            raise TerraceError(FAILED_PRECONDITION, f"{what} needs libterrace API 3 or later; "
                                                    f"{self.path} is older: update Terrace")

    def check(self, status: int) -> None:
        if status != OK:
            raise TerraceError(status, f"{self.status_name(status).decode()}: "
                                       f"{self.error_text().decode(errors='replace')}")

    def reason_text(self, reason: int) -> str:
        return self.reason_name(reason).decode()


class Retention(NamedTuple):
    """terrace_retention: what is known of the future of blocks; all zero says nothing."""

    reuse_after_ms: int = 0
    pin_ms: int = 0
    done: bool = False
    priority: int = 0


class Answer(NamedTuple):
    """One part's answer to a lookup."""

    n_prefix: int  # length of the leading run that is here or pending
    n_here: int  # here or pending
    lease: int  # 0: nothing is held
    refs: bytes  # n_keys * REF_BYTES, zero where nothing is here
    reasons: bytes  # n_keys terrace_reason values
    n_pending: int = 0  # of n_here: on their way from a lower tier; a load waits for them


class KeySpace:
    """An open key space. Owner: the caller; close() before or after its client's close()."""

    def __init__(self, library: Library, handle: c_void_p, block_bytes: int) -> None:
        self._library, self.handle, self.block_bytes = library, handle, block_bytes

    def digest(self) -> bytes:
        out = (c_uint8 * 32)()
        self._library.check(self._library.keyspace_digest(self.handle, out))
        return bytes(out)

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            self._library.keyspace_free(handle)


class Pages:
    """Registered engine memory. close() waits for the copies that use it."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self._library, self.handle = library, handle

    def copier(self) -> Tuple[int, str]:
        """Who copies these pages at the moment (COPIER_*), and why not the daemon."""
        text = c_char_p()
        copier = self._library.pages_copier(self.handle, ctypes.byref(text))
        return copier, (text.value or b"").decode(errors="replace")

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            self._library.pages_free(handle)


class Operation:
    """A load or store under way. Must be close()d; that waits until its memory is not touched."""

    def __init__(self, library: Library, handle: c_void_p, n_blocks: int, keep: tuple) -> None:
        self._library, self._handle, self.n_blocks = library, handle, n_blocks
        self._keep = keep  # the arguments' memory, for as long as the library might look at it

    # A closed operation is done and has read its sources: close() waited for that.

    def done(self) -> bool:
        return self._handle is None or self._library.op_done(self._handle) == 1

    def sources_read(self) -> bool:
        return self._handle is None or self._library.op_sources_read(self._handle) == 1

    def wait(self, timeout_us: int) -> bool:
        """True when the operation is in its final state."""
        return self._handle is None or (
            self._library.op_wait(self._handle, timeout_us) != DEADLINE_EXCEEDED)

    def wait_sources(self, timeout_us: int) -> bool:
        return self._handle is None or (
            self._library.op_wait_sources(self._handle, timeout_us) == OK)

    def planes_done(self) -> int:
        """Of a load: leading planes of all blocks that are there and checked."""
        return self._library.op_planes_done(self._handle)

    def wait_planes(self, n_planes: int, timeout_us: int) -> int:
        """OK: they are there. DATA_LOSS: the load is done without. DEADLINE_EXCEEDED: not yet."""
        return self._library.op_wait_planes(self._handle, n_planes, timeout_us)

    def reasons(self) -> bytes:
        """One terrace_reason per block. REQUIRES: done()."""
        count = c_uint32()
        pointer = self._library.op_reasons(self._handle, ctypes.byref(count))
        return ctypes.string_at(pointer, count.value) if count.value else b""

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            self._library.op_free(handle)


class Client:
    """A connection to terraced that heals itself. Threads: any. Does not survive os.fork()."""

    def __init__(self, library: Library, socket: Optional[str] = None, tenant: Optional[str] = None,
                 token: Optional[str] = None, name: Optional[str] = None, copy_threads: int = 0,
                 request_timeout_ms: int = 0, staging_bytes: int = 0,
                 load_timeout_ms: int = 0) -> None:
        self.library = library
        options = _Options(ctypes.sizeof(_Options), _text(socket), _text(tenant), _text(token),
                           _text(name), copy_threads, request_timeout_ms, staging_bytes,
                           load_timeout_ms)
        handle = c_void_p()
        status = library.connect(ctypes.byref(options), ctypes.byref(handle))
        if status not in (OK, UNAVAILABLE) or not handle:
            library.check(status)
            raise TerraceError(status, "terrace_connect gave no client")
        self._open_handle: Optional[c_void_p] = handle

    @property
    def _handle(self) -> c_void_p:
        if self._open_handle is None:
            raise TerraceError(UNAVAILABLE, "this client was closed")
        return self._open_handle

    def wait_ready(self, timeout_ms: int) -> None:
        self.library.check(self.library.wait_ready(self._handle, timeout_ms))

    def is_ready(self) -> bool:
        return self._open_handle is not None and self.library.is_ready(self._open_handle) == 1

    def open_key_space(self, model: str, model_fingerprint: str, kv_dtype: str, layout: str,
                       parallel: str, hash: str, group: str, extra: str, block_bytes: int,
                       tokens_per_block: int) -> KeySpace:
        desc = _KeyspaceDesc(
            ctypes.sizeof(_KeyspaceDesc), _text(model), _text(model_fingerprint), _text(kv_dtype),
            _text(layout), _text(parallel), _text(hash), _text(group), _text(extra), block_bytes,
            tokens_per_block)
        handle = c_void_p()
        status = self.library.keyspace_open(self._handle, ctypes.byref(desc), ctypes.byref(handle))
        if not handle:
            self.library.check(status)
            raise TerraceError(status, "terrace_keyspace_open gave no key space")
        return KeySpace(self.library, handle, block_bytes)

    def register_pages(self, planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> Pages:
        """planes: (address, stride, bytes) each; see terrace_plane."""
        array = (_Plane * len(planes))(*planes)
        handle = c_void_p()
        self.library.check(self.library.pages_register(
            self._handle, array, len(planes), n_blocks, ctypes.byref(handle)))
        return Pages(self.library, handle)

    def register_device_pages(self, planes: Sequence[Tuple[int, int, int]], n_blocks: int,
                              stream: int, flags: int = 0) -> Pages:
        """GPU memory; stream: the engine's CUstream, 0 the legacy default one. See terrace_device_pages."""
        self.library.need_regions("a KV cache in GPU memory")
        array = (_Plane * len(planes))(*planes)
        asked = _DevicePages(ctypes.sizeof(_DevicePages), array, len(planes), flags, n_blocks,
                             stream or None)
        handle = c_void_p()
        self.library.check(self.library.device_pages_register(
            self._handle, ctypes.byref(asked), ctypes.byref(handle)))
        return Pages(self.library, handle)

    def register_shared_pages(self, memory: Sequence[Tuple[int, int, int]],
                              planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> Pages:
        """Host memory in sealed files. memory: (descriptor, address of its mapping, bytes) each."""
        self.library.need_regions("memory that the daemon copies")
        files = (_SharedMemory * len(memory))(*memory)
        array = (_Plane * len(planes))(*planes)
        handle = c_void_p()
        self.library.check(self.library.shared_pages_register(
            self._handle, files, len(memory), array, len(planes), n_blocks, ctypes.byref(handle)))
        return Pages(self.library, handle)

    def lookup(self, parts: Sequence[Tuple[KeySpace, bytes, int]], timeout_us: int,
               may_wait: bool = False,
               recompute_ns_per_token: int = 0) -> Tuple[int, List[Answer]]:
        """parts: (key space, keys one after the other, MODE_*). Returns the status and the answers.

        may_wait: blocks of lower tiers count as here, pending.
        UNAVAILABLE and DEADLINE_EXCEEDED are values here (with empty answers); other failures raise.
        """
        array = (_LookupPart * len(parts))()
        buffers = []
        for part, (keyspace, keys, mode) in zip(array, parts):
            n = len(keys) // KEY_BYTES
            refs = ctypes.create_string_buffer(max(1, n * REF_BYTES))
            reasons = ctypes.create_string_buffer(max(1, n))
            buffers.append((refs, reasons, keys))
            part.keyspace, part.n_keys, part.mode = keyspace.handle, n, mode
            part.recompute_ns_per_token = recompute_ns_per_token
            part.keys = ctypes.cast(c_char_p(keys), c_void_p)
            part.refs, part.reasons = ctypes.addressof(refs), ctypes.addressof(reasons)
        status = self.library.lookup(self._handle, array, len(parts),
                                     LOOKUP_MAY_WAIT if may_wait else 0, timeout_us)
        if status not in (OK, UNAVAILABLE, DEADLINE_EXCEEDED):
            self.library.check(status)
        return status, [
            Answer(part.n_prefix, part.n_here, part.lease, refs.raw[:part.n_keys * REF_BYTES],
                   reasons.raw[:part.n_keys], part.n_pending)
            for part, (refs, reasons, _) in zip(array, buffers)
        ]

    def release(self, lease: int) -> None:
        if lease and self._open_handle is not None:  # closing released everything
            self.library.release(self._open_handle, lease)

    def load(self, keyspace: KeySpace, refs: bytes, keys: bytes, pages: Pages,
             block_ids: Sequence[int]) -> Operation:
        n = _count(keys, block_ids)
        if len(refs) != n * REF_BYTES:
            raise ValueError(f"{n} blocks need {n * REF_BYTES} bytes of refs, not {len(refs)}")
        ids = (c_uint64 * n)(*block_ids)
        handle = c_void_p()
        self.library.check(self.library.load(self._handle, keyspace.handle, refs, keys, n,
                                             pages.handle, ids, ctypes.byref(handle)))
        return Operation(self.library, handle, n, (refs, keys, ids))

    def store(self, keyspace: KeySpace, parent: Optional[bytes], keys: bytes, flags: int,
              pages: Pages, block_ids: Sequence[int],
              retention: Optional[Retention] = None) -> Operation:
        n = _count(keys, block_ids)
        if parent is not None and len(parent) != KEY_BYTES:
            raise ValueError(f"a parent key has {KEY_BYTES} bytes, not {len(parent)}")
        ids = (c_uint64 * n)(*block_ids)
        handle = c_void_p()
        self.library.check(self.library.store(self._handle, keyspace.handle, parent, keys, n, flags,
                                              _retention(retention), pages.handle, ids,
                                              ctypes.byref(handle)))
        return Operation(self.library, handle, n, (parent, keys, ids))

    def hint(self, keyspace: KeySpace, keys: bytes, retention: Retention) -> None:
        """Advice about blocks that are here; others are ignored. Does not wait."""
        self.library.check(self.library.hint(self._handle, keyspace.handle, keys,
                                             len(keys) // KEY_BYTES, _retention(retention)))

    def stats(self) -> dict:
        out = _ClientStats()
        out.struct_bytes = ctypes.sizeof(_ClientStats)
        self.library.check(self.library.get_stats(self._handle, ctypes.byref(out)))
        return {name: getattr(out, name) for name, kind in _ClientStats._fields_ if kind is c_uint64}

    def close(self) -> None:
        handle, self._open_handle = self._open_handle, None
        if handle:
            self.library.close(handle)


def _text(value: Optional[str]) -> Optional[bytes]:
    return None if value is None else value.encode("utf-8")


def _retention(value: Optional[Retention]) -> Any:
    return None if value is None else ctypes.byref(_Retention(*value))


def _count(keys: bytes, block_ids: Sequence[int]) -> int:
    n = len(block_ids)
    if n == 0 or len(keys) != n * KEY_BYTES:
        raise ValueError(f"{n} block ids need {n * KEY_BYTES} bytes of keys, not {len(keys)}")
    return n
