# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A real terraced in a temporary directory, and a client that fills it.

Binaries: $TERRACE_BIN_DIR, else build/release/bin.
"""

import ctypes
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("TERRACE_BIN_DIR", ROOT / "build/release/bin"))
sys.path.insert(0, str(ROOT / "plugins/vllm"))

from terrace_vllm import client as libterrace  # noqa: E402

BLOCK_BYTES = 256 * 1024
# What a daemon must not inherit from the test's own environment.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("TERRACE_")}


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)  # poll


class Terraced:
    def __init__(self, folder, *arguments, environment=None, is_expected_to_start=True):
        self.run_dir = folder / "run"
        self.log_path = folder / f"log{len(list(folder.glob('log*')))}"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [BIN / "terraced", "--run-dir", self.run_dir, "--host-budget", "256MiB",
                 "--http-listen", "127.0.0.1:0", "--host-memory-dir", "", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**CLEAN, **(environment or {})})
        self.grpc_socket = str(self.run_dir / "grpc.sock")
        self.engine_socket = str(self.run_dir / "engine.sock")
        if is_expected_to_start:
            wait_until(lambda: self.is_ready() or self.process.poll() is not None, 30, "terraced starts")
            assert self.process.poll() is None, self.log()

    def log(self):
        return self.log_path.read_text()

    def is_ready(self):
        return re.search(r"event\W+ready\b", self.log()) is not None

    def http(self, path):
        """Status and text of a page."""
        address = re.search(r'http\W+(127\.0\.0\.1:\d+)', self.log())[1]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self, number=signal.SIGTERM):
        """Exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def payload(key, n_bytes=BLOCK_BYTES):
    """A block's bytes, made from its key."""
    return hashlib.shake_128(key).digest(n_bytes)


def chain(name, n):
    return [hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(n)]


class CacheClient:
    """Stores and looks up blocks of BLOCK_BYTES whose bytes are made from their keys."""

    def __init__(self, daemon, name="test", tenant=None, token=None):
        library = libterrace.Library(str(BIN.parent / "lib/libterrace.so"))
        self.client = libterrace.Client(library, socket=daemon.engine_socket, name=name, tenant=tenant,
                                        token=token)
        self.client.wait_ready(5000)
        self.space = self.client.open_key_space("model", "fingerprint", "bfloat16", "layout", "tp=1/0",
                                                "sha256", "0:full", "", BLOCK_BYTES, 128)

    def store(self, keys):
        """Reason per block, as names."""
        data = ctypes.create_string_buffer(b"".join(payload(key) for key in keys))
        pages = self.client.register_pages([(ctypes.addressof(data), BLOCK_BYTES, BLOCK_BYTES)], len(keys))
        operation = self.client.store(self.space, None, b"".join(keys), 0, pages, range(len(keys)))
        try:
            assert operation.wait(30_000_000)
            return [self.client.library.reason_text(reason) for reason in operation.reasons()]
        finally:
            operation.close()
            pages.close()

    def lookup(self, keys, keeps_lease=False):
        """Blocks of the leading run that are here, the first miss's reason or None."""
        status, (answer,) = self.client.lookup([(self.space, b"".join(keys), 0)], 5_000_000)
        self.client.library.check(status)
        if not keeps_lease:
            self.client.release(answer.lease)
        reason = None
        if answer.n_prefix < len(keys):
            reason = self.client.library.reason_text(answer.reasons[answer.n_prefix])
        return answer.n_prefix, reason

    def close(self):
        self.space.close()
        self.client.close()
