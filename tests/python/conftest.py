# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
import pathlib
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from running import CacheClient, Terraced  # noqa: E402


@pytest.fixture
def room():
    path = pathlib.Path(tempfile.mkdtemp(prefix="terrace_"))  # short: a socket's path has 107 bytes
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(room):
    """Starts daemons in one directory; all have ended when the test has."""
    daemons = []

    def begin(*arguments, **options):
        daemons.append(Terraced(room, *arguments, **options))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def daemon(start):
    return start()


@pytest.fixture
def daemon_with_disk(start, room):
    return start("--nvme-devices", f"{room}/disk=64MiB")


@pytest.fixture
def connect():
    """Connects clients that are closed when the test has ended."""
    clients = []

    def begin(*arguments, **options):
        clients.append(CacheClient(*arguments, **options))
        return clients[-1]

    yield begin
    for client in clients:
        client.close()
