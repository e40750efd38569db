# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Blocks in host memory outlive the daemon: after kill -9 at any instant, and after a clean end."""

import os
import random
import signal
import subprocess
import threading
import time

import faultlib
from faultlib import REASONS, Checked, eventually, stopped
from terrace_vllm.testing.daemon import find_binary
from test_memory import resident_kib

KILLS = 200
STABLE = range(10_000, 11_200)  # stored once, before; there is room for all and for the loops' blocks


def store_all(client, numbers):
    numbers = list(numbers)
    for at in range(0, len(numbers), client.n):
        reasons = client.store(numbers[at:at + client.n])
        assert set(reasons) <= {REASONS["none"], REASONS["duplicate"]}, reasons


def served(client, numbers):
    """How many are served, with every byte checked."""
    numbers = list(numbers)
    return sum(client.get(numbers[at:at + client.n]) for at in range(0, len(numbers), client.n))


def visible(client, numbers):
    numbers, here = list(numbers), 0
    for at in range(0, len(numbers), 512):
        _, answer = client.lookup(numbers[at:at + 512])
        here += answer.n_here
        client.client.release(answer.lease)
    return here


def recovered(daemon):
    ratios = [value for name, value in daemon.metrics().items() if name.startswith("terrace_recovery_ratio")]
    return ratios and all(ratio == 1 for ratio in ratios)


def restart(daemon, client):
    """Starts it again; returns the seconds from there to the first served hit."""
    began = time.monotonic()
    daemon.start()
    eventually(lambda: client.client.is_ready() and client.get([STABLE[0]]), what="the first hit after the start")
    took = time.monotonic() - began
    eventually(lambda: "event=ready" in daemon.words(), what="the daemon's readiness")
    eventually(lambda: recovered(daemon), what="the recovery's end")
    return took


def flush(daemon):
    subprocess.run([find_binary("terracectl"), "--socket", daemon.grpc_socket, "flush", "--all", "--yes"],
                   check=True, capture_output=True, timeout=30)


def filled(daemon):
    client = Checked(daemon.socket)
    client.wait_ready()
    store_all(client, STABLE)
    assert served(client, STABLE) == len(STABLE)
    return client


def test_killed_and_started_again_every_block_is_served(make_daemon, record_property):
    daemon = make_daemon(warm=True)
    client = filled(daemon)
    for _ in range(3):
        daemon.kill()
        record_property("seconds_to_first_hit", restart(daemon, client))
        assert served(client, STABLE) == len(STABLE), "nothing was in flight"
    assert client.client.stats()["connects"] == 4, "the client came back by itself"
    client.close()


def test_a_clean_restart_keeps_everything(make_daemon):
    daemon = make_daemon(warm=True)
    client = filled(daemon)
    for _ in range(3):
        assert daemon.stop() == 0
        restart(daemon, client)
        assert served(client, STABLE) >= 0.99 * len(STABLE)
    client.close()


def test_anonymous_memory_starts_cold(make_daemon):
    """What the tests above see is not some other tier."""
    daemon = make_daemon(warm=False)
    client = filled(daemon)
    daemon.kill()
    daemon.start()
    eventually(client.client.is_ready, what="the client's new connection")
    assert visible(client, STABLE) == 0
    client.close()


def test_killed_at_random_instants_under_load(make_daemon, processes):
    """Clients store and load all the time; what they get is checked byte by byte in their processes."""
    daemon = make_daemon(warm=True)
    client = filled(daemon)
    rng = random.Random(5)
    progress = [processes.RawArray("Q", 3) for _ in range(2)]
    children = [processes.Process(target=faultlib.loop, args=(daemon.socket, i, progress[i])) for i in range(2)]
    for child in children:
        child.start()
    worst, kept = len(STABLE), []
    try:
        for kill in range(KILLS):
            done = sum(p[0] for p in progress)
            eventually(lambda: sum(p[0] for p in progress) >= done + 4, what="operations before the kill")
            threading.Event().wait(rng.random() * 0.05)  # the random instant is what is tested
            before = visible(client, range(400))
            daemon.kill()
            restart(daemon, client)
            assert all(child.is_alive() for child in children), f"a client ended after kill {kill}"
            worst = min(worst, visible(client, STABLE))
            sample = rng.sample(STABLE, 2 * client.n)
            assert served(client, sample) >= 0.95 * len(sample)
            if before >= 100:
                kept.append(visible(client, range(400)) / before)
        assert worst >= 0.95 * len(STABLE), f"{worst} of {len(STABLE)}"
        # Of what the loops had stored by the time of the kill nearly all was there, too.
        assert len(kept) > KILLS / 2 and min(kept) >= 0.95, kept
        assert served(client, STABLE) >= 0.95 * len(STABLE)
        assert all(p[2] > KILLS / 2 for p in progress), "the clients did not come back by themselves"
        assert sum(p[1] for p in progress) > KILLS, "nothing was served under load"
    finally:
        for child in children:
            child.kill()
            child.join()
    assert all(child.exitcode == -signal.SIGKILL for child in children), "a client saw wrong bytes"
    metrics = daemon.metrics()
    assert not sum(v for k, v in metrics.items() if k.startswith("terrace_integrity_failures_total")), metrics
    client.close()


def test_killed_again_and_again_while_it_takes_over(make_daemon):
    daemon = make_daemon(warm=True)
    client = filled(daemon)
    began = time.monotonic()
    daemon.kill()
    restart(daemon, client)
    until_served = time.monotonic() - began
    rng = random.Random(6)
    daemon.kill()
    for _ in range(40):
        daemon.launch()
        threading.Event().wait(rng.random() * until_served)
        daemon.kill()
    restart(daemon, client)
    assert served(client, STABLE) == len(STABLE)
    client.close()


def test_an_old_process_reads_no_other_blocks(make_daemon, processes):
    """It leased, was stopped, and reads on with its old refs when the frames hold other blocks."""
    daemon = make_daemon(warm=True, budget="128MiB")
    writer = Checked(daemon.socket)
    writer.wait_ready()
    numbers = list(range(16))
    for _ in range(3):
        store_all(writer, numbers)
        ours, theirs = processes.Pipe()
        sleeper = processes.Process(target=faultlib.sleeper, args=(daemon.socket, numbers, theirs))
        sleeper.start()
        assert ours.poll(20)
        n_here, first = ours.recv()
        assert n_here == len(numbers) and set(first) == {REASONS["none"]}
        os.kill(sleeper.pid, signal.SIGSTOP)
        eventually(lambda: stopped(sleeper.pid), what="SIGSTOP")
        daemon.kill()
        daemon.start()
        eventually(lambda: "event=ready" in daemon.words() and recovered(daemon), what="the recovery")
        eventually(writer.client.is_ready, what="the writer's new connection")
        flush(daemon)
        store_all(writer, range(20_000, 20_000 + 1200))  # nearly all there is room for: each frame is used again
        assert visible(writer, numbers) == 0
        os.kill(sleeper.pid, signal.SIGCONT)
        ours.send("again")
        assert ours.poll(20), "the sleeper hangs"
        assert REASONS["none"] not in ours.recv(), "frames of another block passed for the old one"
        ours.send("end")
        sleeper.join(20)
        assert sleeper.exitcode == 0
    writer.close()


def test_the_budget_holds_over_restarts(make_daemon):
    """What was taken over is charged like what is new: by our count, the kernel's, and the file system's."""
    budget = 192 << 20
    daemon = make_daemon(warm=True, host_prefault="true", host_eviction_policy="lru")
    client = filled(daemon)
    for round_ in range(4):
        store_all(client, range(30_000 + 3000 * round_, 33_000 + 3000 * round_))
        assert daemon.metrics()["terrace_budget_used_bytes"] <= budget
        assert resident_kib(daemon.pid) << 10 <= budget * 1.02
        assert daemon.memory.used_bytes() <= budget
        assert visible(client, range(30_000 + 3000 * round_, 33_000 + 3000 * round_)) > 1500, "hardly anything fits"
        daemon.kill()
        daemon.start()
        eventually(lambda: "event=ready" in daemon.words() and recovered(daemon), what="the recovery")
        eventually(client.client.is_ready, what="the client's new connection")
    client.close()


def test_nothing_is_left_behind(make_daemon):
    daemon = make_daemon(warm=True)
    path = daemon.memory.path
    assert daemon.memory.files()
    daemon.close()
    assert not os.path.exists(path)
