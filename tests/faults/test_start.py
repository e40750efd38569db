# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What stands in the way of a start: another daemon, a squatted socket, what a dead one left."""

import os
import socket
import subprocess

import pytest

import rawsocket
from faultlib import Checked, eventually
from terrace_vllm.testing.daemon import find_binary


def run_terraced(run_dir, *arguments):
    """Runs it to its end; it must not stay up."""
    return subprocess.run(
        [find_binary("terraced"), "--run-dir", str(run_dir), "--http-listen", "", "--host-budget", "128MiB",
         "--host-memory-dir", "", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
        env={k: v for k, v in os.environ.items() if not k.startswith("TERRACE_")}, check=False)


def test_second_daemon_is_refused_and_names_the_first(make_daemon):
    daemon = make_daemon()
    run_dir = os.path.dirname(daemon.socket)
    client = Checked(daemon.socket)
    client.wait_ready()
    client.store([1])
    for _ in range(5):
        second = run_terraced(run_dir)
        assert second.returncode == 3, second.stderr
        assert str(daemon.pid) in second.stderr, second.stderr
        assert run_dir in second.stderr
    assert client.get([1]) == 1, "the first one was disturbed"
    pid = daemon.pid
    daemon.kill()
    # What a killed daemon leaves (lock file with its pid, sockets) is in nobody's way.
    assert os.path.exists(daemon.socket)
    daemon.start()
    assert daemon.pid != pid
    eventually(lambda: client.client.is_ready() and client.store([1]) == [0], what="a store at the new daemon")
    client.close()


def test_eight_daemons_at_once_one_wins(tmp_path):
    started = [subprocess.Popen(
        [find_binary("terraced"), "--run-dir", str(tmp_path / "run"), "--http-listen", "", "--host-budget",
         "128MiB", "--host-prefault", "false", "--host-memory-dir", ""], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL) for _ in range(8)]
    try:
        eventually(lambda: sum(p.poll() is None for p in started) == 1, what="the others' end")
        assert sorted(p.returncode for p in started if p.poll() is not None) == [3] * 7
        connection = eventually(lambda: try_connect(str(tmp_path / "run" / "engine.sock")), what="the winner's socket")
        assert rawsocket.ping(connection)
    finally:
        for process in started:
            process.terminate()
        codes = [process.wait(20) for process in started]
    assert codes.count(0) == 1


def try_connect(path):
    try:
        return rawsocket.connect(path)
    except OSError:
        return None


def squat_file(path):
    path.write_text("precious")


def squat_directory(path):
    path.mkdir()


def squat_symlink(path):
    (path.parent / "target").write_text("precious")
    path.symlink_to(path.parent / "target")


def squat_dangling_symlink(path):
    path.symlink_to(path.parent / "made-by-terraced")


SQUATTERS = [squat_file, squat_directory, squat_symlink, squat_dangling_symlink]


# A plain file of our own is what the lock is: that one is no squatter.
@pytest.mark.parametrize("name,squat", [
    (name, squat) for name in ("engine.sock", "grpc.sock", "terraced.lock") for squat in SQUATTERS
    if (name, squat) != ("terraced.lock", squat_file)])
def test_squatted_path_is_left_alone(tmp_path, name, squat):
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o750)
    path = run_dir / name
    squat(path)
    before = os.lstat(path)
    ended = run_terraced(run_dir)
    assert ended.returncode == 1, ended.stderr
    assert str(path) in ended.stderr, ended.stderr
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert not (run_dir / "made-by-terraced").exists()
    if squat in (squat_file, squat_symlink):
        assert path.read_text() == "precious"


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_live_foreign_socket_is_left_alone(tmp_path, kind):
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX, kind) as foreign:
        foreign.bind(str(run_dir / "engine.sock"))
        if kind != socket.SOCK_DGRAM:
            foreign.listen()
        inode = os.lstat(run_dir / "engine.sock").st_ino
        ended = run_terraced(run_dir)
        assert ended.returncode == 1, ended.stderr
        assert str(run_dir / "engine.sock") in ended.stderr
        assert os.lstat(run_dir / "engine.sock").st_ino == inode


def test_run_dir_that_is_no_directory_of_ours_is_refused(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").write_text("precious")
    for name in ("link", "file"):
        ended = run_terraced(tmp_path / name)
        assert ended.returncode in (1, 2), ended.stderr
        assert name in ended.stderr
    assert os.listdir(target) == []
