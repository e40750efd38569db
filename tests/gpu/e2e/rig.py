# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A daemon and engines as processes of a test: started, spoken to, killed. Standard library only."""

import functools
import glob
import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import Any, Callable, Dict, List, Optional

_HERE = os.path.dirname(os.path.abspath(__file__))
_ANSWER_S = 120.0  # of one command; a busy machine, not a hang
_CHUNK = 4096


class EngineFailed(Exception):
    """An engine ended, said nothing in time, or was given a wrong byte."""


class Node:
    """terraced, or region_node: the same core and door without gRPC. Owner: the test.

    stop() and kill() may be followed by start(). Blocks are gone with the process.
    """

    def __init__(self, binary: str, driver: Optional[str] = None, budget_mib: int = 256) -> None:
        """driver: folder of a libcuda.so.1 to be used in place of the system's."""
        self._directory = tempfile.TemporaryDirectory(prefix="terrace-gpu-e2e-")
        self._binary, self._budget = binary, budget_mib
        self._is_daemon = os.path.basename(binary).startswith("terraced")
        self.socket = os.path.join(self._directory.name, "run", "engine.sock")
        self._log_path = os.path.join(self._directory.name, "node.log")
        self.environment = clean_environment(driver)
        self._process: Optional[subprocess.Popen] = None
        self._offset = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 30.0) -> "Node":
        command = [self._binary, "--run-dir", os.path.dirname(self.socket)]
        command += ["--host-budget", f"{self._budget}MiB"]
        if self._is_daemon:
            command += ["--http-listen", "127.0.0.1:0", "--host-memory-dir", ""]
        with open(self._log_path, "ab") as log:
            self._offset = log.tell()
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log, env=self.environment)
        if self._is_daemon:
            threading.Thread(target=self._drain, args=(self._process,), daemon=True).start()
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._binary} did not start:\n{self.words()[-3000:]}")
            time.sleep(0.02)  # poll
        return self

    def _drain(self, process: subprocess.Popen) -> None:
        with open(self._log_path, "ab") as log:
            for line in process.stdout:  # type: ignore[union-attr]
                log.write(line)
                log.flush()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.connect(self.socket)
                return True
        except OSError:
            return False

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def words(self) -> str:
        """The log since the last start."""
        with open(self._log_path, encoding="utf-8", errors="replace") as log:
            log.seek(self._offset)
            return log.read()

    def metrics(self) -> Dict[str, float]:
        """Samples by name with labels, as in /metrics."""
        lines = self._http_metrics() if self._is_daemon else self._asked_metrics()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                for line in lines if line and not line.startswith("#")}

    def _http_metrics(self) -> List[str]:
        found = re.search(r"127\.0\.0\.1:(\d+)", self.words())
        if found is None:
            raise RuntimeError("terraced's log names no HTTP port")
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=10) as answer:
            return answer.read().decode().splitlines()

    def _asked_metrics(self) -> List[str]:
        assert self._process is not None and self._process.stdin and self._process.stdout
        self._process.stdin.write(b"metrics\n")
        self._process.stdin.flush()
        lines: List[str] = []
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], 10) if not lines else ([1], [], [])
            line = self._process.stdout.readline().decode() if ready else ""
            if not line:
                raise RuntimeError(f"region_node gave no metrics:\n{self.words()[-2000:]}")
            if line == "end\n":
                return lines
            lines.append(line.rstrip("\n"))

    def metric(self, name: str, *having: str) -> float:
        """The sum of a family's series whose labels contain all the given texts."""
        found = [value for sample, value in self.metrics().items()
                 if re.split(r"[{ ]", sample)[0] == name and all(text in sample for text in having)]
        if not found:
            raise KeyError(f"no metric {name} {having}")
        return sum(found)

    def wait_metric(self, condition: Callable[[float], bool], name: str, *having: str,
                    timeout: float = 20.0) -> float:
        deadline = time.monotonic() + timeout
        while True:
            value = self.metric(name, *having)
            if condition(value) or time.monotonic() > deadline:
                return value
            time.sleep(0.02)  # poll

    def flip_bits(self, every: int = 16) -> int:
        """Flips one bit in every `every`-th used 4 KiB of stored payloads, as broken memory would."""
        flipped = 0
        with open(f"/proc/{self.pid}/maps", encoding="ascii") as maps, \
                open(f"/proc/{self.pid}/mem", "r+b", 0) as memory:
            for line in maps:
                found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-s .*memfd:\S*payload", line)
                used = 0
                for address in range(int(found[1], 16), int(found[2], 16), _CHUNK) if found else ():
                    memory.seek(address)
                    page = memory.read(_CHUNK)
                    used += any(page)
                    if any(page) and used % every == 0:
                        memory.seek(address + 100)
                        memory.write(bytes([page[100] ^ 1]))
                        flipped += 1
        return flipped

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """In order; returns the exit status."""
        if self._process is not None and not self._is_daemon:
            assert self._process.stdin
            self._process.stdin.write(b"quit\n")
            self._process.stdin.flush()
            return self._end(None)
        return self._end(signal.SIGTERM)

    def _end(self, number: Optional[int]) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe and not self._is_daemon:
                    pipe.close()

    def close(self) -> None:
        try:
            self._end(signal.SIGKILL)
        finally:
            self._directory.cleanup()


class Engine:
    """A paged_engine process. Owner: the test. Commands one at a time. Its log is shown when it fails."""

    def __init__(self, node: Node, library: str, **options: Any) -> None:
        arguments = [sys.executable, os.path.join(_HERE, "paged_engine.py"), "--socket", node.socket,
                     "--library", library]
        for name, value in options.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, env=node.environment, text=True)
        self._lines: "queue.Queue[Optional[str]]" = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        first = self._answer("up", "skipped")
        self.skipped: Optional[str] = first.get("skipped")

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            self._lines.put(line)
        self._lines.put(None)

    def _answer(self, *kinds: str) -> Dict[str, Any]:
        while True:
            try:
                line = self._lines.get(timeout=_ANSWER_S)
            except queue.Empty:
                raise EngineFailed(f"the engine said nothing for {_ANSWER_S:g} s\n{self.last_words()}") from None
            if line is None:
                raise EngineFailed(f"the engine ended ({self._process.wait()})\n{self.last_words()}")
            answer = json.loads(line)
            if "wrong" in answer:
                raise EngineFailed(f"WRONG BYTE: {answer['wrong']}")
            if any(kind in answer for kind in kinds):
                return answer

    def last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")

    def send(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def begun(self) -> Dict[str, Any]:
        """The command was submitted (or is over already)."""
        return self._answer("begun", "done")

    def answer(self) -> Dict[str, Any]:
        return self._answer("done")

    def call(self, do: str, **arguments: Any) -> Dict[str, Any]:
        self.send(do, **arguments)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends in order; a process that does not is killed."""
        if self._process.poll() is None:
            try:
                self.send("quit")
                self._process.wait(timeout=60)
            except (OSError, subprocess.TimeoutExpired):
                self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            try:
                pipe.close()  # type: ignore[union-attr]
            except OSError:
                pass  # an unsent command of a killed engine

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clean_environment(driver: Optional[str]) -> Dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE_")}
    if driver:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(
            [driver] + [p for p in [env.get("LD_LIBRARY_PATH")] if p])
        env["SOFTCUDA_MEMORY_MB"] = "1024"
    return env


@functools.lru_cache(maxsize=None)
def why_not(memory: str, library: str, driver: Optional[str]) -> Optional[str]:
    """Why this kind of memory cannot be had here; asked in a process of its own."""
    asked = subprocess.run(
        [sys.executable, os.path.join(_HERE, "paged_engine.py"), "--probe", "--socket", "-", "--library",
         library, "--memory", memory], env=clean_environment(driver), capture_output=True, text=True,
        timeout=300)
    if asked.returncode != 0:
        return f"the probe failed: {asked.stderr.strip()[-500:]}"
    return json.loads(asked.stdout.splitlines()[-1])["skipped"]


def find_binary(name: str, kind: str = "bin") -> Optional[str]:
    """$TERRACE_BIN_DIR/name (kind lib: ../lib), or the newest build of this checkout."""
    folder = os.environ.get("TERRACE_BIN_DIR")
    if folder:
        path = os.path.normpath(os.path.join(folder, "..", kind, name))
        return path if os.path.exists(path) else None
    root = os.path.normpath(os.path.join(_HERE, "..", "..", ".."))
    found = [path for path in glob.glob(os.path.join(root, "build", "*", kind, name)) if "san" not in path]
    return max(found, key=os.path.getmtime) if found else None
