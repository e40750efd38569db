# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A small process that uses Terrace as an inference engine does, for tests; killed at any point.

It has a paged KV cache, "computes" blocks by writing bytes that follow from (seed, chain, block, plane), stores
and loads them, and compares every byte that it was told is there. Commands are JSON lines on stdin, answers
on stdout; a line {"begun": ...} says that an operation was submitted. A wrong byte ends it with an answer
{"wrong": ...}: that must never happen, whatever the test does to it or the daemon.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

_HERE = os.path.dirname(os.path.abspath(__file__))
_PLUGIN = os.path.normpath(os.path.join(_HERE, "..", "..", "..", "plugins", "vllm"))
for _path in (_HERE, _PLUGIN):
    if _path not in sys.path:
        sys.path.insert(0, _path)

import layouts
import memory
from terrace_vllm import client as api

_POISON = b"\xa5"
_WAIT_US = 20_000_000


class WrongByte(Exception):
    """The daemon or library delivered a byte that was never stored under this key."""


class PagedEngine:
    """One engine: memory, a client, one key space and one registration per KV-cache group."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.layout = layouts.make(args.layout, args.blocks, args.layers, args.unit)
        layouts.check(self.layout)
        self.memory = memory.make(args.memory)
        self.bases = [self.memory.allocate(size) for size in self.layout.allocations]
        self.seed = args.seed
        self.client = api.Client(api.Library(args.library), socket=args.socket, name="paged-engine",
                                 request_timeout_ms=args.request_timeout_ms)
        self.client.wait_ready(10_000)
        self.planes: List[List[Tuple[int, int, int]]] = []
        self.pages, self.key_spaces = [], []
        for index, group in enumerate(self.layout.groups):
            planes = [(self.bases[p.allocation] + p.offset, p.stride, p.bytes) for p in group]
            self.planes.append(planes)
            self.pages.append(self.memory.register(self.client, planes, self.layout.n_blocks))
            self.key_spaces.append(self.client.open_key_space(
                model="paged-engine", model_fingerprint=str(self.seed), kv_dtype="u8",
                layout=self.layout.text(), parallel="", hash="sha256", group=str(index), extra="",
                block_bytes=sum(p.bytes for p in group), tokens_per_block=16))

    # ------------------------------------------------------------ what the bytes must be

    def key(self, chain: str, block: int) -> bytes:
        return hashlib.sha256(f"{self.seed}/{chain}/{block}".encode()).digest()

    def keys(self, chain: str, first: int, n: int) -> bytes:
        return b"".join(self.key(chain, first + i) for i in range(n))

    def bytes_of(self, group: int, chain: str, block: int, plane: int) -> bytes:
        name = f"{self.seed}/{group}/{chain}/{block}/{plane}"
        return hashlib.shake_128(name.encode()).digest(self.planes[group][plane][2])

    def compute(self, group: int, chain: str, first: int, pages: List[int]) -> None:
        """What a forward pass does: fills pages, in the order of the engine's stream."""
        self.memory.stage(len(pages) * sum(p[2] for p in self.planes[group]))
        for i, page in enumerate(pages):
            for number, (base, stride, _) in enumerate(self.planes[group]):
                self.memory.write(base + page * stride, self.bytes_of(group, chain, first + i, number))
        self.memory.submit()

    def poison(self, group: int, pages: List[int]) -> None:
        """So that a page which was not loaded cannot pass for one that was."""
        self.memory.stage(len(pages) * sum(p[2] for p in self.planes[group]))
        for page in pages:
            for base, stride, size in self.planes[group]:
                self.memory.write(base + page * stride, _POISON * size)
        self.memory.submit()

    def compare(self, group: int, chain: str, block: int, page: int, plane: int,
                expected: Optional[bytes] = None) -> int:
        base, stride, size = self.planes[group][plane]
        found = self.memory.read(base + page * stride, size)
        expected = expected or self.bytes_of(group, chain, block, plane)
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
            raise WrongByte(f"{self.layout.name} group {group} chain {chain} block {block} page {page} "
                            f"plane {plane}: byte {at} of {size} differs (first: {found[:8].hex()})")
        return size

    # ------------------------------------------------------------ commands

    def do_store(self, chain: str, n: int, first: int = 0, page: int = 1, group: int = 0,
                 compute: bool = True) -> Dict[str, Any]:
        pages = list(range(page, page + n))
        if compute:
            self.compute(group, chain, first, pages)
        parent = self.key(chain, first - 1) if first else None
        try:
            operation = self.client.store(self.key_spaces[group], parent, self.keys(chain, first, n),
                                          api.STORE_CHAIN, self.pages[group], pages)
        except api.TerraceError as error:
            return {"status": error.status, "error": str(error), "reasons": {}}
        say(begun="store")
        # Once the sources are read the pages are somebody else's: what was stored must not change by it.
        if operation.wait_sources(_WAIT_US):
            self.poison(group, pages)
        elif not operation.done():
            raise AssertionError("a store did not read its pages in time")
        return {"status": 0, "reasons": self.finish(operation)}

    def do_load(self, chain: str, n: int, first: int = 0, page: int = 1, group: int = 0,
                layer_by_layer: bool = True, may_wait: bool = True) -> Dict[str, Any]:
        pages = list(range(page, page + n))
        keys = self.keys(chain, first, n)
        status, [answer] = self.client.lookup([(self.key_spaces[group], keys, api.MODE_PREFIX)], 5_000_000,
                                              may_wait=may_wait)
        result: Dict[str, Any] = {"status": status, "hit": answer.n_prefix, "pending": answer.n_pending,
                                  "miss": self.name(answer.reasons[answer.n_prefix])
                                  if answer.n_prefix < n else None, "bytes": 0}
        hit = answer.n_prefix
        if hit == 0:
            self.client.release(answer.lease)
            return result
        self.poison(group, pages)
        n_planes, early = len(self.planes[group]), 0
        follow = layer_by_layer and self.client.library.has_regions
        expected = [[self.bytes_of(group, chain, first + i, plane) for i in range(hit)]
                    for plane in range(n_planes if follow else 0)]
        try:
            operation = self.client.load(self.key_spaces[group], answer.refs[:hit * api.REF_BYTES],
                                         keys[:hit * api.KEY_BYTES], self.pages[group], pages[:hit])
        except api.TerraceError as error:
            self.client.release(answer.lease)
            return {**result, "status": error.status, "error": str(error)}
        say(begun="load")
        if follow:
            early = self._follow(operation, group, chain, first, pages[:hit], expected, result)
        if not operation.wait(_WAIT_US):
            raise AssertionError("a load did not end in time")
        reasons = operation.reasons()
        for i, reason in enumerate(reasons):
            for plane in range(n_planes) if reason == api.REASON_NONE else ():
                result["bytes"] += self.compare(group, chain, first + i, pages[i], plane)
        if self.client.library.has_regions and any(reasons) and operation.planes_done() >= n_planes:
            raise WrongByte("planes_done counts all planes of a load of which a block failed")
        self.client.release(answer.lease)
        return {**result, "early_planes": early, "reasons": self.finish(operation)}

    def _follow(self, operation: Any, group: int, chain: str, first: int, pages: List[int],
                expected: List[List[bytes]], result: Dict[str, Any]) -> int:
        """Uses planes as they arrive, the newest first: what was said to be there too early is found.

        Returns how many were used before the load was done.
        """
        early, used = 0, 0
        while used < len(expected):
            waited = operation.wait_planes(used + 1, _WAIT_US)
            if waited == api.DATA_LOSS:
                return early
            if waited != api.OK:
                raise AssertionError(f"plane {used} did not arrive in time ({waited})")
            arrived = operation.planes_done()
            early += 0 if operation.done() else arrived - used
            for plane in reversed(range(used, arrived)):
                for i, page in reversed(list(enumerate(pages))):
                    result["bytes"] += self.compare(group, chain, first + i, page, plane, expected[plane][i])
            used = arrived
        return early

    def finish(self, operation: Any) -> Dict[str, int]:
        begun = time.monotonic()
        if not operation.wait(_WAIT_US):
            raise AssertionError("an operation did not end in time")
        reasons = operation.reasons()
        operation.close()
        assert time.monotonic() - begun < 70
        return {self.name(r): reasons.count(r) for r in sorted(set(reasons))}

    def name(self, reason: int) -> str:
        return self.client.library.reason_text(reason)

    def do_copier(self) -> Dict[str, Any]:
        if not self.client.library.has_regions:
            return {"copier": [api.COPIER_LIBRARY], "why": ["this libterrace knows no regions"]}
        answers = [pages.copier() for pages in self.pages]
        return {"copier": [a[0] for a in answers], "why": [a[1] for a in answers]}

    def do_ready(self, timeout_ms: int) -> Dict[str, Any]:
        try:
            self.client.wait_ready(timeout_ms)
            return {"ready": True}
        except api.TerraceError as error:
            return {"ready": False, "error": str(error)}

    def do_free(self) -> Dict[str, Any]:
        """Gives the registrations back; the memory stays."""
        for pages in self.pages:
            pages.close()
        self.pages = []
        return {}

    def do_stats(self) -> Dict[str, Any]:
        return self.client.stats()


def say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def serve(engine: PagedEngine) -> int:
    for line in sys.stdin:
        command = json.loads(line)
        action = command.pop("do")
        if action == "quit":
            break
        try:
            say(done=action, **getattr(engine, f"do_{action}")(**command))
        except WrongByte as error:
            say(wrong=str(error))
            return 3
    engine.client.close()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--memory", default="host", help="private, host, cuda[:export], torch[:export]")
    parser.add_argument("--layout", default="kv_apart", choices=layouts.NAMES)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--unit", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--request-timeout-ms", type=int, default=0)
    parser.add_argument("--probe", action="store_true", help="only say whether the memory can be had")
    args = parser.parse_args()
    if args.probe:
        say(skipped=memory.why_not(args.memory))
        return 0
    try:
        engine = PagedEngine(args)
    except memory.Skipped as error:
        say(skipped=str(error))
        return 0
    say(up=os.getpid())
    return serve(engine)


if __name__ == "__main__":
    sys.exit(main())
