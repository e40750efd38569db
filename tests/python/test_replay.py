# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""terracectl replay: what it refuses, and before it works for long; and live against a real terraced."""

import json
import resource
import subprocess

import pytest

from running import BIN, CLEAN, ROOT

TRACE = ROOT / "bench/data/conversation_trace.jsonl.gz"


def replay(*arguments, code=0, memory_limit=None):
    """Standard output and error; `code` is the exit code it must have."""
    limit = memory_limit and (lambda: resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit)))
    done = subprocess.run([BIN / "terracectl", "replay", *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, env=CLEAN, preexec_fn=limit)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--admission", "foo"], "--admission"),
    (["--admission", "all"], "--admission requires --nvme-blocks"),
    (["--write-bytes-per-day", "1GB"], "--write-bytes-per-day requires --nvme-blocks"),
    (["--speed", "2"], "--speed requires --live"),
    (["--requests", "2"], "--requests requires --live"),
    (["--live", "--policy", "lru"], "--policy excludes --live"),
    (["--live", "--plot", "x.svg"], "--plot excludes --live"),
    (["--plot", "x.png"], "must end in .svg"),
    (["--policy", "all,lru"], "all stands for every policy"),
    (["--block-bytes", "2kb2"], "a size such as"),
])
def test_options_that_cannot_be(arguments, message):
    assert message in replay(TRACE, *arguments, code=2)[1]


def test_options_are_looked_at_before_the_trace(room):
    for arguments in (["--plot", room / "none/x.svg"], ["--policy", "lry"], ["--hints", "loud"]):
        error = replay(room / "no_trace", *arguments, code=2)[1]
        assert "no_trace" not in error, error
    assert "cannot open" in replay(room / "no_trace", "--plot", room / "x.svg", code=2)[1]
    assert not (room / "x.svg").exists()


def test_sizes_are_read_as_terraced_reads_them(room):
    trace = room / "trace"
    trace.write_text("timestamp_ms,input_length,output_length,hash_ids\n0,512,0,1\n1,512,0,1\n")
    for text, size in (("10KB", 10_000), ("10KiB", 10_240), ("10000", 10_000)):
        output, _ = replay(trace, "-o", "json", "--policy", "lru", "--capacity-blocks", 10, "--block-bytes", text,
                           "--plot", room / "x.svg")
        assert json.loads(output)["loaded_bytes"] == size
    assert (room / "x.svg").read_text().startswith("<svg")


def test_live(daemon):
    live = ["--live", "--socket", daemon.engine_socket, "--requests", "20", "--speed", "100000"]
    output, _ = replay(TRACE, *live, "--block-bytes", "4KiB", "-o", "json")
    result = json.loads(output)
    assert result["requests"] == 20 and result["wrong_blocks"] == 0 and result["token_hit_rate"] > 0
    assert result["stored_blocks"] + result["refused_blocks"] == round(
        result["references"] * (1 - result["block_hit_rate"]))
    documented = (ROOT / "docs/replay.md").read_text()
    missing = [field for field in result if f"`{field}`" not in documented and not field.endswith("_p99")]
    assert not missing, "docs/replay.md names every field"


def test_live_memory_is_bounded(daemon):
    live = [TRACE, "--live", "--socket", daemon.engine_socket, "--requests", "10"]
    for block_bytes in ("1GiB", "4GiB"):
        assert "longest request has" in replay(*live, "--block-bytes", block_bytes, code=2)[1]
    # Within the bound, but this machine does not have it: a message, not an abort.
    error = replay(*live, "--block-bytes", "64MiB", code=2, memory_limit=2 << 30)[1]
    assert "not enough memory" in error
