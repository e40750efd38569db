# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests: one fork server, one daemon, models made on the spot."""

import os
import random
import sys
import zlib

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
PLUGIN = os.path.normpath(os.path.join(HERE, "..", "..", "plugins", "vllm"))
for path in (HERE, PLUGIN):
    if path not in sys.path:
        sys.path.insert(0, path)

from terrace_vllm.client import library_candidates
from terrace_vllm.testing.daemon import Daemon, find_binary
from terrace_vllm.testing.forkserver import ForkServer

VOCAB = 512


def attach(daemon, **more):
    """Extra config for an engine at this daemon. A busy machine must not turn hits into misses here."""
    return {"socket": daemon.socket, "lookup_timeout_ms": 5000, **more}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than half a minute")
    config.addinivalue_line("markers", "gpu: needs a GPU; skipped without one")


@pytest.fixture(scope="session")
def binaries():
    """The build under test. Its absence is a failure, not a skip: nothing would be tested."""
    terraced, library = find_binary("terraced"), library_candidates()[0]
    for path in (terraced, library):
        if os.sep not in path or not os.path.exists(path):
            pytest.fail(f"{path} is not built: scripts/build.sh release terraced terrace")
    return terraced, library


@pytest.fixture(scope="session")
def server(tmp_path_factory, binaries):
    log = tmp_path_factory.mktemp("engines") / "engines.log"
    with ForkServer(log=str(log), path=[HERE], environment={"VLLM_LOGGING_LEVEL": "INFO"}) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def shared_daemon(binaries):
    with Daemon(budget="1GiB") as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon):
    """A daemon that is up. Tests that harm one make their own with `own_daemon`."""
    return shared_daemon


@pytest.fixture
def own_daemon(binaries):
    daemon = Daemon(budget="256MiB")
    yield daemon
    daemon.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory, server):
    """models(name, seed=..., **shape): the directory of a model, made at its first use."""
    folder = tmp_path_factory.mktemp("models")
    made = {}

    def make(name="base", **kwargs):
        if name not in made:
            engine = server.bare()
            made[name] = engine.call("engine_side:make_model", str(folder / name), **kwargs)
            engine.close()
        return made[name]

    return make


@pytest.fixture
def prompts(request):
    """prompts(n, ...): one list of random tokens per length; different in every test."""
    rng = random.Random(zlib.crc32(request.node.nodeid.encode()))

    def make(*lengths):
        return [[rng.randrange(3, VOCAB) for _ in range(n)] for n in lengths]

    return make


@pytest.fixture
def engine(server, daemon):
    """engine(model, **options): an engine attached to the daemon; connector=None for plain vLLM."""
    started = []

    def start(model, connector=(), **options):
        if connector == ():
            connector = attach(daemon)
        made = server.engine(model, connector=connector, before=["engine_side:watch"], **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the engines said last."""
    report = (yield).get_result()
    server = item.funcargs.get("server") if hasattr(item, "funcargs") else None
    if report.when == "call" and report.failed and server is not None:
        with open(server.log, encoding="utf-8", errors="replace") as log:
            lines = [line for line in log if "terrace" in line or "Error" in line]
        report.sections.append(("engines' log (terrace and errors)", "".join(lines[-40:])))
