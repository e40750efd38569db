# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Blocks that went bad on a disk: what terracectl says is a disk's matter, not one of this machine's memory."""

import json
import os
import subprocess

from running import BIN, CLEAN, chain, payload, wait_until


def ctl(daemon, *arguments, code):
    done = subprocess.run([BIN / "terracectl", "--socket", daemon.grpc_socket, *arguments], capture_output=True,
                          text=True, timeout=120, env=CLEAN)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blocks_on_disk(daemon):
    tiers = json.loads(ctl(daemon, "-o", "json", "status", code=0))["tiers"]
    return sum(tier["block_count"] for tier in tiers if tier["tier"] == "nvme")


def flip(path, keys, most):
    """Flips a bit in the copies of so many of the blocks; how many it was."""
    data = path.read_bytes()
    places = [place for place in (data.find(payload(key)[:256]) for key in keys) if place >= 0][:most]
    with open(path, "r+b") as disk:
        for place in places:
            disk.seek(place + 5000)
            disk.write(bytes([data[place + 5000] ^ 1]))
        disk.flush()
        os.fsync(disk.fileno())
    return len(places)


def test_what_is_bad_on_a_disk_is_said_to_be_there(start, connect, room):
    daemon = start("--nvme-devices", f"{room}/disk=256MiB")
    client = connect(daemon)
    first = chain("chain 0", 16)
    for i in range(70):  # 280 MiB: more than host memory takes
        client.store(first if i == 0 else chain(f"chain {i}", 16))
    wait_until(lambda: blocks_on_disk(daemon) >= 64, 60, "blocks go to disk")
    wait_until(lambda: (room / "disk").read_bytes().find(payload(first[0])[:256]) >= 0, 30, "they are written")
    n_bad = flip(room / "disk", first, 3)
    assert n_bad > 0
    report = json.loads(ctl(daemon, "-o", "json", "verify", code=1))
    assert report["corrupt_blocks"] == report["corrupt_blocks_on_disk"] == n_bad
    finding = ctl(daemon, "doctor", code=1)
    assert "lay on disk" in finding and "test this machine's memory" not in finding
    flip(room / "disk", chain("chain 1", 16), 2)
    said = ctl(daemon, "verify", code=1)
    assert "lay on disk" in said and "nvme_block_bad" in said and "memory" not in said
    assert f"device={room}/disk" in daemon.log()
