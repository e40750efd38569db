# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Disks that are full, fail, hang, vanish or belong to somebody else, under the real terraced.

Every byte that is served is checked by the client; a call that does not end fails its test. Needs root and
loop devices for most of it, and says so where they are missing.
"""

import hashlib
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter

import pytest

import disklib
from disklib import (DEADLINE, IO_ERROR, MIB, NONE, PENDING, TIER_OFFLINE, DiskClient, LoopDisk, device_of,
                     is_state, metric)
from faultlib import REASONS, eventually
from test_restart import recovered

RETRY_S = 0.3
FLAGS = {"nvme_io_memory": "8MiB", "nvme_admission_policy": "all", "nvme_retry": "300ms",
         "nvme_read_deadline": "5s",  # kept by good disks on a busy machine, too
         "host_eviction_policy": "lru"}  # so that it is known which blocks stay
FIRST = range(1500)  # more than fits into memory: the older ones go to disk
HANGS = {"nvme_read_deadline": "500ms"}  # where a deadline is waited for
KILLS = int(os.environ.get("TERRACE_FAULT_KILLS", "30"))


@pytest.fixture
def make_disk():
    """make_disk(size, ...): a LoopDisk of this test."""
    disklib.needs_loop_devices()
    disklib.sweep()
    made = []

    def make(size, **options):
        made.append(LoopDisk(size, **options))
        return made[-1]

    yield make
    for disk in made:
        disk.close()


@pytest.fixture
def disks(make_disk, make_daemon):
    """The same; its disks are mended before daemons end, since one that waits for a disk cannot be killed."""
    made = []

    def make(size, **options):
        made.append(make_disk(size, **options))
        return made[-1]

    yield make
    for disk in made:
        disk.mend()


@pytest.fixture
def make_node(make_daemon):
    """make_node("PATH=SIZE", ...): a daemon with that disk and a client of it."""
    clients = []

    def make(device, budget="128MiB", warm=True, **flags):
        daemon = make_daemon(budget=budget, warm=warm, nvme_devices=device, **{**FLAGS, **flags})
        client = DiskClient(daemon.socket)
        clients.append(client)
        client.wait_ready()
        return daemon, client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def loaded(disks, make_node):
    """A disk, its daemon and client, with blocks in both tiers."""
    def make(size=256 * MIB, file="160MiB", **flags):
        disk = disks(size)
        daemon, client = make_node(f"{disk.path}={file}", **flags)
        fill(daemon, client)
        return disk, daemon, client

    return make


def fill(daemon, client, numbers=FIRST):
    online(daemon)
    client.store_to_disk(daemon, numbers)
    host, disk = client.where(numbers)
    assert host > 500 and disk > 300, (host, disk)
    assert host + disk >= 0.9 * len(numbers)


def online(daemon, seconds=20.0):
    return eventually(lambda: is_state(daemon, "online"), seconds, "the disk's coming back")


def in_state(daemon, *states):
    return eventually(lambda: is_state(daemon, *states), what=f"the disk's going {' or '.join(states)}")


def healthy(daemon, client, numbers=range(50_000, 51_200)):
    """Everything works (again): blocks go to disk and come back."""
    online(daemon)
    before = metric(daemon, "terrace_demoted_blocks_total")
    client.store_to_disk(daemon, numbers)
    there = client.on_disk(numbers)
    assert len(there) > 100 and metric(daemon, "terrace_demoted_blocks_total") > before
    served = client.served(there)
    assert served >= 0.98 * len(there), f"{served} of {len(there)}"


def host_serves(client, numbers):
    """They are hits in host memory; returns how long one takes (median seconds)."""
    took = []
    for number in numbers[:50]:
        began = time.monotonic()
        assert client.get([number]) == 1, number
        took.append(time.monotonic() - began)
    return statistics.median(took)


def no_wrong_bytes(daemon):
    assert metric(daemon, "terrace_integrity_failures_total") == 0


# ---------------------------------------------------------------- no space


def test_full_file_system(disks, make_node):
    disk = disks(96 * MIB)
    filler = os.path.join(disk.mount, "filler")
    free = os.statvfs(disk.mount)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 8 * MIB)
    daemon, client = make_node(f"{disk.path}=64MiB")
    state = in_state(daemon, "offline")
    assert "space" in state["detail"] or "has" in state["detail"], state
    assert disk.path in state["detail"] and metric(daemon, 'terrace_tier_state{tier="nvme",state="offline"}') == 1
    assert not os.path.exists(disk.path), "what cannot be used is not left lying"
    client.store_all(range(600))
    assert client.served(range(600)) == 600, "host memory serves"
    assert client.fetch([999_999]) == [TIER_OFFLINE], "what a disk holds that was never opened is unknown"
    client.store_all(range(600, 1400))  # memory is too small for these: they go the ordinary way
    assert is_state(daemon, "offline")
    os.remove(filler)
    began = time.monotonic()
    online(daemon)
    assert time.monotonic() - began < 10 * RETRY_S + 10
    healthy(daemon, client)
    no_wrong_bytes(daemon)


# ---------------------------------------------------------------- I/O errors


def test_errors_on_everything(loaded):
    """The disk ends after its first MiB: reads, writes and the probe fail. Then it is whole again."""
    disk, daemon, client = loaded()
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)
    disk.ends_at(MIB)
    reasons = client.fetch(below[:100])
    assert NONE not in reasons and set(reasons) <= {IO_ERROR, TIER_OFFLINE}, set(reasons)
    state = in_state(daemon, "offline")
    assert "fail" in state["detail"] or "error" in state["detail"], state
    assert metric(daemon, "terrace_io_errors_total", 'op="read"') > 0
    assert metric(daemon, "terrace_miss_blocks_total", 'reason="io_error"') + metric(
        daemon, "terrace_miss_blocks_total", 'reason="tier_offline"') > 0
    host_serves(client, above[-50:])
    client.store_all(range(5000, 5200))
    reasons = client.fetch(range(5000, 5200))
    assert reasons.count(NONE) == 200, (reasons, daemon.words()[-3000:])
    disk.ends_at(0)
    online(daemon)
    assert client.served(below) >= 0.8 * len(below), "they are on disk as before"
    healthy(daemon, client)


def test_errors_on_reads_of_a_part(loaded):
    """Half of what is on the disk cannot be read. The other half is served on."""
    disk, daemon, client = loaded()
    below = client.on_disk(FIRST)
    disk.ends_at(32 * MIB)
    # Errors in a row take the disk out of service for a retry or two: each block is asked for again.
    served, failed = set(), set()
    for number in below:
        reason = client.get_waiting([number])[0]
        if reason == TIER_OFFLINE:
            online(daemon)
            reason = client.get_waiting([number])[0]
        (served if reason == NONE else failed).add(number)
        if len(served) > 100 and len(failed) > 5:
            break
    assert len(served) > 50 and failed, (len(served), len(failed))
    assert metric(daemon, "terrace_io_errors_total", 'op="read"') > 0
    disk.ends_at(0)
    healthy(daemon, client)


def test_errors_on_writes(disks, make_node):
    """The raw device has no room for what is written; what is on it can be read all the while."""
    disk = disks(256 * MIB, raw=True, store=40 * MIB)
    daemon, client = make_node(disk.device)
    online(daemon)
    client.store_all(range(1100))
    at = 1100
    deadline = time.monotonic() + 60
    while "state=readonly" not in daemon.words():
        assert time.monotonic() < deadline, "the store of the disk does not fill"
        client.store_all(range(at, at + 64))
        at += 64
    assert "writes fail: " in daemon.words()
    assert metric(daemon, "terrace_io_errors_total", 'op="write"') > 0
    there = client.on_disk(range(max(0, at - 3000), at))
    assert there, "what was written before cannot be read"
    reasons = client.fetch(there)
    assert reasons.count(NONE) >= 0.9 * len(there), reasons
    client.store_all(range(at, at + 64))
    assert client.served(range(at, at + 64)) == 64
    disk.grow_store(400 * MIB)
    healthy(daemon, client)


def test_write_protected_device(disks, make_node):
    disk = disks(256 * MIB, raw=True)
    daemon, client = make_node(disk.device)
    fill(daemon, client)
    below = client.on_disk(FIRST)
    disklib.run("blockdev", "--setro", disk.device)
    client.store_all(range(5000, 6000))
    state = in_state(daemon, "readonly", "offline")
    assert "fail" in state["detail"], state
    assert metric(daemon, "terrace_io_errors_total", 'op="write"') > 0
    below = client.on_disk(below)
    assert below and client.served(below) >= 0.98 * len(below), "reads go on"
    disklib.run("blockdev", "--setrw", disk.device)
    healthy(daemon, client)


# ---------------------------------------------------------------- mounts and files that go away


def test_file_system_turns_read_only(loaded):
    """As errors=remount-ro does it: writes fail, reads go on; after a repair and a restart all is there."""
    disk, daemon, client = loaded()
    below = client.on_disk(FIRST)
    disk.abort()
    client.store_all(range(5000, 6000))
    state = in_state(daemon, "readonly", "offline")
    assert "fail" in state["detail"], state
    there = client.on_disk(below)
    assert len(there) >= 0.9 * len(below)
    assert client.served(there) >= 0.98 * len(there), "reads go on"
    assert daemon.stop() == 0
    disk.unmount()
    disk.remount()
    daemon.start()
    eventually(client.client.is_ready, what="the client's new connection")
    online(daemon)
    assert client.served(there) >= 0.9 * len(there)
    healthy(daemon, client)
    no_wrong_bytes(daemon)


def test_read_only_mount_at_the_start(disks, make_node):
    disk = disks(256 * MIB)
    disk.read_only(True)
    daemon, client = make_node(f"{disk.path}=160MiB")
    state = in_state(daemon, "offline")
    assert "Read-only file system" in state["detail"], state
    client.store_all(range(200))
    assert client.served(range(200)) == 200
    disk.read_only(False)
    healthy(daemon, client)


def test_deleted_data_file(loaded):
    disk, daemon, client = loaded()
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)
    os.remove(disk.path)
    eventually(lambda: "the file was removed" in daemon.words(), what="a word about the file")
    host_serves(client, above[-50:])
    reasons = client.fetch(below)
    assert set(reasons) <= {NONE, REASONS["cold"], REASONS["evicted"], TIER_OFFLINE}, set(reasons)
    online(daemon)
    healthy(daemon, client)
    assert os.path.getsize(disk.path) == 160 * MIB, "it has a file with a name again"
    daemon.kill()
    daemon.start()
    eventually(client.client.is_ready, what="the client's new connection")
    eventually(lambda: recovered(daemon), what="the recovery's end")
    healthy(daemon, client)
    no_wrong_bytes(daemon)


def test_missing_mount(disks, make_node):
    """The directory is on the disk that is not mounted yet: nothing is made below its mount point."""
    disk = disks(256 * MIB)
    folder = os.path.join(disk.mount, "terrace")
    os.mkdir(folder)
    disk.unmount()
    daemon, client = make_node(f"{folder}/terrace.dat=160MiB")
    state = in_state(daemon, "offline")
    assert "No such file or directory" in state["detail"] and folder in state["detail"], state
    client.store_all(range(1200))
    assert client.served(range(1100, 1200)) == 100
    threading.Event().wait(3 * RETRY_S)  # several attempts
    assert os.listdir(disk.mount) == [], "it made directories"
    disk.remount()
    healthy(daemon, client)
    assert os.path.exists(folder + "/terrace.dat")


def test_file_system_unmounted_while_in_use(loaded):
    """Lazily, so that the daemon's file stays open: it lets go of it and takes it up when it is back."""
    disk, daemon, client = loaded()
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)
    disk.unmount()
    state = in_state(daemon, "offline")
    assert disk.path in state["detail"] or "unmounted" in state["detail"], state
    host_serves(client, above[-50:])
    assert os.listdir(disk.mount) == [], "it filled the file system below"
    disk.remount()
    online(daemon)
    assert client.served(below) >= 0.9 * len(below)
    healthy(daemon, client)
    no_wrong_bytes(daemon)


# ---------------------------------------------------------------- slow and hung


def host_is_untouched(client, above, new):
    """Hits and stores beside a disk that does not answer."""
    assert host_serves(client, above) < 0.2, "a hit in memory waits for the disk"
    client.store_all(new)
    assert client.served(new) == len(new)


def test_hung_reads(loaded):
    disk, daemon, client = loaded(nvme_io="auto", **HANGS)
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)[-400:]
    disk.throttle(daemon.pid, 1)
    began = time.monotonic()
    reasons = client.get_waiting(below[:16])
    assert time.monotonic() - began < 5
    assert set(reasons) == {DEADLINE}, reasons
    assert metric(daemon, "terrace_promotion_failures_total", 'reason="deadline"') > 0
    host_is_untouched(client, above, range(7000, 7100))
    state = in_state(daemon, "offline")
    assert "hang" in state["detail"], state
    began = time.monotonic()
    assert set(client.fetch(below[16:200])) <= {TIER_OFFLINE, DEADLINE}
    assert time.monotonic() - began < 5, "a disk that is known to hang is not waited for"
    host_is_untouched(client, client.in_memory(above), range(7100, 7200))
    disk.throttle(daemon.pid, None)
    online(daemon)
    assert client.served(below) >= 0.9 * len(below)
    healthy(daemon, client)
    no_wrong_bytes(daemon)


def test_slow_disk(loaded):
    """A megabyte a second: some blocks come in time, the others are misses by their deadline."""
    disk, daemon, client = loaded(**HANGS)
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)[-400:]
    disk.throttle(daemon.pid, MIB)
    reasons, deadline = [], time.monotonic() + 60
    for at in range(0, 96, 16):
        reasons += client.get_waiting(below[at:at + 16])
    assert time.monotonic() < deadline
    assert set(reasons) <= {NONE, DEADLINE, TIER_OFFLINE, REASONS["overload"]}, reasons
    assert NONE in reasons, "nothing came in time"
    assert set(reasons) - {NONE}, "it was not slow"
    host_is_untouched(client, client.in_memory(above), range(7000, 7100))
    disk.throttle(daemon.pid, None)
    online(daemon)
    there = client.on_disk(below)
    assert client.served(there) >= 0.95 * len(there)
    healthy(daemon, client)
    no_wrong_bytes(daemon)


@pytest.mark.parametrize("io", ["auto", "posix"])
def test_frozen_file_system(loaded, io):
    """Writes hang in the kernel until it is thawed."""
    disk, daemon, client = loaded(nvme_io=io, **HANGS)
    below, above = client.on_disk(FIRST), client.in_memory(FIRST)[-400:]
    disk.freeze(True)
    at, deadline = 8000, time.monotonic() + 30
    while not is_state(daemon, "offline"):  # stores go on, whatever comes of their writes
        assert time.monotonic() < deadline, device_of(daemon)
        client.store_all(range(at, at + 32))
        at += 32
    assert "hang" in device_of(daemon)["detail"]
    reasons = client.fetch(below[:64])
    assert set(reasons) <= {TIER_OFFLINE, DEADLINE, REASONS["evicted"]}, reasons
    host_is_untouched(client, range(at - 100, at), range(at, at + 100))
    disk.freeze(False)
    online(daemon)
    there = client.on_disk(below)
    assert len(there) >= 0.8 * len(below)
    assert client.served(there) >= 0.95 * len(there)
    healthy(daemon, client)
    no_wrong_bytes(daemon)


# ---------------------------------------------------------------- files of others


def test_two_daemons_on_one_file(disks, make_node):
    disk = disks(256 * MIB)
    first, first_client = make_node(f"{disk.path}=160MiB")
    fill(first, first_client)
    second, client = make_node(f"{disk.path}=160MiB")
    state = in_state(second, "offline")
    assert str(first.pid) in state["detail"], state
    client.store_all(range(200))
    assert client.served(range(200)) == 200, "the second serves from memory"
    below = first_client.on_disk(FIRST)
    assert first_client.served(below) >= 0.98 * len(below), "the first was disturbed"
    first.kill()
    online(second)  # it is its now, with what lies there
    assert sum(client.where(below)) >= 0.9 * len(below)
    assert client.served(below) >= 0.9 * len(below)
    healthy(second, client)
    no_wrong_bytes(second)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


@pytest.mark.parametrize("size", [9, 64 * MIB, 48 * MIB, 80 * MIB])
def test_file_of_something_else(tmp_path, make_node, size):
    path = tmp_path / "precious.db"
    path.write_bytes((b"precious " * (size // 9 + 1))[:size])
    path.chmod(0o640)
    before = digest(path), path.stat().st_size, path.stat().st_mode
    daemon, client = make_node(f"{path}=64MiB")
    state = in_state(daemon, "offline")
    assert "not Terrace's" in state["detail"], state
    client.store_all(range(200))
    assert client.served(range(200)) == 200
    threading.Event().wait(2 * RETRY_S)  # attempts
    assert is_state(daemon, "offline")
    assert daemon.stop() == 0
    assert (digest(path), path.stat().st_size, path.stat().st_mode) == before


def test_what_fails_again_and_again_is_logged_once(disks, make_node):
    disk = disks(4 * MIB, raw=True)
    daemon, client = make_node(disk.device)
    in_state(daemon, "offline")
    threading.Event().wait(8 * RETRY_S)  # attempts
    assert daemon.words().count("state=offline") == 1, daemon.words()[-2000:]
    assert "too small" in daemon.words()
    client.store_all(range(200))
    assert client.served(range(200)) == 200


def bump_version(path):
    for copy in (0, 32 << 10):
        with open(path, "r+b") as file:
            file.seek(copy + 4)
            version = file.read(1)[0]
            file.seek(copy + 4)
            file.write(bytes([version + 1]))


@pytest.mark.parametrize("change", ["larger", "smaller", "version"])
def test_file_of_another_size_or_version_is_made_anew(tmp_path, make_node, change):
    path = tmp_path / "terrace.dat"
    daemon, client = make_node(f"{path}=128MiB", warm=False)
    fill(daemon, client)
    assert daemon.stop() == 0
    if change == "version":
        bump_version(path)
    size = {"larger": "160MiB", "smaller": "96MiB", "version": "128MiB"}[change]
    daemon, client = make_node(f"{path}={size}", warm=False)
    online(daemon)
    assert "event=nvme_reformatted" in daemon.words()
    assert client.where(FIRST) == (0, 0), "blocks of a file that was made anew"
    healthy(daemon, client)
    no_wrong_bytes(daemon)


# ---------------------------------------------------------------- machines that allow less


def round_trip(daemon, client, backend):
    state = online(daemon)
    assert state["backend"] == backend, state
    fill(daemon, client)
    below = client.on_disk(FIRST)
    assert client.served(below) >= 0.98 * len(below)
    before = sum(client.where(FIRST))
    daemon.kill()
    daemon.start()
    eventually(client.client.is_ready, what="the client's new connection")
    online(daemon)
    eventually(lambda: recovered(daemon), what="the recovery's end")
    host, disk = client.where(FIRST)
    assert host + disk >= 0.95 * before
    assert client.served(FIRST) >= 0.9 * len(FIRST)
    no_wrong_bytes(daemon)


@pytest.mark.parametrize("io", ["posix", "auto"])
def test_no_locked_memory(tmp_path, make_node, io, wrapped):
    wrapped("resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)); drop_capabilities()")
    daemon, client = make_node(f"{tmp_path}/terrace.dat=160MiB", nvme_io=io)
    with open(f"/proc/{daemon.pid}/limits", encoding="ascii") as limits:
        assert any(line.split()[3:5] == ["0", "0"] for line in limits if line.startswith("Max locked memory"))
    online(daemon)
    round_trip(daemon, client, {"posix": "posix", "auto": device_of(daemon)["backend"]}[io])


def test_io_uring_refused(tmp_path, make_node, wrapped):
    wrapped("refuse_io_uring()")
    daemon, client = make_node(f"{tmp_path}/terrace.dat=160MiB", nvme_io="auto")
    round_trip(daemon, client, "posix")
    assert "event=io_uring_refused" in daemon.words()


def test_io_uring_asked_for_and_refused(tmp_path, make_node, wrapped):
    wrapped("refuse_io_uring()")
    daemon, client = make_node(f"{tmp_path}/terrace.dat=160MiB", nvme_io="io_uring")
    state = in_state(daemon, "offline")
    assert "io_uring" in state["detail"], state
    client.store_all(range(200))
    assert client.served(range(200)) == 200


@pytest.fixture
def wrapped(tmp_path, monkeypatch):
    """wrapped(code): terraced is started by a program that runs that code first."""
    def make(code):
        monkeypatch.setenv("TERRACE_BIN_DIR", disklib.wrap_binaries(str(tmp_path / "bin"), code))

    return make


# ---------------------------------------------------------------- killed again and again


def test_killed_under_load_with_a_disk(disks, make_node, processes):
    disk = disks(512 * MIB)
    daemon, client = make_node(f"{disk.path}=400MiB", nvme_checkpoint_interval="1s")
    stable = range(10_000, 11_500)
    fill(daemon, client, stable)
    progress = [processes.RawArray("Q", 3) for _ in range(2)]
    children = [processes.Process(target=disklib.loop, args=(daemon.socket, i, progress[i])) for i in range(2)]
    for child in children:
        child.start()
    rng, kept = random.Random(7), []
    try:
        # Until the loops' blocks are there they push others out; afterwards what is missing was lost.
        eventually(lambda: sum(client.where(range(400))) >= 390, what="the loops' blocks")
        for kill in range(KILLS):
            done = sum(p[0] for p in progress)
            eventually(lambda: sum(p[0] for p in progress) >= done + 4, what="operations before the kill")
            threading.Event().wait(rng.random() * 0.05)  # the random instant is what is tested
            there = [n for n, reason in zip(stable, client.reasons(stable)) if reason in (NONE, PENDING)]
            daemon.kill()
            daemon.start()
            eventually(client.client.is_ready, what="the client's new connection")
            online(daemon)
            eventually(lambda: recovered(daemon), what="the recovery's end")
            assert all(child.is_alive() for child in children), f"a client ended after kill {kill}"
            kept.append(sum(client.where(there)) / len(there))
            reasons = client.fetch(rng.sample(there, 2 * client.n))
            assert reasons.count(NONE) >= 0.9 * len(reasons), reasons
        last = sum(client.where(stable))
        assert last >= 0.8 * len(stable), f"{last} of {len(stable)}"
        assert min(kept) >= 0.95, kept
        # A few at a time: what memory has and the disk has not yet makes room for what is read, if the disk is slow.
        asked, reasons = 0, []
        for at in range(0, len(stable), client.n):
            part = stable[at:at + client.n]
            there = [n for n, reason in zip(part, client.reasons(part)) if reason in (NONE, PENDING)]
            asked += len(there)
            reasons += client.fetch(there)
        assert asked >= 0.7 * last, (asked, last)
        assert reasons.count(NONE) >= 0.95 * asked, Counter(reasons)
        assert all(p[2] > KILLS / 2 for p in progress), "the clients did not come back by themselves"
        assert sum(p[1] for p in progress) > KILLS, "nothing was served under load"
    finally:
        for child in children:
            child.kill()
            child.join()
    assert all(child.exitcode == -signal.SIGKILL for child in children), "a client saw wrong bytes"
