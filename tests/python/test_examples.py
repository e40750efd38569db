# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The custom servers of docs/custom-server.md, against a real terraced.

Binaries: $TERRACE_BIN_DIR, else build/release/bin. libterrace.so lies in ../lib beside them.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("TERRACE_BIN_DIR", ROOT / "build/release/bin"))
PYTHON_SERVER = ROOT / "examples/python_server/kv_server.py"
STOP_S = 8  # far below the 10 s for which gRPC's default poller held up the end of the process


class Terraced:
    """A daemon in a temporary directory."""

    def __init__(self, folder, *arguments):
        self.run_dir = folder / "run"
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [BIN / "terraced", "--run-dir", self.run_dir, "--host-budget", "512MiB",
                 "--http-listen", "127.0.0.1:0", "--host-memory-dir", "", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while "event=ready" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"terraced did not start:\n{self.log.read_text()}")
            time.sleep(0.02)  # poll
        self.grpc_socket = str(self.run_dir / "grpc.sock")
        self.engine_socket = str(self.run_dir / "engine.sock")

    def stop(self):
        """Ends it as a service manager does. Returns its exit code and how long it took."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return code, time.monotonic() - begin


@pytest.fixture
def folder():
    path = pathlib.Path(tempfile.mkdtemp(prefix="terrace_ex_"))  # short: a socket's path has 107 bytes
    yield path
    shutil.rmtree(path)


@pytest.fixture
def terraced(folder):
    daemon = Terraced(folder)
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


@pytest.fixture(scope="module")
def c_server():
    """The example in C, built against the headers and library that a user gets."""
    compiler = shutil.which("cc") or shutil.which("clang")
    assert compiler, "no C compiler"
    library = BIN.parent / "lib"
    with tempfile.TemporaryDirectory(prefix="terrace_ex_") as build:
        program = pathlib.Path(build) / "kv_server"
        subprocess.run(
            [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror",
             ROOT / "examples/c_server/kv_server.c", "-o", program, f"-I{ROOT / 'src/api/client'}",
             f"-L{library}", f"-Wl,-rpath,{library}", "-lterrace", "-lcrypto"], check=True)
        yield program


def run(*command, code=0, environment=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **(environment or {})})
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def python_server(daemon, *arguments, code=0):
    return run(sys.executable, PYTHON_SERVER, "--socket", daemon.grpc_socket, *arguments, code=code)


def figures(output, role):
    line = re.search(rf"^{role}: (.*)$", output, re.MULTILINE).group(1)
    return dict(part.split("=") for part in line.split())


def check_both(output):
    first, second = figures(output, "first"), figures(output, "second")
    assert first["loaded"] == "0" and first["stored"] == first["blocks"]
    assert first["reason"] == "key_space_empty"
    assert second["loaded"] == second["blocks"] and second["computed"] == "0"
    assert second["wrong"] == "0" and second["reason"] == "none"
    assert "came back equal" in output


@pytest.mark.parametrize("blocks, block_bytes", [(16, 1 << 20), (7, 3_000_001), (64, 4096), (1, 1)])
def test_python_server(terraced, blocks, block_bytes):
    check_both(python_server(terraced, "--blocks", blocks, "--block-bytes", block_bytes))


@pytest.mark.parametrize("blocks, block_bytes", [(16, 1 << 20), (7, 3_000_001), (64, 4096), (1, 1)])
def test_c_server(terraced, c_server, blocks, block_bytes):
    check_both(run(c_server, "--socket", terraced.engine_socket, "--blocks", blocks, "--block-bytes",
                   block_bytes))


def test_the_doors_share_blocks(terraced, c_server):
    """What one server stored through gRPC another one loads through shared memory, and back."""
    c_run = [c_server, "--socket", terraced.engine_socket]
    python_server(terraced, "--role", "first", "--prompt", 1)
    assert figures(run(*c_run, "--role", "second", "--prompt", 1), "second")["loaded"] == "16"
    run(*c_run, "--role", "first", "--prompt", 2)
    assert figures(python_server(terraced, "--role", "second", "--prompt", 2), "second")["loaded"] == "16"
    # Another prompt and another block size share nothing, and say why.
    other = python_server(terraced, "--role", "second", "--prompt", 3, code=1)
    assert figures(other, "second")["reason"] == "cold"
    other = python_server(terraced, "--role", "first", "--prompt", 1, "--block-bytes", 4096)
    assert figures(other, "first")["reason"] in ("layout_differs", "model_differs", "hash_differs")


def test_a_longer_prompt_loads_what_is_there(terraced, c_server):
    python_server(terraced, "--role", "first", "--blocks", 5)
    longer = figures(run(c_server, "--socket", terraced.engine_socket, "--role", "first", "--blocks", 9),
                     "first")
    assert (longer["loaded"], longer["stored"], longer["wrong"]) == ("5", "4", "0")


def test_without_a_daemon_they_say_so(folder, c_server):
    output = run(sys.executable, PYTHON_SERVER, "--socket", folder / "none.sock", "--role", "first", code=2)
    assert "UNAVAILABLE" in output and "Traceback" not in output
    output = run(c_server, "--socket", folder / "none.sock", "--role", "first", code=2)
    assert "UNAVAILABLE" in output


def test_a_tenant_with_a_token(folder, c_server):
    token = folder / "token"
    token.write_text("open-sesame\n")
    token.chmod(0o600)
    config = folder / "terraced.yaml"
    config.write_text(f"tenants:\n  - name: default\n  - name: research\n    token_file: {token}\n")
    daemon = Terraced(folder, "--config", config)
    try:
        tenant = ["--tenant", "research", "--token"]
        check_both(python_server(daemon, *tenant, "open-sesame"))
        output = python_server(daemon, "--role", "first", *tenant, "guess", code=2)
        assert "PERMISSION_DENIED" in output
        c_run = [c_server, "--socket", daemon.engine_socket, "--role", "second"]
        assert figures(run(*c_run, *tenant, "open-sesame"), "second")["loaded"] == "16"
        assert "PERMISSION_DENIED" in run(*c_run, *tenant, "guess", code=2)
        # The same key space of another tenant is another one.
        assert figures(run(*c_run, code=1), "second")["loaded"] == "0"
    finally:
        assert daemon.stop()[0] == 0


def raw_call(channel, method, request):
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    return call(request, timeout=10)


def test_health_and_reflection(terraced):
    with grpc.insecure_channel(f"unix:{terraced.grpc_socket}") as channel:
        for service in (b"", b"terrace.v1.CacheService"):
            request = b"\x0a" + bytes([len(service)]) + service if service else b""
            answer = raw_call(channel, "/grpc.health.v1.Health/Check", request)
            assert answer == b"\x08\x01", service  # status: SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            raw_call(channel, "/grpc.health.v1.Health/Check", b"\x0a\x04none")
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        stream = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=bytes, response_deserializer=bytes)
        answer = next(stream(iter([b"\x3a\x01*"]), timeout=10))  # list_services
        for name in (b"terrace.v1.CacheService", b"terrace.v1.AdminService", b"grpc.health.v1.Health"):
            assert name in answer, name


def test_stops_cleanly_under_load(terraced):
    """SIGTERM while servers load and store: exit code 0, soon, and no wrong byte on the way."""
    outputs, enough = [], threading.Event()

    def serve(prompt):
        while True:
            done = subprocess.run(
                [sys.executable, PYTHON_SERVER, "--socket", terraced.grpc_socket, "--role", "first",
                 "--prompt", str(prompt)], capture_output=True, text=True, timeout=120)
            outputs.append(done)
            if done.returncode != 0:
                return
            if len(outputs) >= 4:
                enough.set()

    servers = [threading.Thread(target=serve, args=(prompt,)) for prompt in (1, 2)]
    for server in servers:
        server.start()
    assert enough.wait(timeout=100)
    code, seconds = terraced.stop()
    for server in servers:
        server.join()
    assert code == 0
    assert seconds < STOP_S
    for done in outputs:
        assert "wrong=0" in done.stdout or done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not pathlib.Path(terraced.grpc_socket).exists()


def test_the_quick_starts_synthetic_demonstration(terraced):
    """It has the C structs once more, without the plugin: they must be those of terrace.h."""
    done = subprocess.run([sys.executable, ROOT / "scripts/demo_synthetic.py", "--library", BIN.parent / "lib/libterrace.so",
                           "--socket", terraced.engine_socket], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r" yes$", done.stdout, re.MULTILINE)) == 3, done.stdout
