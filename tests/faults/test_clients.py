# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Clients that are killed, paused, or left without their daemon."""

import os
import random
import signal
import threading
import time

import faultlib
from faultlib import REASONS, Checked, eventually, stopped

KILLS = 200


def held(daemon):
    """What clients hold, as the daemon counts it."""
    metrics = daemon.metrics()
    return {name: metrics[name] for name in ("terrace_engines_connected", "terrace_sessions", "terrace_leases")} | {
        "pinned": metrics['terrace_tier_pinned_bytes{tier="host"}']}


def nothing_held(daemon):
    return not any(held(daemon).values())


def fill(daemon, first, n):
    client = Checked(daemon.socket)
    client.wait_ready()
    for at in range(first, first + n, client.n):
        reasons = client.store(range(at, at + client.n))
        assert set(reasons) <= {REASONS["none"], REASONS["duplicate"]}, reasons
    client.close()


def test_clients_killed_at_random_instants_leave_nothing(make_daemon, processes):
    daemon = make_daemon()
    fill(daemon, 10_000, 2400)  # every segment there will be exists from now on
    eventually(lambda: nothing_held(daemon), what="the filling client's end")
    budget = daemon.metrics()["terrace_budget_used_bytes"]
    rng = random.Random(1)
    operations = 0
    for kill in range(KILLS):
        progress = processes.RawArray("Q", 3)
        child = processes.Process(target=faultlib.loop, args=(daemon.socket, kill, progress))
        child.start()
        eventually(lambda: progress[0] >= 1 or not child.is_alive(), what="the child's first operation")
        threading.Event().wait(rng.random() * 0.02)  # the random instant is what is tested
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "a client saw wrong bytes, or ended by itself"
        end = time.monotonic() + 1
        while not nothing_held(daemon):
            assert time.monotonic() < end, f"a second after kill {kill} this is still held: {held(daemon)}"
        operations += progress[0]
    assert operations > KILLS
    assert daemon.metrics()['terrace_leases_reclaimed_total{cause="session_end"}'] > 5, "none was hit holding leases"
    # Staging memory (1 MiB each) came back, too.
    assert abs(daemon.metrics()["terrace_budget_used_bytes"] - budget) < 512 << 10
    client = Checked(daemon.socket)
    client.wait_ready()
    assert client.store([1]) in ([REASONS["none"]], [REASONS["duplicate"]])
    assert client.get([1]) == 1
    client.close()


def test_client_paused_beyond_its_lease_sees_stale_never_other_bytes(make_daemon, processes):
    daemon = make_daemon(budget="128MiB", host_lease_max_age="1s", host_eviction_policy="lru")
    numbers = list(range(100))
    fill(daemon, 0, 112)
    ours, theirs = processes.Pipe()
    child = processes.Process(target=faultlib.sleeper, args=(daemon.socket, numbers, theirs))
    child.start()
    assert ours.poll(20)
    n_here, first = ours.recv()
    assert n_here == len(numbers) and set(first) == {REASONS["none"]}
    os.kill(child.pid, signal.SIGSTOP)
    eventually(lambda: stopped(child.pid), what="the child's stop")
    eventually(lambda: daemon.metrics()["terrace_leases_expired_total"] >= 1, what="the lease's end")
    fill(daemon, 50_000, 2000)  # 125 MiB through a cache of 77
    os.kill(child.pid, signal.SIGCONT)
    ours.send("read again")
    assert ours.poll(20), f"no answer; the child's exit code is {child.exitcode}"
    second = ours.recv()
    assert set(second) == {REASONS["stale"]}, [list(REASONS)[reason] for reason in set(second)]
    ours.send("end")
    child.join(10)
    assert child.exitcode == 0


def test_daemon_killed_and_restarted_under_eight_clients(make_daemon, processes):
    daemon = make_daemon()
    children = []
    for seed in range(8):
        progress = processes.RawArray("Q", 3)
        child = processes.Process(target=faultlib.loop, args=(daemon.socket, seed, progress))
        child.start()
        children.append((child, progress))
    try:
        for restart in range(1, 6):
            served = [progress[1] for _, progress in children]
            eventually(lambda: all(p[1] > before for (_, p), before in zip(children, served)), 30,
                       f"a hit of every client before restart {restart}")
            daemon.kill()
            operations = [progress[0] for _, progress in children]
            # Without a daemon nobody hangs.
            eventually(lambda: all(p[0] > before + 2 for (_, p), before in zip(children, operations)), 30,
                       "calls that return without a daemon")
            daemon.start()
            eventually(lambda: all(p[2] > restart for _, p in children), 30, "reconnection of every client")
        served = [progress[1] for _, progress in children]
        eventually(lambda: all(p[1] > before for (_, p), before in zip(children, served)), 30,
                   "a hit of every client at the end")
    finally:
        alive = [child.is_alive() for child, _ in children]
        for child, _ in children:
            child.kill()
            child.join()
    assert all(alive), [child.exitcode for child, _ in children]
    eventually(lambda: nothing_held(daemon), what="the end of all that was held")


def test_paused_daemon_blocks_no_call_beyond_its_time(make_daemon):
    daemon = make_daemon()
    client = Checked(daemon.socket, timeout_ms=300)
    client.wait_ready()
    client.store([1, 2, 3])
    assert client.get([1, 2, 3]) == 3
    daemon.pause()
    try:
        eventually(lambda: stopped(daemon.pid), what="the daemon's stop")
        for timeout_us in (20_000, 0):
            start = time.monotonic()
            status, answer = client.lookup([1, 2, 3], timeout_us)
            assert status != 0 and answer.n_here == 0
            assert set(answer.reasons) == {REASONS["unavailable"]}
            assert time.monotonic() - start < (timeout_us / 1e6 or 0.3) + 5, "a paused daemon is waited for"
    finally:
        daemon.resume()
    eventually(lambda: client.client.is_ready() and client.get([1, 2, 3]) == 3, what="a hit after the pause")
    client.close()
    eventually(lambda: nothing_held(daemon), what="the end of leases whose answers came late")


def test_sigterm_under_load_drains_and_ends_well(make_daemon, processes):
    for _ in range(3):
        daemon = make_daemon()
        children = []
        for seed in range(4):
            progress = processes.RawArray("Q", 3)
            child = processes.Process(target=faultlib.loop, args=(daemon.socket, seed, progress))
            child.start()
            children.append((child, progress))
        try:
            eventually(lambda: all(p[1] > 0 for _, p in children), 30, "a hit of every client")
            start = time.monotonic()
            assert daemon.stop() == 0, daemon.words()[-2000:]
            assert time.monotonic() - start < 10
            assert "event=stopped" in daemon.words()
            assert not os.path.exists(daemon.socket)
            operations = [progress[0] for _, progress in children]
            eventually(lambda: all(p[0] > before + 2 for (_, p), before in zip(children, operations)), 30,
                       "calls that return without a daemon")
            assert all(child.is_alive() for child, _ in children)
        finally:
            for child, _ in children:
                child.kill()
                child.join()
