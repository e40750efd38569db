# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A stand-in for terrace_vllm.client in pure Python: blocks are files in a directory.

It lets the connector's logic be tested without a daemon (also in a real engine: install()), and faults be
injected at exact points. It keeps every promise of terrace.h that the connector relies on, and checks
what the connector owes: leases released, operations closed, pages not touched after their closing.
"""

import ctypes
import hashlib
import os
import threading
from typing import Any, Dict, List, Optional, Sequence, Tuple

from terrace_vllm import client as real

UNAVAILABLE_REASON = 13
COLD = 1
CORRUPT = 3
STALE = 12
DEADLINE = 20


class FakeLibrary:
    path = "fake"

    def __init__(self, path: Optional[str] = None) -> None:
        pass

    def reason_text(self, reason: int) -> str:
        return f"reason{reason}"


class FakeKeySpace:
    def __init__(self, digest: str, block_bytes: int, fields: dict) -> None:
        self.id, self.block_bytes, self.fields, self.closed = digest, block_bytes, fields, False

    def close(self) -> None:
        self.closed = True


class FakePages:
    def __init__(self, planes: Sequence[Tuple[int, int, int]], n_blocks: int, stream: Optional[int] = None,
                 flags: int = 0) -> None:
        self.planes, self.n_blocks, self.closed = [tuple(p) for p in planes], n_blocks, False
        self.stream, self.flags = stream, flags  # of GPU pages

    def copier(self) -> Tuple[int, str]:
        if self.stream is None:
            return real.COPIER_LIBRARY, "host memory"
        if self.flags & real.PAGES_NO_EXPORT:
            return real.COPIER_LIBRARY_STREAM, "export was refused"
        return real.COPIER_DAEMON, ""

    def pieces(self, block: int) -> List[Tuple[int, int]]:
        assert not self.closed and 0 < block < self.n_blocks, (self.closed, block, self.n_blocks)
        return [(base + block * stride, size) for base, stride, size in self.planes]

    def read(self, block: int) -> bytes:
        return b"".join(ctypes.string_at(address, size) for address, size in self.pieces(block))

    def write(self, block: int, data: bytes) -> None:
        assert len(data) == sum(size for _, size in self.pieces(block))
        for address, size in self.pieces(block):
            ctypes.memmove(address, data[:size], size)
            data = data[size:]

    def close(self) -> None:
        self.closed = True


class FakeOperation:
    """Runs when it is made, or (held) when release_held() says so."""

    def __init__(self, client: "FakeClient", n: int, work: Any) -> None:
        self._client, self.n_blocks, self._work = client, n, work
        self._reasons: Optional[bytes] = None
        self.closed = False
        client.operations.append(self)
        if not client.hold:
            self.run()

    def run(self) -> None:
        if self._reasons is None:
            self._reasons = self._work()

    def done(self) -> bool:
        return self._reasons is not None

    def sources_read(self) -> bool:
        return self.done()

    def wait(self, timeout_us: int) -> bool:
        return self.done()

    def wait_sources(self, timeout_us: int) -> bool:
        if not self.done() and self._client.run_held_in_wait:
            self.run()
        return self.done()

    def reasons(self) -> bytes:
        assert self._reasons is not None
        return self._reasons

    def close(self) -> None:
        self.run()
        self.closed = True


class FakeClient:
    directory = ""  # class-wide: what terraced would hold
    instances: List["FakeClient"] = []

    def __init__(self, library: Any, name: Optional[str] = None, **options: Any) -> None:
        self.library, self.name, self.options = library, name, options
        self.ready = True
        self.hold = False
        self.run_held_in_wait = True
        self.lookup_status = real.OK
        self.too_old = False  # libterrace knows nothing of GPUs
        self.fail_loads = False
        self.refuse_loads = False
        self.on_lower_tier = False  # what is there is pending
        self.lose_pending = False  # and does not arrive
        self.hints: List[Tuple[str, bytes, real.Retention]] = []
        self.retentions: Dict[bytes, real.Retention] = {}  # of stored blocks, by key
        self.recompute_ns_per_token = 0  # as the last lookup said
        self.leases: Dict[int, int] = {}
        self.lookups = 0
        self.operations: List[FakeOperation] = []
        self.closed = False
        self._next_lease = 1
        self._lock = threading.Lock()
        FakeClient.instances.append(self)

    def wait_ready(self, timeout_ms: int) -> None:
        if not self.ready:
            raise real.TerraceError(real.UNAVAILABLE, "not here")

    def is_ready(self) -> bool:
        return self.ready and not self.closed

    def open_key_space(self, **fields: Any) -> FakeKeySpace:
        text = "\0".join(f"{name}={fields[name]}" for name in sorted(fields))
        for name, value in fields.items():
            assert not isinstance(value, str) or len(value.encode()) <= 1024, name
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        os.makedirs(os.path.join(self.directory, digest), exist_ok=True)
        return FakeKeySpace(digest, fields["block_bytes"], fields)

    def register_pages(self, planes: Sequence[Tuple[int, int, int]], n_blocks: int) -> FakePages:
        return FakePages(planes, n_blocks)

    def register_device_pages(self, planes: Sequence[Tuple[int, int, int]], n_blocks: int, stream: int,
                              flags: int = 0) -> FakePages:
        """The fake's GPU memory is host memory at the same addresses."""
        if self.too_old:
            raise real.TerraceError(real.FAILED_PRECONDITION, "libterrace is older: update Terrace")
        return FakePages(planes, n_blocks, stream, flags)

    def _path(self, key_space: FakeKeySpace, key: bytes) -> str:
        assert len(key) == 32
        return os.path.join(self.directory, key_space.id, key.hex())

    @staticmethod
    def ref(key_space: FakeKeySpace, key: bytes) -> bytes:
        return hashlib.sha512(key_space.id.encode() + key).digest()[:real.REF_BYTES]

    def lookup(self, parts: Sequence[Tuple[FakeKeySpace, bytes, int]], timeout_us: int,
               may_wait: bool = False,
               recompute_ns_per_token: int = 0) -> Tuple[int, List[real.Answer]]:
        self.lookups += 1
        self.recompute_ns_per_token = recompute_ns_per_token
        answers = []
        for key_space, keys, mode in parts:
            names = [keys[i:i + 32] for i in range(0, len(keys), 32)]
            if self.lookup_status != real.OK:
                answers.append(real.Answer(0, 0, 0, bytes(48 * len(names)),
                                           bytes([UNAVAILABLE_REASON] * len(names))))
                continue
            here = [os.path.exists(self._path(key_space, name)) for name in names]
            if self.on_lower_tier and not may_wait:
                here = [False] * len(here)
            prefix = here.index(False) if False in here else len(here)
            if mode == real.MODE_PREFIX:
                here = [i < prefix for i in range(len(here))]
            found = real.REASON_PENDING if self.on_lower_tier else real.REASON_NONE
            lease = 0
            if any(here):
                with self._lock:
                    lease, self._next_lease = self._next_lease, self._next_lease + 1
                    self.leases[lease] = sum(here)
            answers.append(real.Answer(
                prefix, sum(here), lease,
                b"".join(self.ref(key_space, name) if h else bytes(48)
                         for name, h in zip(names, here)),
                bytes(found if h else COLD for h in here),
                sum(here) if self.on_lower_tier else 0))
        return self.lookup_status, answers

    def release(self, lease: int) -> None:
        if lease:
            del self.leases[lease]  # a KeyError is a double release: a bug of the connector

    def load(self, key_space: FakeKeySpace, refs: bytes, keys: bytes, pages: FakePages,
             block_ids: Sequence[int]) -> FakeOperation:
        if self.refuse_loads:
            raise real.TerraceError(real.UNAVAILABLE, "refused")
        assert len(refs) == 48 * len(block_ids) and len(keys) == 32 * len(block_ids)
        fail, lose = self.fail_loads, self.on_lower_tier and self.lose_pending

        def work() -> bytes:
            reasons = bytearray()
            for i, block in enumerate(block_ids):
                key = keys[32 * i:32 * i + 32]
                try:
                    with open(self._path(key_space, key), "rb") as file:
                        data = file.read()
                except FileNotFoundError:
                    data = None
                if data is None or refs[48 * i:48 * i + 48] != self.ref(key_space, key):
                    reasons.append(STALE)
                elif lose:
                    reasons.append(DEADLINE)
                elif fail:
                    pages.write(block, bytes(len(data)))  # a failed block holds undefined bytes
                    reasons.append(CORRUPT)
                else:
                    pages.write(block, data)
                    reasons.append(0)
            return bytes(reasons)

        return FakeOperation(self, len(block_ids), work)

    def store(self, key_space: FakeKeySpace, parent: Optional[bytes], keys: bytes, flags: int,
              pages: FakePages, block_ids: Sequence[int],
              retention: Optional[real.Retention] = None) -> FakeOperation:
        if retention is not None:
            self.retentions.update(
                (keys[i:i + 32], retention) for i in range(0, len(keys), 32))
        assert parent is None or len(parent) == 32

        def work() -> bytes:
            reasons = bytearray()
            for i, block in enumerate(block_ids):
                path = self._path(key_space, keys[32 * i:32 * i + 32])
                if os.path.exists(path):
                    reasons.append(real.REASON_DUPLICATE)
                    continue
                temporary = f"{path}.{os.getpid()}"
                with open(temporary, "wb") as file:
                    file.write(pages.read(block))
                os.replace(temporary, path)
                reasons.append(0)
            return bytes(reasons)

        return FakeOperation(self, len(block_ids), work)

    def hint(self, key_space: FakeKeySpace, keys: bytes, retention: real.Retention) -> None:
        assert keys and len(keys) % 32 == 0
        self.hints.append((key_space.id, keys, retention))

    def close(self) -> None:
        self.closed = True
        self.leases = {}


def install(_: Any, directory: str) -> None:
    """Puts the fake in the real client's place in this process."""
    FakeClient.directory = directory
    real.Library = FakeLibrary
    real.Client = FakeClient
