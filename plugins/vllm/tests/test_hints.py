# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Retention hints of requests: what is understood, and that wrong input changes nothing and raises nothing."""

import types

import pytest
from terrace_vllm.client import Retention
from terrace_vllm.hints import retention_of


def request(terrace=None, priority=0, **params):
    if terrace is not None:
        params["terrace"] = terrace
    return types.SimpleNamespace(kv_transfer_params=params or None, priority=priority)


@pytest.mark.parametrize("hints, expected", [
    ({"pin_s": 60}, Retention(pin_ms=60_000)),
    ({"reuse_after_s": 0.0001}, Retention(reuse_after_ms=1)),
    ({"pin_s": 3600, "reuse_after_s": 1.5, "done": True, "priority": 7}, Retention(1500, 3_600_000, True, 7)),
    ({"done": True}, Retention(done=True)),
    ({}, None), ({"pin_s": 0, "done": False, "priority": 0}, None),
])
def test_what_is_understood(hints, expected):
    assert retention_of(request(hints)) == expected


@pytest.mark.parametrize("hints", [
    [], "pin", 3, True, {"pin": 60}, {"pin_s": "60"}, {"pin_s": True}, {"pin_s": -1}, {"pin_s": 3601},
    {"pin_s": float("nan")}, {"pin_s": float("inf")}, {"pin_s": None}, {"pin_s": [1]}, {"done": 1},
    {"done": "yes"}, {"done": None}, {"priority": 8}, {"priority": -1}, {"priority": 1.0},
    {"priority": True}, {"priority": 10**30}, {"pin_s": 10**400}, {3: 4}, {"pin_s": 1, "x" * 10_000: 1},
])
def test_wrong_hints_are_ignored_as_a_whole(hints):
    assert retention_of(request(hints)) is None
    if isinstance(hints, dict):
        assert retention_of(request({**hints, "reuse_after_s": 5})) is None


@pytest.mark.parametrize("params", [None, 3, "terrace", ["terrace"], {}, {"other": {"pin_s": 60}}])
def test_other_transfer_parameters_are_not_ours(params):
    assert retention_of(types.SimpleNamespace(kv_transfer_params=params)) is None
    assert retention_of(types.SimpleNamespace()) is None


@pytest.mark.parametrize("priority, expected", [
    (0, None), (5, None), (-1, Retention(priority=1)), (-100, Retention(priority=7)), (None, None),
    ("-3", None),
])
def test_urgent_requests_keep_their_blocks(priority, expected):
    assert retention_of(request(priority=priority)) == expected


def test_a_named_priority_counts_more_than_the_schedulers():
    assert retention_of(request({"priority": 2}, priority=-6)).priority == 2
    assert retention_of(request({"pin_s": 1}, priority=-6)) == Retention(pin_ms=1000, priority=6)
    assert retention_of(request({"priority": 9}, priority=-6)) == Retention(priority=6)
