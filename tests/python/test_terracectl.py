# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""terracectl against a real terraced: what it prints, and its exit codes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from running import BIN, BLOCK_BYTES, CLEAN, chain, payload, wait_until


def ctl(daemon, *arguments, code=0, environment=None):
    """Standard output of one run; `code` is the exit code it must have."""
    socket = ["--socket", daemon.grpc_socket] if daemon else []
    done = subprocess.run([BIN / "terracectl", *socket, *arguments], capture_output=True, text=True, timeout=120,
                          env={**CLEAN, **(environment or {})})
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    ctl.stderr = done.stderr
    return done.stdout


def ctl_json(daemon, *arguments, code=0):
    return json.loads(ctl(daemon, "-o", "json", *arguments, code=code))


def on_terminal(arguments, seconds, environment=None, ends=None):
    """Output of a run on a terminal. Sends SIGINT once the regex `ends` was seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.clear()
        os.environ.update({**CLEAN, "TERM": "xterm", **(environment or {})})
        os.execv(BIN / "terracectl", ["terracectl", *arguments])
    output, deadline, interrupted = "", time.monotonic() + seconds, False
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    output += os.read(terminal, 65536).decode()
                except OSError:  # the other end closed
                    break
            if ends and not interrupted and re.search(ends, output, re.DOTALL):
                os.kill(pid, signal.SIGINT)
                interrupted = True
        else:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"did not end: {output!r}")
    finally:
        os.close(terminal)
        status = os.waitpid(pid, 0)[1]
    return output, os.waitstatus_to_exitcode(status)


@pytest.fixture
def filled(daemon, connect):
    """A daemon with 8 blocks, 3 of them leased by a client that is still there."""
    client = connect(daemon, name="engine one")
    assert client.store(chain("a", 8)) == ["none"] * 8
    assert client.lookup(chain("a", 3), keeps_lease=True) == (3, None)
    assert client.lookup(chain("b", 2)) == (0, "cold")
    return daemon


def test_version_and_help():
    assert re.match(r"terracectl 0\.\d+\.\d+\nlibterrace 0\.\d+\.\d+\n", ctl(None, "--version"))
    assert "Exit codes:" in ctl(None, "--help")


def test_status(filled):
    text = ctl(filled, "status")
    assert re.search(r"host .*2\.0 MiB .* 8$", text, re.MULTILINE)
    assert "engine one" in text and "\x1b" not in text
    status = ctl_json(filled, "status")
    assert status["pid"] == filled.process.pid
    assert re.fullmatch("[0-9a-f]{16}", status["epoch"])
    assert status["tiers"][0]["block_count"] == 8
    assert status["tiers"][0]["pinned_bytes"] == 3 * BLOCK_BYTES
    assert status["counters"]["stored_blocks"] == 8
    names = [engine["client_name"] for engine in status["engine_connections"]]
    assert names and set(names) == {"engine one"}
    assert sum(engine["lease_count"] for engine in status["engine_connections"]) == 1


def test_texts_of_clients_do_not_steer_the_terminal(daemon, connect):
    connect(daemon, name="x\x1b[2Jy")
    assert "\x1b" not in ctl(daemon, "status")
    assert ctl_json(daemon, "status")["engine_connections"]


def test_list_and_stat(filled):
    spaces = ctl_json(filled, "ls")["key_spaces"]
    assert len(spaces) == 1 and spaces[0]["resident_blocks"] == 8
    assert spaces[0]["identity"]["model"] == "model" and len(spaces[0]["digest"]) == 64
    number = str(spaces[0]["key_space_id"])
    assert "model" in ctl(filled, "ls")
    blocks = ctl_json(filled, "ls", number)["blocks"]
    assert {block["key"] for block in blocks} == {key.hex() for key in chain("a", 8)}
    ctl(filled, "ls", number, "--limit", "3")
    assert "there are more" in ctl.stderr
    key = chain("a", 1)[0].hex()
    assert key in ctl(filled, "stat", key)
    block = ctl_json(filled, "stat", key)["blocks"][0]
    assert block["payload_bytes"] == BLOCK_BYTES and block["pin_count"] == 1 and block["has_children"]
    ctl(filled, "stat", chain("b", 1)[0].hex(), code=1)
    assert ctl_json(filled, "stat", chain("b", 1)[0].hex(), code=1)["blocks"] == []
    ctl(filled, "stat", "abc", code=2)
    ctl(filled, "ls", "4000", code=1)


def test_reasons_are_the_closed_list(filled):
    reasons = {entry["reason"]: entry for entry in ctl_json(filled, "reasons")["reasons"]}
    assert len(reasons) == 22 and reasons["cold"]["lookup_blocks"] >= 1
    assert all(entry["meaning"] for entry in reasons.values())
    text = ctl(filled, "reasons")
    assert all(re.search(rf"^{name}\s+\d", text, re.MULTILINE) for name in reasons)


def test_flush_needs_a_target_and_a_yes(filled, connect):
    ctl(filled, "flush", "--yes", code=2)
    ctl(filled, "flush", "--all", code=2)
    assert "--yes" in ctl.stderr
    ctl(filled, "flush", "1", "--all", "--yes", code=2)
    assert ctl_json(filled, "status")["tiers"][0]["block_count"] == 8
    number = ctl_json(filled, "ls")["key_spaces"][0]["key_space_id"]
    assert ctl_json(filled, "flush", str(number), "--yes")["flushed_blocks"] == 8
    assert connect(filled).lookup(chain("a", 1)) == (0, "flushed")
    assert "flushed 0 blocks" in ctl(filled, "flush", "--all", "--yes")


def test_verify_finds_a_flipped_bit(filled, connect):
    assert "8 blocks" in ctl(filled, "verify")
    report = ctl_json(filled, "verify")
    assert report["checked_blocks"] == 8 and report["corrupt_blocks"] == 0 and report["done"]
    flip_bit(filled.process.pid, payload(chain("a", 8)[5]))
    report = ctl_json(filled, "verify", code=1)
    assert report["corrupt_blocks"] == 1
    ctl(filled, "stat", chain("a", 8)[5].hex(), code=1)
    assert connect(filled).lookup(chain("a", 8)) == (5, "corrupt")
    assert "all good" in ctl(filled, "verify")
    assert "integrity" in ctl(filled, "doctor", code=1)


def flip_bit(pid, block):
    """Turns one bit of a block in a daemon's memory, as a failing DIMM would. The bytes may still lie in the
    client's staging memory, too."""
    found = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            if "memfd:" not in line or "rw-s" not in line:
                continue
            begin, end = (int(text, 16) for text in line.split()[0].split("-"))
            for start in range(begin, end, 4096):
                memory.seek(start)
                if memory.read(32) == block[:32]:
                    memory.seek(start + 1000)
                    memory.write(bytes([block[1000] ^ 16]))
                    found += 1
    assert found, "the block was not found in the daemon's memory"


def test_top_once(filled):
    text = ctl(filled, "top", "--once")
    assert "LOOKUPS/S" in text and "engine one" in text and "\x1b" not in text
    top = ctl_json(filled, "top", "--once")
    assert top["seconds"] > 0 and top["stored_blocks_per_second"] > 0
    assert top["status"]["pid"] == filled.process.pid


def test_top_is_drawn_anew_and_ends_by_interrupt(filled):
    clear = r"\x1b\[H\x1b\[2J"
    output, code = on_terminal(["--socket", filled.grpc_socket, "top", "--interval", "0.1"], 30,
                               ends=rf"(?:{clear}.*LOOKUPS/S.*){{3}}")
    assert code == 0 and output.count("LOOKUPS/S") >= 3


def test_colour_on_terminals_only(filled):
    arguments = ["--socket", filled.grpc_socket, "status"]
    assert "\x1b[1m" in on_terminal(arguments, 30)[0]
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(arguments, 30, environment)[0]


def test_doctor_with_a_daemon(daemon):
    report = ctl_json(daemon, "doctor")
    findings = {finding["check"]: finding for finding in report["findings"]}
    assert report["problems"] == 0
    for check in ("sealed memory", "engine socket", "grpc socket", "daemon version", "libterrace"):
        assert findings[check]["level"] == "ok", findings[check]
    for check in ("hugepages", "shmem huge pages", "memlock", "descriptors", "io_uring", "shared memory", "vLLM plugin"):
        assert check in findings
    for finding in report["findings"]:
        assert finding["level"] in ("ok", "note", "problem")
        assert finding["level"] == "ok" or finding["fix"] or "kernel has no" in finding["text"]
    assert "no problems" in ctl(daemon, "doctor")


def test_refused_staging_memory_is_shown(start, connect):
    daemon = start("--engine-staging-bytes", "2GiB", "--engine-staging-bytes-max", "2GiB")
    assert "event=staging_is_short" in daemon.log()
    assert "staging" not in ctl(daemon, "status").split("TIER")[0]
    assert connect(daemon).store(chain("a", 1)) == ["budget"]
    assert "staging   refused 1 times" in ctl(daemon, "status")
    findings = {finding["check"]: finding for finding in ctl_json(daemon, "doctor")["findings"]}
    assert findings["staging"]["level"] == "note" and "host.budget" in findings["staging"]["fix"]


def test_doctor_without_a_daemon(room):
    socket = str(room / "grpc.sock")
    text = ctl(None, "--socket", socket, "doctor", code=1)
    assert re.search(r"problem\s+grpc socket\s.*No such file", text) and "mend: systemctl start terraced" in text
    (room / "grpc.sock").write_text("")
    assert "is not a socket" in ctl(None, "--socket", socket, "doctor", code=1)


def test_doctor_looks_at_the_places_of_an_nvme_tier(daemon, room):
    report = ctl_json(daemon, "doctor", "--nvme", str(room))
    finding = next(f for f in report["findings"] if f["check"] == f"nvme {room}")
    assert finding["level"] != "problem" and " free" in finding["text"]
    assert list(room.glob(".terrace-doctor*")) == []
    text = ctl(daemon, "doctor", "--nvme", "/proc", "--nvme", str(room / "missing"), code=1)
    assert re.search(r"problem\s+nvme /proc\s", text) and f"mend: install -d -o terrace -g terrace -m 0700 {room}" in text


def test_doctor_reads_the_plugins_version(daemon, room):
    def python(version):
        program = room / "python"
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
        return str(program)

    version = ctl(None, "--version").split()[1]
    assert f"terrace-vllm {version}" in ctl(daemon, "doctor", "--python", python(version))
    assert "terrace-vllm 9.9.9, but" in ctl(daemon, "doctor", "--python", python("9.9.9"), code=1)
    assert "not installed" in ctl(daemon, "doctor", "--python", "/no/such/python")


def test_bench(daemon, connect):
    client = connect(daemon)
    assert client.store(chain("kept", 4)) == ["none"] * 4
    lines = ctl(daemon, "-o", "json", "bench", "--blocks", "4", "--block-bytes", "1MiB", "--rounds", "3").splitlines()
    figures = {entry["case"]: entry for entry in map(json.loads, lines)}
    assert {"memcpy", "store", "load"} < set(figures)
    assert all(entry["value"] > 0 for entry in figures.values()) and figures["load"]["ratio"] > 0
    assert "OF MEMCPY" in ctl(daemon, "bench", "--blocks", "2", "--block-bytes", "64KiB", "--rounds", "2")
    assert ctl_json(daemon, "status")["tiers"][0]["block_count"] == 4, "what it made is gone, the rest is not"
    wait_until(lambda: ctl_json(daemon, "status")["lease_count"] == 0, 10, "nothing stays leased")
    ctl(daemon, "bench", "--blocks", "4096", "--block-bytes", "1GiB", code=2)
    ctl(daemon, "--engine-socket", "/no/such.sock", "bench", code=4)


def test_exit_codes_without_a_daemon(room):
    for command in (["status"], ["ls"], ["top", "--once"], ["reasons"], ["verify"], ["flush", "--all", "--yes"]):
        ctl(None, "--socket", str(room / "grpc.sock"), *command, code=4)
        assert "no daemon" in ctl.stderr
    for arguments in ([], ["frobnicate"], ["status", "-o", "xml"], ["ls", "zero"], ["ls", "0"], ["stat"],
                      ["top", "--interval", "0"]):
        ctl(None, *arguments, code=2)


def test_a_daemon_that_hangs_is_no_answer(daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        ctl(daemon, "status", code=4)
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("variable", ["TERRACE_GRPC_SOCKET", "TERRACE_RUN_DIR"])
def test_the_socket_from_the_environment(daemon, variable):
    value = {"TERRACE_GRPC_SOCKET": daemon.grpc_socket, "TERRACE_RUN_DIR": str(daemon.run_dir)}[variable]
    status = json.loads(ctl(None, "-o", "json", "status", environment={variable: value}))
    assert status["pid"] == daemon.process.pid
