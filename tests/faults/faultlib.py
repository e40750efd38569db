# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A checking client over libterrace, and what the fault tests' own processes run.

Payloads derive from the key, so any served byte is checked without a stored copy: a byte that differs
ends the process with WRONG_BYTES, which no test forgives.
"""

import ctypes
import hashlib
import mmap
import os
import random
import time

from terrace_vllm import client as tc

BLOCK = 64 << 10
WRONG_BYTES = 77
REASONS = {name: i for i, name in enumerate(
    ["none", "cold", "evicted", "corrupt", "flushed", "key_space_empty", "model_differs",
     "layout_differs", "hash_differs", "after_miss", "pending", "lease_limit", "stale", "unavailable",
     "duplicate", "budget", "bad_checksum", "overload", "cancelled"])}


def key_of(number):
    return hashlib.sha256(b"key %d" % number).digest()


def payload_of(key):
    return hashlib.shake_128(key).digest(BLOCK)


def eventually(condition, seconds=20.0, what="it"):
    """Polls until the condition's value is true and returns it; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)  # poll


def threads_of(pid):
    """state, user and system ticks of every thread."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        found.append((fields[0], int(fields[11]), int(fields[12])))
    return found


def stopped(pid):
    """SIGSTOP takes effect a moment after kill() returns."""
    return all(state == "T" for state, _, _ in threads_of(pid))


def cpu_seconds(pid):
    return sum(user + system for _, user, system in threads_of(pid)) / os.sysconf("SC_CLK_TCK")


class WrongBytes(Exception):
    """The one thing that may never happen."""


class Checked:
    """A client with memory for `n` blocks that checks every byte it is given."""

    def __init__(self, socket, n=16, tenant=None, timeout_ms=5000, name="faults"):
        self.library = tc.Library()
        self.client = tc.Client(self.library, socket=socket, tenant=tenant, name=name,
                                request_timeout_ms=timeout_ms)
        self.space = self.client.open_key_space("m", "f", "bf16", "l", "p", "h", "g", "", BLOCK, 16)
        self.n = n
        self.memory = mmap.mmap(-1, n * BLOCK)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.pages = self.client.register_pages([(self._address, BLOCK, BLOCK)], n)

    def wait_ready(self, seconds=10):
        self.client.wait_ready(int(seconds * 1000))

    def store(self, numbers, seconds=20.0):
        """The reasons, one a block."""
        keys = [key_of(number) for number in numbers]
        for i, key in enumerate(keys):
            self.memory[i * BLOCK:(i + 1) * BLOCK] = payload_of(key)
        op = self.client.store(self.space, None, b"".join(keys), tc.STORE_INDEPENDENT, self.pages,
                               range(len(keys)))
        try:
            assert op.wait(int(seconds * 1e6)), "a store has no end"
            return list(op.reasons())
        finally:
            op.close()

    def lookup(self, numbers, timeout_us=0):
        keys = b"".join(key_of(number) for number in numbers)
        status, (answer,) = self.client.lookup([(self.space, keys, tc.MODE_ALL)], timeout_us)
        return status, answer

    def load(self, numbers, refs, seconds=20.0):
        """The reasons, one a block; checks the bytes of those that were served."""
        keys = [key_of(number) for number in numbers]
        op = self.client.load(self.space, refs, b"".join(keys), self.pages, range(len(keys)))
        try:
            assert op.wait(int(seconds * 1e6)), "a load has no end"
            reasons = list(op.reasons())
        finally:
            op.close()
        for i, (key, reason) in enumerate(zip(keys, reasons)):
            if reason == tc.REASON_NONE and self.memory[i * BLOCK:(i + 1) * BLOCK] != payload_of(key):
                raise WrongBytes(f"block {numbers[i]}")
        return reasons

    def get(self, numbers):
        """Lookup, load and release: how many were served."""
        _, answer = self.lookup(numbers)
        served = 0
        for at, number in enumerate(numbers):
            ref = answer.refs[at * tc.REF_BYTES:(at + 1) * tc.REF_BYTES]
            if answer.reasons[at] == tc.REASON_NONE:
                served += self.load([number], ref) == [tc.REASON_NONE]
        self.client.release(answer.lease)
        return served

    def close(self):
        self.pages.close()
        self.space.close()
        self.client.close()


def _run(body):
    try:
        body()
    except WrongBytes:
        os._exit(WRONG_BYTES)


def loop(socket, seed, progress):
    """Looks up, loads and stores for ever; adds to progress (a shared array) what it did.

    progress: operations, blocks served, connections made.
    """
    def body():
        rng = random.Random(seed)
        checked = Checked(socket, name=f"loop-{seed}")
        while True:
            numbers = rng.sample(range(400), 8)
            try:
                if rng.random() < 0.5:
                    checked.store(numbers)
                else:
                    progress[1] += checked.get(numbers)
            except tc.TerraceError:
                pass  # no daemon at the moment: that is what the tests bring about
            progress[0] += 1
            progress[2] = checked.client.stats()["connects"]

    _run(body)


def sleeper(socket, numbers, pipe):
    """Leases and reads, says so, reads again with the same refs when told, and says what it saw."""
    def body():
        checked = Checked(socket, n=len(numbers), name="sleeper")
        checked.wait_ready()
        _, answer = checked.lookup(numbers)
        first = checked.load(numbers, answer.refs)
        pipe.send((answer.n_here, first))
        pipe.recv()
        while True:
            try:
                pipe.send(checked.load(numbers, answer.refs))
                break
            except tc.TerraceError:  # another daemon by now: the same old refs, over the new connection
                checked.wait_ready()
        pipe.recv()

    _run(body)
