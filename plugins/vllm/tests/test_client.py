# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The ctypes layer against the real library and a real terraced."""

import ctypes
import hashlib
import multiprocessing
import os
import time

import pytest
from terrace_vllm import client as api
from terrace_vllm.client import Client, Library, TerraceError, library_candidates
from terrace_vllm.testing.daemon import Daemon, find_binary

BLOCK = 8192


def built():
    return os.path.exists(find_binary("terraced")) and os.path.exists(library_candidates()[0])


pytestmark = pytest.mark.skipif(not built(), reason="terraced and libterrace are not built: "
                                "scripts/build.sh release terraced terrace")


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.fixture(scope="module")
def daemon():
    with Daemon(budget="256MiB") as daemon:
        yield daemon


@pytest.fixture
def client(library, daemon):
    client = Client(library, socket=daemon.socket, name="test")
    client.wait_ready(5000)
    yield client
    client.close()


def keys_of(text, n):
    return b"".join(hashlib.sha256(f"{text}{i}".encode()).digest() for i in range(n))


def key_space(client, **fields):
    base = dict(model="m", model_fingerprint="f", kv_dtype="u8", layout="l", parallel="tp=1/0",
                hash="h", group="0:full", extra="", block_bytes=BLOCK, tokens_per_block=16)
    return client.open_key_space(**{**base, **fields})


class Memory:
    """n blocks over two planes, as two layers' caches."""

    def __init__(self, client, n):
        self.buffers = [ctypes.create_string_buffer(n * 3 * BLOCK // 4) for _ in range(2)]
        planes = [(ctypes.addressof(self.buffers[0]), 3 * BLOCK // 4, BLOCK // 4),
                  (ctypes.addressof(self.buffers[1]), 3 * BLOCK // 4, 3 * BLOCK // 4)]
        self.planes = planes
        self.pages = client.register_pages(planes, n)

    def fill(self, block, data):
        for (address, stride, size) in self.planes:
            ctypes.memmove(address + block * stride, data[:size], size)
            data = data[size:]

    def read(self, block):
        return b"".join(ctypes.string_at(a + block * stride, size) for a, stride, size in self.planes)


def payload(text, i):
    return hashlib.shake_256(f"{text}/{i}".encode()).digest(BLOCK)


def store(client, space, text, n, memory, first=0):
    for i in range(n):
        memory.fill(first + i, payload(text, i))
    operation = client.store(space, None, keys_of(text, n), api.STORE_CHAIN, memory.pages,
                             list(range(first, first + n)))
    assert operation.wait(5_000_000)
    assert operation.sources_read()
    reasons = operation.reasons()
    operation.close()
    return reasons


def test_store_lookup_load(client, library, daemon):
    space = key_space(client)
    memory = Memory(client, 16)
    assert store(client, space, "a", 5, memory) == bytes(5)
    assert store(client, space, "a", 5, memory) == bytes([api.REASON_DUPLICATE] * 5)

    other = Client(library, socket=daemon.socket)
    other.wait_ready(5000)
    target = Memory(other, 16)
    theirs = key_space(other)
    keys = keys_of("a", 7)
    status, [answer] = other.lookup([(theirs, keys, api.MODE_PREFIX)], 5_000_000)
    assert (status, answer.n_prefix, answer.n_here) == (api.OK, 5, 5) and answer.lease
    assert answer.reasons[:5] == bytes(5) and all(answer.reasons[5:])
    assert library.reason_text(answer.reasons[5]) in ("cold", "after_miss")
    operation = other.load(theirs, answer.refs[:5 * 48], keys[:5 * 32], target.pages, [9, 3, 7, 1, 12])
    assert operation.wait(5_000_000) and operation.done()
    assert operation.reasons() == bytes(5)
    operation.close()
    for i, block in enumerate([9, 3, 7, 1, 12]):
        assert target.read(block) == payload("a", i)
    assert other.stats()["load_blocks"] == 5
    other.release(answer.lease)
    for thing in (target.pages, theirs, other):
        thing.close()


def test_sparse_lookup(client):
    space = key_space(client, group="sparse")
    memory = Memory(client, 8)
    store(client, space, "s", 4, memory)
    keys = keys_of("s", 4)[:32] + keys_of("none", 1) + keys_of("s", 4)[64:96]
    _, [prefix, everything] = client.lookup(
        [(space, keys, api.MODE_PREFIX), (space, keys, api.MODE_ALL)], 5_000_000)
    assert (prefix.n_prefix, prefix.n_here) == (1, 1)
    assert (everything.n_prefix, everything.n_here) == (1, 2)
    assert [r == 0 for r in everything.reasons] == [True, False, True]
    assert everything.refs[48:96] == bytes(48)
    client.release(prefix.lease), client.release(everything.lease)


@pytest.mark.parametrize("field, value", [
    ("model", "n"), ("model_fingerprint", "g"), ("kv_dtype", "i8"), ("layout", "k"), ("hash", "i"),
    ("parallel", "tp=2/0"), ("group", "1"), ("extra", "x"), ("block_bytes", 2 * BLOCK),
])
def test_each_field_separates(client, field, value):
    text = f"sep{field}"
    memory = Memory(client, 4)
    store(client, key_space(client), text, 2, memory)
    other = key_space(client, **{field: value})
    assert other.digest() != key_space(client).digest()
    _, [answer] = client.lookup([(other, keys_of(text, 2), api.MODE_PREFIX)], 5_000_000)
    assert answer.n_here == 0 and answer.lease == 0


def test_wrong_arguments_are_errors_with_a_text(client, library):
    space = key_space(client)
    memory = Memory(client, 4)
    with pytest.raises(ValueError):
        client.load(space, b"", b"", memory.pages, [])
    with pytest.raises(ValueError):
        client.store(space, b"short", keys_of("x", 1), 0, memory.pages, [0])
    with pytest.raises(TerraceError) as error:
        client.store(space, None, keys_of("x", 1), 0, memory.pages, [99])
    assert error.value.status == api.INVALID_ARGUMENT and len(str(error.value)) > 20
    with pytest.raises(TerraceError):
        client.register_pages([(0, 10, 20)], 4)
    with pytest.raises(OSError, match="TERRACE_LIBRARY"):
        Library("/no/such/libterrace.so")


def test_closed_client_answers_unavailable(library, daemon):
    client = Client(library, socket=daemon.socket)
    client.close()
    client.close()
    assert not client.is_ready()
    client.release(7)
    with pytest.raises(TerraceError) as error:
        key_space(client)
    assert error.value.status == api.UNAVAILABLE


def test_absent_daemon_is_a_value_and_heals(library):
    daemon = Daemon(budget="128MiB")
    try:
        client = Client(library, socket=daemon.socket)
        assert not client.is_ready()
        with pytest.raises(TerraceError) as error:
            client.wait_ready(10)
        assert error.value.status == api.UNAVAILABLE
        space = key_space(client)
        status, [answer] = client.lookup([(space, keys_of("a", 3), api.MODE_PREFIX)], 50_000)
        assert status in (api.UNAVAILABLE, api.DEADLINE_EXCEEDED)
        assert (answer.n_here, answer.lease) == (0, 0) and all(answer.reasons)
        daemon.start()
        client.wait_ready(10_000)
        memory = Memory(client, 4)
        assert store(client, space, "a", 3, memory) == bytes(3)
        memory.pages.close()
        client.close()
    finally:
        daemon.close()


def child_uses(client, space, queue):
    try:
        client.lookup([(space, keys_of("a", 1), api.MODE_PREFIX)], 100_000)
        queue.put("answered")
    except TerraceError as error:
        queue.put(error.status)


def test_forked_child_is_refused(client):
    space = key_space(client)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=child_uses, args=(client, space, queue))
    child.start()
    assert queue.get(timeout=20) == 9  # FAILED_PRECONDITION
    child.join(20)
    assert client.lookup([(space, keys_of("a", 1), api.MODE_PREFIX)], 5_000_000)[0] == api.OK


def test_killed_daemon_ends_operations(library):
    with Daemon(budget="128MiB") as daemon:
        client = Client(library, socket=daemon.socket)
        client.wait_ready(5000)
        space, memory = key_space(client), Memory(client, 64)
        daemon.pause()
        operation = client.store(space, None, keys_of("k", 64), api.STORE_CHAIN, memory.pages,
                                 list(range(64)))
        daemon.kill()
        begun = time.monotonic()
        assert operation.wait(15_000_000)
        assert operation.sources_read() and time.monotonic() - begun < 12
        assert all(operation.reasons())
        operation.close()
        memory.pages.close()
        client.close()


def test_hints_and_questions_that_may_wait(client):
    space, memory = key_space(client), Memory(client, 2)
    keys = keys_of("h", 2)
    operation = client.store(space, None, keys, api.STORE_CHAIN, memory.pages, [0, 1],
                             api.Retention(reuse_after_ms=1000, pin_ms=5000, priority=7))
    assert operation.wait(5_000_000) and operation.reasons() == bytes(2)
    operation.close()
    client.hint(space, keys, api.Retention(done=True))
    status, [answer] = client.lookup([(space, keys, api.MODE_PREFIX)], 5_000_000, may_wait=True,
                                     recompute_ns_per_token=2**32 - 1)
    assert status == api.OK
    assert (answer.n_prefix, answer.n_here, answer.n_pending) == (2, 2, 0)
    client.release(answer.lease)
    with pytest.raises(api.TerraceError, match="priority"):
        client.hint(space, keys, api.Retention(priority=8))
