# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Settings: what is understood, and that wrong input is a warning and never an exception."""

import pytest
from terrace_vllm.config import Settings


def test_known_keys_are_taken():
    settings, warnings = Settings.from_extra_config(
        {"socket": "/s", "tenant": "a", "lookup_timeout_ms": 7, "enabled": False})
    assert warnings == []
    assert (settings.socket, settings.tenant) == ("/s", "a")
    assert (settings.lookup_timeout_ms, settings.enabled) == (7, False)


def test_unknown_key_names_the_nearest():
    settings, warnings = Settings.from_extra_config({"sokcet": "/s"})
    assert settings == Settings()
    assert len(warnings) == 1 and "'sokcet'" in warnings[0] and "'socket'" in warnings[0]


def test_key_like_no_other_lists_all():
    _, warnings = Settings.from_extra_config({"zzzzzz": 1})
    assert "lookup_timeout_ms" in warnings[0]


@pytest.mark.parametrize("value, expected", [("false", False), ("TRUE", True), (True, True), ("0", False)])
def test_truth_from_command_line_text(value, expected):
    settings, warnings = Settings.from_extra_config({"enabled": value})
    assert warnings == [] and settings.enabled is expected


@pytest.mark.parametrize("extra", [
    {"lookup_timeout_ms": -1}, {"lookup_timeout_ms": 2**32}, {"lookup_timeout_ms": "soon"},
    {"lookup_timeout_ms": None}, {"lookup_timeout_ms": 1.5}, {"lookup_timeout_ms": True},
    {"enabled": "maybe"}, {"socket": 3}, {"socket": ["/s"]}, {"load_failure_policy": "panic"},
    {3: 4}, {None: None}, {"": ""},
])
def test_wrong_values_keep_the_default(extra):
    settings, warnings = Settings.from_extra_config(extra)
    assert settings == Settings()
    assert len(warnings) == 1


@pytest.mark.parametrize("extra", [7, "x", ["socket"], object()])
def test_not_a_map(extra):
    settings, warnings = Settings.from_extra_config(extra)
    assert settings == Settings() and len(warnings) == 1


def test_token_is_the_first_line(tmp_path):
    (tmp_path / "token").write_text("secret\r\nmore\n")
    settings, _ = Settings.from_extra_config({"token_file": str(tmp_path / "token")})
    assert settings.token() == "secret"
    assert Settings().token() is None
