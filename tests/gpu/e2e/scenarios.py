# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What a daemon and engines with paged caches must survive. Each scenario is a function of a Setting.

The engine itself compares every byte; here stands what must have been stored, hit, missed and given back.
"""

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from rig import Engine, Node

COPIED_BY_DAEMON = 1
REGIONS_OPEN = "terrace_regions"


class Setting(NamedTuple):
    """Where a scenario runs."""

    node_binary: str
    library: str
    memory: str  # as paged_engine.py --memory
    driver: Optional[str]  # folder of a libcuda.so.1; None: the system's
    layouts: Tuple[str, ...]
    seed: int

    def node(self, **options: Any) -> Node:
        return Node(self.node_binary, self.driver, **options).start()

    def engine(self, node: Node, **options: Any) -> Engine:
        return Engine(node, self.library, **{"memory": self.memory, "seed": self.seed, **options})

    @property
    def copied_by_daemon(self) -> bool:
        return self.memory in ("host", "cuda:ipc", "cuda:vmm", "cuda:pieces", "torch:ipc")


def expect(condition: bool, text: str, *facts: Any) -> None:
    if not condition:
        raise AssertionError(f"{text}: {facts}" if facts else text)


def _stored(answer: Dict[str, Any], n: int) -> None:
    reasons = answer["reasons"]
    expect(reasons.get("none", 0) + reasons.get("duplicate", 0) == n, "blocks were not stored", answer)


def _loaded(answer: Dict[str, Any], n: int) -> None:
    expect(answer["hit"] == n and answer.get("reasons") == {"none": n}, "blocks were not loaded", answer)
    expect(answer["bytes"] > 0, "nothing was compared", answer)


def _nothing_is_held(node: Node) -> None:
    """All that dead or closed engines held is given back: connections, leases, regions."""
    for name in ("terrace_engines_connected", "terrace_leases", REGIONS_OPEN):
        left = node.wait_metric(lambda value: value == 0, name)
        expect(left == 0, f"{name} is not 0 though no engine is connected", left)


def _copied_by_daemon_again(engine: Engine) -> None:
    """Until the memory is registered with a new daemon, which it is in the background, libterrace copies."""
    until = time.monotonic() + 20
    while True:
        who = engine.call("copier")
        if set(who["copier"]) == {COPIED_BY_DAEMON}:
            return
        expect(time.monotonic() < until, "the new daemon does not copy", who)
        _loaded(engine.call("load", chain="a", n=8), 8)


# -------------------------------------------------------------------- scenarios


def cold_store_then_another_process_loads(at: Setting) -> Dict[str, Any]:
    """Every layout: an engine stores, ends; another loads and has each byte. One page block, many, all."""
    compared = 0
    node = at.node()
    try:
        for layout in at.layouts:
            groups = 2 if layout == "hybrid" else 1
            with at.engine(node, layout=layout) as first:
                who = first.call("copier")
                if at.copied_by_daemon:
                    expect(set(who["copier"]) == {COPIED_BY_DAEMON}, f"{layout}: the daemon does not copy", who)
                else:
                    expect(all(why or copier == COPIED_BY_DAEMON for copier, why in zip(who["copier"], who["why"])),
                           f"{layout}: nobody says why the daemon does not copy", who)
                for group in range(groups):
                    expect(first.call("load", chain="a", n=8, group=group)["hit"] == 0, "a hit before a store")
                    # Hybrid groups share allocations, so their pages must not be the same ones.
                    page = 1 + 24 * group
                    _stored(first.call("store", chain="a", n=20, page=page, group=group), 20)
                    _stored(first.call("store", chain="a", n=1, first=20, page=page, group=group), 1)
                    _stored(first.call("store", chain="a", n=21, page=page, group=group), 21)  # duplicates
            with at.engine(node, layout=layout) as second:
                for group in range(groups):
                    answer = second.call("load", chain="a", n=21, page=40 - 20 * group, group=group)
                    _loaded(answer, 21)
                    compared += answer["bytes"]
                    answer = second.call("load", chain="a", n=32, page=1, group=group)  # longer than stored
                    expect(answer["hit"] == 21 and answer["miss"] == "cold", "a wrong end of the chain", answer)
        _nothing_is_held(node)
        expect(node.alive(), "the daemon died", node.words()[-2000:])
    finally:
        node.close()
    return {"bytes_compared": compared}


def layers_are_used_as_they_arrive(at: Setting) -> Dict[str, Any]:
    """A large load is used layer by layer before it is done, and what is used is right."""
    node = at.node(budget_mib=512)
    early: List[int] = []
    try:
        with at.engine(node, layout="kv_apart", layers=16, unit=262144, blocks=20) as engine:
            _stored(engine.call("store", chain="a", n=12), 12)
            for _ in range(10):
                answer = engine.call("load", chain="a", n=12, page=2)
                _loaded(answer, 12)
                early.append(answer["early_planes"])
                if early[-1] > 0 or not at.copied_by_daemon:
                    break
        if at.copied_by_daemon:
            expect(max(early) > 0, "no layer could be used before the whole load was done", early)
    finally:
        node.close()
    return {"planes_before_the_end": early}


# Blocks large enough that an engine can be killed while they are copied.
_LARGE: Dict[str, Any] = {"layout": "packed", "unit": 262144, "blocks": 40}


def engine_killed_in_mid_store(at: Setting) -> Dict[str, Any]:
    """What a dead engine left half stored is never seen; what is seen is right; nothing stays held."""
    node, seen = at.node(budget_mib=512), []
    try:
        for round_number in range(4):
            chain = f"k{round_number}"
            victim = at.engine(node, **_LARGE)
            victim.send("store", chain=chain, n=32)
            if round_number > 0:  # the first one dies while it computes
                victim.begun()
            victim.kill()
            victim.close()
            _nothing_is_held(node)
            with at.engine(node, **_LARGE) as heir:
                answer = heir.call("load", chain=chain, n=32)
                seen.append(answer["hit"])
                expect(answer["hit"] == 0 or set(answer["reasons"]) == {"none"}, "a visible block is bad", answer)
                _stored(heir.call("store", chain=chain, n=32), 32)
                _loaded(heir.call("load", chain=chain, n=32, page=3), 32)
        _nothing_is_held(node)
        expect(node.alive(), "the daemon died", node.words()[-2000:])
    finally:
        node.close()
    return {"blocks_of_killed_engines": seen}


def engine_killed_in_mid_load(at: Setting) -> Dict[str, Any]:
    """The daemon is unharmed and serves its other clients meanwhile and after."""
    node = at.node(budget_mib=512)
    held: List[int] = []
    try:
        with at.engine(node, **_LARGE) as other:
            _stored(other.call("store", chain="a", n=32), 32)
            connected = node.metric("terrace_engines_connected")  # a client may have several
            for _ in range(5):
                victim = at.engine(node, **_LARGE)
                victim.send("load", chain="a", n=32)
                victim.begun()
                victim.kill()
                victim.close()
                _loaded(other.call("load", chain="a", n=8, page=3), 8)
                left = node.wait_metric(lambda value: value <= connected, "terrace_engines_connected")
                expect(left <= connected, "a dead engine is still connected", left)
                held.append(node.descriptors())
            expect(held[-1] <= held[0] + 1, "descriptors of dead engines stay open", held)
        _nothing_is_held(node)
        expect(node.alive(), "the daemon died", node.words()[-2000:])
    finally:
        node.close()
    return {"descriptors": held}


def daemon_killed_in_mid_run(at: Setting) -> Dict[str, Any]:
    """The engine goes on with misses that say why, and stores and hits again once there is a daemon."""
    node, ended = at.node(), {}
    try:
        with at.engine(node, layout="kv_apart", unit=65536, blocks=40) as engine:
            _stored(engine.call("store", chain="a", n=32), 32)
            for do in ("store", "load"):
                engine.send(do, chain="b" if do == "store" else "a", n=32)
                engine.begun()
                node.kill()
                answer = engine.answer()  # in time, and no wrong byte, whatever had arrived
                ended[do] = answer.get("reasons", {})
                allowed = {"none", "duplicate", "unavailable", "stale", "cancelled"}
                expect(set(ended[do]) <= allowed, "an unexpected reason", answer)
                away = engine.call("load", chain="a", n=8)
                expect(away["hit"] == 0 and away["miss"] == "unavailable", "a hit without a daemon", away)
                expect(engine.call("store", chain="c", n=4)["reasons"].get("none", 0) == 0, "stored nowhere")
                node.start()
                expect(engine.call("ready", timeout_ms=20000)["ready"], "the engine does not come back")
                cold = engine.call("load", chain="a", n=8)
                expect(cold["hit"] == 0, "a hit in a cold daemon", cold)
                _stored(engine.call("store", chain="a", n=32), 32)
                _loaded(engine.call("load", chain="a", n=32, page=5), 32)
                if at.copied_by_daemon:
                    _copied_by_daemon_again(engine)
        _nothing_is_held(node)
    finally:
        node.close()
    return {"reasons": ended}


def flipped_bits_are_never_delivered(at: Setting) -> Dict[str, Any]:
    """Broken host memory: the blocks it hit are refused and dropped, the others are served."""
    node = at.node()
    try:
        with at.engine(node, layout="packed", unit=32768, blocks=40) as engine:
            _stored(engine.call("store", chain="a", n=32), 32)
            flipped = node.flip_bits(every=500)
            expect(flipped > 0, "the test found no payload to harm")
            answer = engine.call("load", chain="a", n=32)
            bad = answer["reasons"].get("corrupt", 0)
            expect(1 <= bad <= flipped, "flipped bits were not found", flipped, answer)
            expect(answer["reasons"].get("none", 0) == 32 - bad, "good blocks were not served", answer)
            again = engine.call("load", chain="a", n=32)
            expect(again["hit"] < 32 and again["miss"] == "corrupt", "a bad block was not dropped", again)
            _stored(engine.call("store", chain="a", n=32), 32)
            _loaded(engine.call("load", chain="a", n=32, page=4), 32)
    finally:
        node.close()
    return {"flipped": flipped, "blocks_refused": bad}


def another_layout_is_a_miss(at: Setting) -> Dict[str, Any]:
    """An engine restarted with another layout of the same cache gets misses that say so, never bytes."""
    node = at.node()
    try:
        with at.engine(node, layout="kv_apart") as engine:
            _stored(engine.call("store", chain="a", n=16), 16)
        with at.engine(node, layout="packed") as other:
            answer = other.call("load", chain="a", n=16)
            expect(answer["hit"] == 0 and answer["miss"] == "layout_differs", "not a miss by layout", answer)
            _stored(other.call("store", chain="a", n=16), 16)
            _loaded(other.call("load", chain="a", n=16, page=9), 16)
        with at.engine(node, layout="kv_apart") as engine:
            _loaded(engine.call("load", chain="a", n=16, page=2), 16)
    finally:
        node.close()
    return {}


def host_and_device_engines_share(at: Setting) -> Dict[str, Any]:
    """Blocks are bytes: what one kind of memory stored the other loads, where the key space is the same."""
    node = at.node()
    try:
        with at.engine(node, layout="kv_apart", memory="host") as host, at.engine(node, layout="kv_apart") as mine:
            _stored(host.call("store", chain="h", n=16), 16)
            _stored(mine.call("store", chain="m", n=16), 16)
            _loaded(mine.call("load", chain="h", n=16, page=2), 16)
            _loaded(host.call("load", chain="m", n=16, page=7), 16)
    finally:
        node.close()
    return {}


def registrations_come_and_go(at: Setting) -> Dict[str, Any]:
    """An engine that gives its pages back, and many that come and go, leave no region open."""
    node = at.node()
    try:
        with at.engine(node, layout="hybrid") as engine:
            _stored(engine.call("store", chain="a", n=8), 8)
            if at.copied_by_daemon:
                expect(node.metric(REGIONS_OPEN) == 2, "two groups are not two regions")
            engine.call("free")
            left = node.wait_metric(lambda value: value == 0, REGIONS_OPEN)
            expect(left == 0, "a freed registration is still open", left)
        for _ in range(3):
            with at.engine(node, layout="packed") as engine:
                _stored(engine.call("store", chain="a", n=8), 8)
        _nothing_is_held(node)
    finally:
        node.close()
    return {}


ALL: List[Callable[[Setting], Dict[str, Any]]] = [
    cold_store_then_another_process_loads,
    layers_are_used_as_they_arrive,
    engine_killed_in_mid_store,
    engine_killed_in_mid_load,
    daemon_killed_in_mid_run,
    flipped_bits_are_never_delivered,
    another_layout_is_a_miss,
    host_and_device_engines_share,
    registrations_come_and_go,
]

# What runs with every way of reaching the memory; the others depend on who copies only.
EVERY_WAY = (cold_store_then_another_process_loads, daemon_killed_in_mid_run)
