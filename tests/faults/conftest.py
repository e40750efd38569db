# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Faults brought about from outside, against the real terraced and the real libterrace."""

import multiprocessing
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
PLUGIN = os.path.normpath(os.path.join(HERE, "..", "..", "plugins", "vllm"))
for path in (HERE, PLUGIN):
    if path not in sys.path:
        sys.path.insert(0, path)

from faultlib import eventually
from terrace_vllm.client import library_candidates
from terrace_vllm.testing.daemon import Daemon, find_binary


@pytest.fixture(scope="session", autouse=True)
def binaries():
    """The build under test. Its absence is a failure, not a skip: nothing would be tested."""
    terraced, library = find_binary("terraced"), library_candidates()[0]
    for path in (terraced, library):
        if os.sep not in path or not os.path.exists(path):
            pytest.fail(f"{path} is not built: scripts/build.sh release terraced terrace")
    return terraced, library


@pytest.fixture
def make_daemon():
    """make_daemon(budget=..., warm=..., flag=...): a daemon that is up, of this test alone."""
    made = []

    def make(budget="192MiB", warm=False, **flags):
        daemon = Daemon(budget=budget, warm=warm,
                        **{"host_prefault": "false", "engine_staging_bytes": "1MiB", **flags})
        made.append(daemon)
        daemon.start()
        eventually(lambda: "event=ready" in daemon.words(), what="the daemon's readiness")
        return daemon

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture(scope="session")
def processes():
    """Starts processes from a server without threads: cheap, and no lock is inherited held."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faultlib"])
    return context
