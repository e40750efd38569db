# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Disks to break: file systems on loop devices, a client that waits for blocks of the NVMe tier, and
daemons with such disks. What a test mounts or throttles is undone whatever happens to it.
"""

import fcntl
import glob
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import pytest

import faultlib
from faultlib import Checked, eventually, key_of
from terrace_vllm import client as tc
from terrace_vllm.testing.daemon import find_binary

MIB = 1 << 20
NONE, PENDING, DUPLICATE = tc.REASON_NONE, tc.REASON_PENDING, tc.REASON_DUPLICATE
DEADLINE, TIER_OFFLINE, IO_ERROR = 20, 21, 22
LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05
LOOP_SIZELIMIT_AT = 32  # offset of lo_sizelimit in struct loop_info64
LOOP_INFO_BYTES = 232
PREFIX = "terrace-disk-"


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60)


def _attached(image):
    return [line.partition(":")[0] for line in run("losetup", "-j", image, check=False).stdout.splitlines()]


def _tear_down(folder):
    """Undoes everything that stands on images in the folder, in any state, then removes it."""
    def unmount(suffix):
        with open("/proc/mounts", encoding="ascii") as lines:
            mounts = [line.split()[1] for line in lines]
        for mount in reversed([m for m in mounts if m.startswith(folder) and m.endswith(suffix)]):
            run("fsfreeze", "-u", mount, check=False)
            run("umount", "-l", mount, check=False)

    unmount("/mnt")
    for image in glob.glob(os.path.join(folder, "below", "*.img")):
        for device in _attached(image):
            run("losetup", "-d", device, check=False)
    unmount("/below")
    shutil.rmtree(folder, ignore_errors=True)


def sweep():
    """Removes what test processes that were killed have left."""
    for folder in glob.glob(os.path.join(tempfile.gettempdir(), PREFIX + "*")):
        owner = os.path.basename(folder)[len(PREFIX):].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            group = os.path.join("/sys/fs/cgroup/blkio", os.path.basename(folder))
            if os.path.isdir(group):
                os.rmdir(group)
            _tear_down(folder)


def needs_loop_devices():
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")


class LoopDisk:
    """A disk of `size` bytes: a sparse image on a loop device, with ext4 on it unless raw.

    Owner: a fixture, which close()s it after the daemons that use it. `store`: the image lies in a tmpfs
    of so many bytes, which a test can fill, so that the disk runs out under the file system's feet.
    """

    def __init__(self, size, raw=False, store=None):
        self.size = size
        self.folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        self.mount = os.path.join(self.folder, "mnt")
        self._below = os.path.join(self.folder, "below")
        os.mkdir(self.mount)
        os.mkdir(self._below)
        self._throttled = None
        self.device = None
        try:
            if store:
                run("mount", "-t", "tmpfs", "-o", f"size={store}", "terrace-test", self._below)
            self.image = os.path.join(self._below, "disk.img")
            with open(self.image, "wb") as image:
                image.truncate(size)
            attach = ["losetup", "--find", "--show", self.image]
            made = run(*attach[:1], "--direct-io=on", *attach[1:], check=False)
            if made.returncode != 0:
                made = run(*attach, check=False)
            if made.returncode != 0:
                pytest.skip("no loop device to be had: " + made.stderr.strip())
            self.device = made.stdout.strip()
            if not raw:
                # No journal: a write that fails must not end the whole file system.
                run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal,^metadata_csum,^resize_inode",
                    "-E", "lazy_itable_init=0,nodiscard", self.device)
                self.remount()
        except BaseException:
            self.close()
            raise

    @property
    def path(self):
        """Of the daemon's data file."""
        return os.path.join(self.mount, "terrace.dat")

    def remount(self):
        run("mount", "-o", "noatime", self.device, self.mount)

    def unmount(self):
        run("umount", "-l", self.mount)

    def abort(self):
        """The file system turns itself read-only, as it does after errors in its own data."""
        run("mount", "-o", "remount,abort", self.mount)

    def read_only(self, is_on):
        run("mount", "-o", "remount," + ("ro" if is_on else "rw"), self.mount)

    def freeze(self, is_on):
        run("fsfreeze", "-f" if is_on else "-u", self.mount)

    def grow_store(self, size):
        run("mount", "-o", f"remount,size={size}", self._below)

    def ends_at(self, size):
        """The disk answers EIO beyond `size` from now on. Its data come back with ends_at(0)."""
        with open(self.device, "rb") as device:
            info = bytearray(LOOP_INFO_BYTES)
            fcntl.ioctl(device, LOOP_GET_STATUS64, info)
            struct.pack_into("<Q", info, LOOP_SIZELIMIT_AT, size)
            deadline = time.monotonic() + 10
            while True:
                try:
                    fcntl.ioctl(device, LOOP_SET_STATUS64, bytes(info))
                    return
                except OSError:  # EAGAIN: its cache is not empty yet
                    assert time.monotonic() < deadline
                    time.sleep(0.01)  # poll

    def throttle(self, pid, bytes_per_s):
        """The disk moves so many bytes a second for that process; None: as many as it can again."""
        root = "/sys/fs/cgroup/blkio"
        if not os.path.exists(root + "/blkio.throttle.read_bps_device"):
            pytest.skip("no blkio throttling here")
        group = os.path.join(root, os.path.basename(self.folder))
        if self._throttled is None:
            os.mkdir(group)
            self._throttled = group
            _write(group + "/cgroup.procs", pid)
        number = os.stat(self.device).st_rdev
        for what in ("read", "write"):
            _write(f"{group}/blkio.throttle.{what}_bps_device",
                   f"{os.major(number)}:{os.minor(number)} {bytes_per_s or 0}")

    def mend(self):
        """Nothing hangs on this disk any more."""
        if self._throttled:
            self.throttle(None, None)
        run("fsfreeze", "-u", self.mount, check=False)

    def close(self):
        if self._throttled:
            group, self._throttled = self._throttled, None
            with open(group + "/cgroup.procs", encoding="ascii") as pids:
                for pid in pids.read().split():
                    _write("/sys/fs/cgroup/blkio/cgroup.procs", pid)
            os.rmdir(group)
        _tear_down(self.folder)


def _write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


class DiskClient(Checked):
    """A Checked that waits for blocks on their way from a disk."""

    def reasons(self, numbers):
        """Where they are: NONE in host memory, PENDING on a disk that can be read, or why they are not."""
        numbers, reasons = list(numbers), []
        for at in range(0, len(numbers), 200):  # each part fits under the limit of leased memory
            _, answer = self.lookup(numbers[at:at + 200])
            reasons += answer.reasons
            self.client.release(answer.lease)
        return reasons

    def where(self, numbers):
        """How many lie in host memory and how many on disks that can be read."""
        reasons = self.reasons(numbers)
        return reasons.count(NONE), reasons.count(PENDING)

    def on_disk(self, numbers):
        """Those that only a disk has."""
        return [number for number, reason in zip(numbers, self.reasons(numbers)) if reason == PENDING]

    def in_memory(self, numbers):
        return [number for number, reason in zip(numbers, self.reasons(numbers)) if reason == NONE]

    def get_waiting(self, numbers, seconds=20.0):
        """Lookup, load and release of up to n blocks: the reason of each. Every byte served is checked."""
        keys = b"".join(key_of(number) for number in numbers)
        _, (answer,) = self.client.lookup([(self.space, keys, tc.MODE_ALL)], 0, may_wait=True)
        reasons = list(answer.reasons)
        there = [at for at, reason in enumerate(reasons) if reason in (NONE, PENDING)]
        if there:
            refs = b"".join(answer.refs[at * tc.REF_BYTES:(at + 1) * tc.REF_BYTES] for at in there)
            loaded = self.load([numbers[at] for at in there], refs, seconds)
            for at, reason in zip(there, loaded):
                reasons[at] = reason
        self.client.release(answer.lease)
        return reasons

    def fetch(self, numbers):
        """The reasons of any number of blocks, a few at a time."""
        numbers, reasons = list(numbers), []
        for at in range(0, len(numbers), self.n):
            reasons += self.get_waiting(numbers[at:at + self.n])
        return reasons

    def served(self, numbers):
        return self.fetch(numbers).count(NONE)

    def store_all(self, numbers):
        """Each must be there at the end of its store."""
        numbers = list(numbers)
        for at in range(0, len(numbers), self.n):
            reasons = self.store(numbers[at:at + self.n])
            assert set(reasons) <= {NONE, DUPLICATE}, reasons

    def store_to_disk(self, daemon, numbers):
        """Stores them at the pace of the disk: next to nothing is evicted for want of it."""
        numbers = list(numbers)
        for at in range(0, len(numbers), 4 * self.n):
            self.store_all(numbers[at:at + 4 * self.n])
            eventually(lambda: no_backlog(daemon), what="the disk's keeping up")


def no_backlog(daemon):
    """Some of host memory is free: what goes next is on disk already."""
    metrics = daemon.metrics()
    used, size = (sum(v for k, v in metrics.items() if k.startswith(name) and 'tier="host"' in k)
                  for name in ("terrace_tier_used_bytes", "terrace_tier_capacity_bytes"))
    return used <= size * 31 / 32


def loop(socket, seed, progress):
    """Like faultlib.loop, and waits for what lies on disk. progress: operations, served, connections."""
    def body():
        rng = random.Random(seed)
        client = DiskClient(socket, name=f"disk-loop-{seed}")
        while True:
            numbers = rng.sample(range(400), 8)
            try:
                if rng.random() < 0.5:
                    client.store(numbers)
                else:
                    progress[1] += client.get_waiting(numbers).count(NONE)
            except tc.TerraceError:
                pass  # no daemon at the moment: that is what the tests bring about
            progress[0] += 1
            progress[2] = client.client.stats()["connects"]

    faultlib._run(body)


def device_of(daemon):
    """The first of terracectl's disks, as in its JSON."""
    answer = run(find_binary("terracectl"), "--socket", daemon.grpc_socket, "-o", "json", "status")
    return json.loads(answer.stdout)["devices"][0]


def is_state(daemon, *states):
    """The device if it is in one of the states, else None."""
    device = device_of(daemon)
    return device if device["state"] in states else None


def metric(daemon, name, label=""):
    """The sum of the samples with that name (and label)."""
    found = [v for k, v in daemon.metrics().items() if k.startswith(name) and label in k]
    assert found, f"no metric {name} {label}"
    return sum(found)


WRAPPER = """#!{python}
import ctypes, os, resource, struct, sys

libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "the limit could not be set")


def drop_capabilities():
    for capability in (14, 24):  # CAP_IPC_LOCK, CAP_SYS_RESOURCE: they lift RLIMIT_MEMLOCK
        check(libc.prctl(24, capability, 0, 0, 0))


def refuse_io_uring():
    def code(op, jt, jf, k):
        return struct.pack("HBBI", op, jt, jf, k)

    program = code(0x20, 0, 0, 0)  # the call's number
    for at, number in enumerate((425, 426, 427)):
        program += code(0x15, 3 - at, 0, number)
    program += code(0x06, 0, 0, 0x7fff0000) + code(0x06, 0, 0, 0x00050001)  # allow; EPERM
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    check(libc.prctl(38, 1, 0, 0, 0))
    check(libc.prctl(22, 2, ctypes.c_char_p(filter_), 0, 0))


{code}
os.execv({real!r}, [{real!r}] + sys.argv[1:])
"""


def wrap_binaries(folder, code):
    """A folder with a terraced that runs `code` and becomes the real one, and the other programs."""
    real = os.path.dirname(find_binary("terraced"))
    os.mkdir(folder)
    for name in os.listdir(real):
        if name != "terraced":
            os.symlink(os.path.join(real, name), os.path.join(folder, name))
    path = os.path.join(folder, "terraced")
    _write(path, WRAPPER.format(python=sys.executable, code=code, real=os.path.join(real, "terraced")))
    os.chmod(path, 0o755)
    return folder
