# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Thousands of connections, and no descriptors left."""

import resource
import statistics
import time

import rawsocket
from faultlib import REASONS, Checked, cpu_seconds, eventually
from terrace_vllm.testing.daemon import Daemon

IDLE = 5000
CHURNING = 500


def lookup_times(client, n):
    """Seconds of n lookups of one block, sorted."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        status, answer = client.lookup([1])
        times.append(time.perf_counter() - start)
        assert status == 0 and answer.n_here == 1
        client.client.release(answer.lease)
    return sorted(times)


def raise_own_limit(n):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= n, f"this test needs {n} descriptors; the hard limit is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n), hard))


def test_five_thousand_idle_and_five_hundred_churning(make_daemon, processes):
    raise_own_limit(IDLE + 512)
    daemon = make_daemon(engine_max_connections="7000", engine_max_connections_per_uid="6000")
    client = Checked(daemon.socket)
    client.wait_ready()
    client.store([1])
    quiet = lookup_times(client, 500)
    idle = [rawsocket.connect(daemon.socket) for _ in range(IDLE)]
    assert all(idle)
    assert daemon.metrics()["terrace_engines_connected"] >= IDLE
    memory = resident_bytes(daemon.pid)
    ends, counts = processes.Event(), processes.RawArray("Q", 2)
    churner = processes.Process(target=rawsocket.churn, args=(daemon.socket, CHURNING, ends, counts))
    churner.start()
    eventually(lambda: counts[0] >= CHURNING, what="churning connections")
    busy = lookup_times(client, 500)
    before = counts[0]
    eventually(lambda: counts[0] >= before + 2 * CHURNING, what="more churning connections")
    ends.set()
    churner.join(20)
    assert churner.exitcode == 0
    assert counts[1] == 0, "connections were refused below the limit"
    # The good client goes on as before: its own socket, no turn lost to the others. Both shares of the
    # bound are far above what a served client sees and far below a starved one's.
    p50, p99 = statistics.median(busy), busy[int(len(busy) * 0.99)]
    assert p50 < 3 * statistics.median(quiet) + 0.005, f"p50 {p50:.6f} s, quiet {statistics.median(quiet):.6f} s"
    assert p99 < 0.1, f"p99 {p99:.6f} s"
    assert rawsocket.ping(idle[0]) and rawsocket.ping(idle[-1])
    assert resident_bytes(daemon.pid) < memory + (16 << 20), "churning made the daemon grow"
    for connection in idle:
        connection.close()
    client.close()
    eventually(lambda: daemon.metrics()["terrace_engines_connected"] == 0, 20, "the end of all connections")
    assert daemon.metrics()["terrace_sessions"] == 0


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def test_limits_of_connections_hold_and_free_places_are_given_again(make_daemon):
    for flags in ({"engine_max_connections": "50"}, {"engine_max_connections_per_uid": "50"}):
        daemon = make_daemon(**flags)
        held = []
        for _ in range(50):
            held.append(rawsocket.connect(daemon.socket))
        held = [connection for connection in held if connection]
        assert 45 <= len(held) <= 50  # the starting test may still hold one
        extra = [rawsocket.connect(daemon.socket) for _ in range(100)]
        assert sum(connection is not None for connection in extra) <= 50 - len(held)
        assert daemon.metrics()['terrace_rejected_total{reason="connections",transport="engine"}'] >= 50
        assert all(rawsocket.ping(connection) for connection in held)
        for connection in held:
            connection.close()
        eventually(lambda: rawsocket.connect(daemon.socket), what="a place after others left")


def test_connections_that_say_nothing_are_closed(make_daemon):
    daemon = make_daemon()
    silent = [rawsocket.connect(daemon.socket, greet=False) for _ in range(20)]
    greeted = rawsocket.connect(daemon.socket)
    eventually(lambda: all(rawsocket.is_closed(connection) for connection in silent), 15, "their end")
    assert rawsocket.ping(greeted)


class FewDescriptors(Daemon):
    """terraced under a hard limit of open files, which it cannot raise."""

    LIMIT = 64

    def start(self, timeout=20.0):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        super().start(timeout)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (self.LIMIT, self.LIMIT))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
        return self


def test_no_descriptors_left(binaries):
    with FewDescriptors(budget="128MiB", host_prefault="false", engine_staging_bytes="1MiB") as daemon:
        client = Checked(daemon.socket)
        client.wait_ready()
        assert client.store([1]) and client.get([1]) == 1
        many = []
        for _ in range(120):  # beyond the limit they wait in the listening socket, unanswered
            many.append(rawsocket.connect(daemon.socket, greet=False))
        eventually(lambda: "event=accept_paused" in daemon.words(), what="the pause")
        # No busy loop meanwhile, and who is in is served.
        start, cpu = time.monotonic(), cpu_seconds(daemon.pid)
        while time.monotonic() - start < 2:
            status, answer = client.lookup([1])
            assert (status, list(answer.reasons)) == (0, [REASONS["none"]]), daemon.words()[-2000:]
            assert client.load([1], answer.refs) == [REASONS["none"]], daemon.words()[-2000:]
            client.client.release(answer.lease)
            time.sleep(0.05)  # poll: a client with little to do
        used = cpu_seconds(daemon.pid) - cpu
        assert used < 0.2 * (time.monotonic() - start), f"{used:.2f} s of processor time in 2 s"
        lines = daemon.words().count("event=accept_paused")
        assert lines < 200, "the log is flooded"
        for connection in many:
            connection.close()
        late = eventually(lambda: rawsocket.connect(daemon.socket), what="an accepted connection")
        assert rawsocket.ping(late)
        # A fresh client gets segments and staging, too.
        second = Checked(daemon.socket)
        second.wait_ready()
        assert second.get([1]) == 1 and second.store([2])
        second.close()
        client.close()
