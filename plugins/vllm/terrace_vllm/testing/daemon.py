# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A terraced of one's own in a temporary directory: to be started, killed and started again."""

import glob
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from typing import Dict, Optional

from .memory_dir import MemoryDirectory


def find_binary(name: str) -> str:
    """terraced or terracectl: $TERRACE_BIN_DIR, the newest build of a source checkout, or the PATH."""
    folder = os.environ.get("TERRACE_BIN_DIR")
    if folder:
        return os.path.join(folder, name)
    here = os.path.dirname(os.path.abspath(__file__))
    checkout = os.path.normpath(os.path.join(here, "..", "..", "..", ".."))
    builds = [path for path in glob.glob(os.path.join(checkout, "build", "*", "bin", name))
              if "san" not in os.path.basename(os.path.dirname(os.path.dirname(path)))]
    return max(builds, key=os.path.getmtime) if builds else name


class Daemon:
    """terraced with its run directory. Owner: the caller. stop() and kill() may be followed by start().

    Failure: RuntimeError with the daemon's last words when it does not open its socket.
    """

    def __init__(self, budget: str = "512MiB", warm: bool = False, **flags: str) -> None:
        """warm: blocks in host memory are there again after the next start; else each start is cold.

        flags: terraced's flags by name with underscores, e.g. engine_staging_bytes="1MiB".
        """
        self.memory = MemoryDirectory() if warm else None
        self._directory = tempfile.TemporaryDirectory(prefix="terrace-e2e-")
        self.socket = os.path.join(self._directory.name, "run", "engine.sock")
        self.grpc_socket = os.path.join(self._directory.name, "run", "grpc.sock")
        self.log = os.path.join(self._directory.name, "terraced.log")
        self._flags = {"run_dir": os.path.join(self._directory.name, "run"), "host_budget": budget,
                       "http_listen": "127.0.0.1:0",
                       "host_memory_dir": self.memory.path if self.memory else "", **flags}
        self._process: Optional[subprocess.Popen] = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Starts the process and waits for nothing."""
        arguments = [find_binary("terraced")]
        for name, value in self._flags.items():
            arguments += ["--" + name.replace("_", "-"), value]
        env = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE_")}
        with open(self.log, "ab") as log:
            offset = log.tell()
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log, env=env)
        self._offset = offset

    def start(self, timeout: float = 20.0) -> "Daemon":
        self.launch()
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"terraced did not start:\n{self.words()[-3000:]}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        import socket

        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.connect(self.socket)
                return True
        except OSError:
            return False

    def words(self) -> str:
        """The log since the last start."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            log.seek(self._offset)
            return log.read()

    def metrics(self) -> Dict[str, float]:
        """Samples of /metrics by name with labels, e.g. 'terrace_blocks{tier="host"}'."""
        found = re.search(r"127\.0\.0\.1:(\d+)", self.words())
        if found is None:
            raise RuntimeError("terraced's log names no HTTP port")
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                for line in lines if line and not line.startswith("#")}

    def kill(self) -> None:
        """SIGKILL: no goodbye, sockets and shared memory stay as they are."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def close(self) -> None:
        try:
            if self._process is not None:
                self._end(signal.SIGKILL)
        finally:
            self._directory.cleanup()
            if self.memory:
                self.memory.remove()

    def __enter__(self) -> "Daemon":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
