# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Makes the package and the fake client importable from a checkout, and gives each test a clean fake."""

import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
for path in (HERE, os.path.dirname(HERE)):
    if path not in sys.path:
        sys.path.insert(0, path)


@pytest.fixture
def fake(tmp_path):
    """FakeClient's class, holding its blocks in this test's directory."""
    from fake_client import FakeClient

    FakeClient.directory = str(tmp_path / "blocks")
    FakeClient.instances = []
    os.mkdir(FakeClient.directory)
    return FakeClient
