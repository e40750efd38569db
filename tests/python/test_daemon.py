# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""terraced as its operator meets it: start, end, refusals, pages, log."""

import json
import os
import signal
import socket
import stat
import subprocess
import threading

import pytest

import exposition
from running import BIN, CLEAN, ROOT, chain, libterrace, wait_until


def terraced(*arguments, environment=None):
    return subprocess.run([BIN / "terraced", *arguments], capture_output=True, text=True, timeout=60,
                          env={**CLEAN, **(environment or {})})


def listening_tcp(pid):
    """Local addresses on which a process listens, as /proc/net/tcp writes them."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{name}")
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as lines:
            rows = [line.split() for line in lines][1:]
        found += [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    return found


def test_version():
    done = terraced("--version")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("terraced 0.")
    assert [line.split()[0] for line in lines[1:]] == ["commit", "compiler", "build", "cuda"]


def test_pages(daemon):
    assert daemon.http("/healthz") == (200, "ok\n")
    assert daemon.http("/readyz") == (200, "ready\n")
    status, text = daemon.http("/")
    assert status == 200 and f"pid {daemon.process.pid}" in text and "host " in text
    assert daemon.http("/nothing")[0] == 404


def test_metrics_and_their_document_are_the_same(daemon_with_disk):
    status, text = daemon_with_disk.http("/metrics")
    assert status == 200
    families = exposition.parse(text)
    metrics, values = exposition.exported(families)
    documented_metrics, documented_values = exposition.documented((ROOT / "docs/metrics.md").read_text())
    hint = "curl -s .../metrics | python3 tests/python/exposition.py prints the tables"
    assert metrics == documented_metrics, hint
    assert values == documented_values, hint
    for name, family in families.items():
        assert name.startswith(("terrace_", "process_")) and family.text
        assert (family.kind == "counter") == name.endswith("_total"), name


def test_no_series_appears_later(daemon, connect):
    """Every label set is there before anything happened: rates need the first zero."""
    def names():
        return {key for family in exposition.parse(daemon.http("/metrics")[1]).values()
                for key in family.series}

    before = names()
    client = connect(daemon)
    assert client.store(chain("a", 8)) == ["none"] * 8
    assert client.lookup(chain("a", 8) + chain("b", 1)) == (8, "cold")
    with pytest.raises(libterrace.TerraceError):
        connect(daemon, tenant="nobody")
    assert names() == before


def test_counters_count(daemon, connect):
    client = connect(daemon)
    client.store(chain("a", 4))
    client.lookup(chain("a", 4) + chain("b", 2))
    families = exposition.parse(daemon.http("/metrics")[1])

    def value(name, **labels):
        return families[name].series[name, tuple(labels.items())]

    assert value("terrace_lookup_blocks_total", tenant="default") >= 6
    assert value("terrace_hit_blocks_total", tier="host", tenant="default") == 4
    assert value("terrace_miss_blocks_total", reason="cold", tenant="default") >= 1
    assert value("terrace_store_blocks_total", reason="none", tenant="default") == 4
    assert value("terrace_tier_blocks", tier="host") == 4
    assert value("terrace_budget_bytes") == 256 << 20


def test_a_second_daemon_is_refused_and_names_the_holder(start):
    first = start()
    second = start(is_expected_to_start=False)
    assert second.wait() == 3
    assert f"held by another terraced, pid {first.process.pid}" in second.log()
    assert first.http("/readyz")[0] == 200


def test_a_killed_daemon_leaves_nothing_in_the_way(start, connect):
    start().stop(signal.SIGKILL)
    second = start()
    assert connect(second).store(chain("a", 1)) == ["none"]


def test_sigterm_ends_cleanly_and_leaves_no_sockets(start, room):
    daemon = start()
    assert daemon.stop() == 0
    assert "event=stopping signal=SIGTERM" in daemon.log() and "event=stopped" in daemon.log()
    assert os.listdir(room / "run") == ["terraced.lock"]


def test_sigterm_under_load_drains(start, connect):
    daemon = start()
    client = connect(daemon)
    stored, ending = [], threading.Event()

    def work():
        i = 0
        while not ending.is_set():
            try:
                stored.append(client.store(chain(f"load {i}", 8)))
            except libterrace.TerraceError:
                return  # the daemon went away
            i += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: len(stored) > 5, 30, "stores are under way")
        assert daemon.stop() == 0, daemon.log()
    finally:
        ending.set()
        worker.join()
    reasons = {reason for batch in stored for reason in batch}
    assert "none" in reasons and reasons <= {"none", "unavailable", "cancelled", "overload"}


def test_a_second_signal_ends_at_once(start):
    daemon = start()
    daemon.process.send_signal(signal.SIGSTOP)  # so that both are waiting when it goes on
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.send_signal(signal.SIGCONT)
    assert daemon.wait() == 1
    assert "event=stopped_at_once" in daemon.log()


def test_sighup_changes_nothing(start):
    daemon = start()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "sighup_ignored" in daemon.log(), 10, "the signal is noticed")
    assert daemon.http("/readyz")[0] == 200


def test_wrong_configuration_is_told_before_anything_is_touched(room):
    done = terraced("--run-dir", str(room / "run"), "--set", "host.bugdet=1GiB")
    assert done.returncode == 2 and 'did you mean "host.budget"?' in done.stderr
    assert not (room / "run").exists()
    assert terraced("--no-such-flag").returncode == 2
    assert terraced("--set", "nonsense").returncode == 2
    assert terraced(environment={"TERRACE_HOST_BUDGE": "1GiB"}).returncode == 2
    assert terraced("--config", str(room / "absent.yaml")).returncode == 2


def test_config_commands(room):
    file = room / "terraced.yaml"
    file.write_text("host:\n  budget: 128MiB\nlog: {format: json}\n")
    done = terraced("config", "check", "--config", str(file))
    assert (done.returncode, done.stdout) == (0, "ok\n")
    done = terraced("config", "print", str(file), "--set", "log.level=debug",
                    environment={"TERRACE_HOST_STORE_THREADS": "3"})
    assert done.returncode == 0
    for line in ("budget: 128MiB", "format: json", "level: debug", "store_threads: 3"):
        assert line in done.stdout
    file.write_text("host:\n  budget: 128MiB\n  prefalt: true\n")
    done = terraced("config", "check", str(file))
    assert done.returncode == 2
    assert f'{file}:3: unknown key "host.prefalt"; did you mean "host.prefault"?' in done.stderr
    defaults = terraced("config", "defaults")
    file.write_text(defaults.stdout)
    assert terraced("config", "check", str(file)).returncode == 0


def test_a_taken_port_is_named(start, room):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = terraced("--run-dir", str(room / "run"), "--host-budget", "256MiB",
                        "--http-listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"http.listen: cannot listen on 127.0.0.1:{port}" in done.stderr


def test_a_start_that_fails_late_leaves_no_new_files(room):
    kept = room / "kept"
    arguments = ["--run-dir", str(room / "run"), "--host-budget", "256MiB", "--host-memory-dir="]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments += ["--http-listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        kept.write_bytes(bytes(64 << 20))  # there before: it stays, whatever becomes of the start
        done = terraced(*arguments, "--nvme-devices", f"{room}/new=64MiB,{kept}=64MiB")
    assert done.returncode == 1 and "http.listen" in done.stderr
    assert not (room / "new").exists()
    assert kept.stat().st_size == 64 << 20


def test_an_empty_value_of_a_flag_is_that(room):
    done = terraced("--host-memory-dir=", "--host-budget=128MiB", "config", "print")
    assert done.returncode == 0, done.stderr
    assert 'memory_dir: ""' in done.stdout and "budget: 128MiB" in done.stdout
    done = terraced("config", "print", "--host-budget=")
    assert done.returncode == 2 and "host.budget" in done.stderr


@pytest.mark.parametrize("name", ["engine.sock", "grpc.sock"])
def test_a_squatted_socket_path_is_refused(room, name):
    (room / "run").mkdir(mode=0o750)
    (room / "run" / name).write_text("precious")
    done = terraced("--run-dir", str(room / "run"), "--host-budget", "256MiB", "--http-listen", "")
    assert done.returncode == 1 and name in done.stderr
    assert (room / "run" / name).read_text() == "precious"


def test_a_symlink_as_run_dir_is_refused(room):
    (room / "real").mkdir(mode=0o750)
    (room / "run").symlink_to(room / "real")
    done = terraced("--run-dir", str(room / "run"), "--host-budget", "256MiB", "--http-listen", "")
    assert done.returncode == 1 and "symlink" in done.stderr
    assert os.listdir(room / "real") == []


def test_modes_of_directory_and_sockets(start, room):
    start("--engine-socket-mode", "0600")
    assert stat.S_IMODE(os.stat(room / "run").st_mode) == 0o750
    for name in ("engine.sock", "grpc.sock"):
        assert stat.S_IMODE(os.stat(room / "run" / name).st_mode) == 0o600


def test_listens_on_loopback_only(daemon):
    assert [address.split(":")[0] for address in listening_tcp(daemon.process.pid)] == ["0100007F"]


def test_without_http_nothing_listens_on_tcp(start):
    daemon = start("--http-listen", "")
    assert listening_tcp(daemon.process.pid) == []


def test_the_service_manager_is_told(start, room):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(room / "notify"))
        manager.settimeout(30)
        daemon = start(environment={"NOTIFY_SOCKET": str(room / "notify")})
        assert manager.recv(100) == b"READY=1"
        assert daemon.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_json_log(start, connect):
    daemon = start("--log-format", "json", "--log-level", "debug")
    connect(daemon, name='evil "name"\n\x1b[31m').store(chain("a", 1))
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("ready", "stopped")] == ["ready", "stopped"]
    ready = next(line for line in lines if line["event"] == "ready")
    assert ready["pid"] == daemon.process.pid and ready["budget_bytes"] == 256 << 20
    assert all(line["ts"].endswith("Z") and line["level"] for line in lines)


def test_tokens_are_asked_for_and_never_shown(start, connect, room):
    canary = "c4n4ry-t0ken"
    (room / "token").write_text(canary + "\n")
    (room / "token").chmod(0o600)
    tenants = f"[{{name: default}}, {{name: red, token_file: {room / 'token'}}}]"
    daemon = start("--set", f"tenants={tenants}", "--log-level", "debug")
    client = connect(daemon, tenant="red", token=canary)
    assert client.store(chain("a", 1)) == ["none"]
    for token in (None, "wrong", canary + "x"):
        with pytest.raises(libterrace.TerraceError) as error:
            connect(daemon, tenant="red", token=token)
        assert error.value.status == 7 and canary not in str(error.value)  # PERMISSION_DENIED
    assert connect(daemon).lookup(chain("a", 1))[0] == 0, "another tenant sees nothing of it"
    shown = [daemon.log(), daemon.http("/metrics")[1], daemon.http("/")[1],
             terraced("config", "print", "--set", f"tenants={tenants}").stdout,
             subprocess.run([BIN / "terracectl", "--socket", daemon.grpc_socket, "-o", "json", "status"],
                            capture_output=True, text=True, check=True, env=CLEAN).stdout]
    assert all(canary not in text for text in shown)
    rejected = exposition.parse(shown[1])["terrace_rejected_total"]
    assert rejected.series["terrace_rejected_total", (("reason", "auth"), ("transport", "engine"))] >= 3


def test_disks_may_be_written_as_a_list(start, room):
    """The form of docs/configuration.md and docs/operations.md."""
    config = room / "terraced.yaml"
    config.write_text(f"nvme:\n  devices: [{room}/one=64MiB, {room}/two=64MiB]\n")
    daemon = start("--config", config)
    text = daemon.http("/metrics")[1]
    assert f'terrace_io_errors_total{{device="{room}/one",op="read"}}' in text
    assert f'terrace_io_errors_total{{device="{room}/two",op="read"}}' in text
