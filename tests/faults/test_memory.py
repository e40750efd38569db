# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Bits that flip in the memory of a live daemon, and a budget that holds by the kernel's own figure."""

import random
import struct

from faultlib import BLOCK, REASONS, Checked, eventually, key_of

MAGIC = struct.pack("<I", 0x4B425254)  # of a block's header
GENERATION_AT, KEY_AT, CHECKSUM_AT = 8, 64, 96  # docs/block_format.md


def writable_mappings(pid, name):
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            if f"memfd:{name}" in line and " rw-s " in line:
                start, _, end = line.split()[0].partition("-")
                yield int(start, 16), int(end, 16)


def headers_by_key(pid, keys):
    """Where in the daemon's memory the header of each key stands."""
    wanted, found = set(keys), {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in writable_mappings(pid, "terrace-headers"):
            memory.seek(start)
            data = memory.read(end - start)
            at = data.find(MAGIC)
            while at >= 0:
                key = data[at + KEY_AT:at + KEY_AT + 32]
                live = struct.unpack_from("<Q", data, at + GENERATION_AT)[0] != 0
                if at % 64 == 0 and live and key in wanted:
                    found[key] = start + at
                at = data.find(MAGIC, at + 1)
    return found


def flip(pid, address, bit):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        byte = memory.read(1)[0]
        memory.seek(address)
        memory.write(bytes([byte ^ (1 << bit)]))


def integrity_failures(daemon):
    return sum(value for name, value in daemon.metrics().items()
               if name.startswith("terrace_integrity_failures_total"))


def test_flipped_header_bits_are_found_by_readers_and_counted(make_daemon):
    """Each field of the header in turn; the reader alone (libterrace, no scrubber) must bring it to light."""
    daemon = make_daemon()
    client = Checked(daemon.socket)
    client.wait_ready()
    rng = random.Random(3)
    numbers = list(range(128))
    for at in range(0, len(numbers), client.n):
        assert set(client.store(numbers[at:at + client.n])) == {REASONS["none"]}
    headers = headers_by_key(daemon.pid, [key_of(number) for number in numbers])
    assert len(headers) == len(numbers)
    for offset, number in enumerate(numbers):  # one flip in each of the 128 bytes of the fixed header
        flip(daemon.pid, headers[key_of(number)] + offset, rng.randrange(8))
        assert client.get([number]) == 0, f"byte {offset}"

        def gone(number=number):
            client.get([number])  # a reader who was told "stale" asks again
            _, answer = client.lookup([number])
            client.client.release(answer.lease)
            return answer.n_here == 0

        eventually(gone, 20, f"a miss after the flip in byte {offset}")
        assert integrity_failures(daemon) == offset + 1, f"byte {offset}"
    # All of them can be stored again.
    assert client.store([5]) == [REASONS["none"]] and client.get([5]) == 1
    client.close()


def test_flipped_payload_bits_are_never_served(make_daemon):
    daemon = make_daemon()
    client = Checked(daemon.socket)
    client.wait_ready()
    rng = random.Random(4)
    numbers = list(range(256))
    for at in range(0, len(numbers), client.n):
        client.store(numbers[at:at + client.n])
    segments = list(writable_mappings(daemon.pid, "terrace-payload"))
    with open(f"/proc/{daemon.pid}/mem", "r+b", buffering=0) as memory:
        hit = 0
        for start, end in segments:
            for address in range(start, end, BLOCK):  # one bit in every frame there is, used or not
                memory.seek(address + rng.randrange(BLOCK))
                byte = memory.read(1)[0]
                memory.seek(-1, 1)
                memory.write(bytes([byte ^ (1 << rng.randrange(8))]))
                hit += 1
    assert hit >= len(numbers)
    assert sum(client.get([number]) for number in numbers) == 0
    eventually(lambda: integrity_failures(daemon) == len(numbers), what="the count of every block")
    for at in range(0, len(numbers), client.n):
        assert set(client.store(numbers[at:at + client.n])) == {REASONS["none"]}
    assert sum(client.get([number]) for number in numbers) == len(numbers)
    client.close()


def resident_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Rss:"))


def test_budget_holds_under_a_flood_of_stores(make_daemon):
    budget = 256 << 20
    daemon = make_daemon(budget="256MiB")
    clients = [Checked(daemon.socket) for _ in range(3)]
    for client in clients:
        client.wait_ready()
    worst = 0
    for round_ in range(40):
        for i, client in enumerate(clients):
            first = (round_ * 3 + i) * 100
            reasons = [reason for at in range(0, 96, client.n)
                       for reason in client.store(range(first + at, first + at + client.n))]
            assert set(reasons) <= {REASONS["none"], REASONS["budget"]}, reasons
        metrics = daemon.metrics()
        assert metrics["terrace_budget_used_bytes"] <= budget
        worst = max(worst, resident_kib(daemon.pid) << 10)
    assert sum(v for k, v in daemon.metrics().items() if k.startswith("terrace_evictions_total")) > 3000
    assert worst <= budget * 1.02, f"{worst >> 20} MiB resident with a budget of {budget >> 20}"
    for client in clients:
        client.close()
