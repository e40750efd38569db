# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""usable_tokens against a slow definition of the same thing."""

import random

from terrace_vllm.hits import Present, usable_tokens
from terrace_vllm.layout import FULL, SLIDING, Group


def slow(start, total, align, parts):
    """Try every length from the longest; look at every token's block."""
    for n in range(total, start, -1):
        if n % align:
            continue
        good = True
        for group, flags in parts:
            for token in range(start, n):
                if group.kind == SLIDING and token < n - group.window + 1:
                    continue
                block = token // group.block_tokens - start // group.block_tokens
                good = good and block < len(flags) and flags[block]
        if good:
            return n
    return start


def present(group, flags):
    prefix = flags.index(False) if False in flags else len(flags)
    return Present(group, prefix, [] if group.kind == FULL else flags)


def test_random_against_slow():
    rng = random.Random(5)
    for _ in range(3000):
        sizes = rng.choice([(4,), (4, 8), (8, 4), (4, 4, 4)])
        align = rng.choice([max(sizes), 2 * max(sizes)])
        start = align * rng.randrange(3)
        total = start + align * rng.randrange(8)
        parts = []
        for i, size in enumerate(sizes):
            group = Group(i, rng.choice([FULL, SLIDING]), size, rng.randrange(1, 30), ())
            n = (total - start) // size
            chance = rng.choice([0.5, 0.9, 1.0])
            parts.append((group, [rng.random() < chance for _ in range(n)]))
        got = usable_tokens(start, total, align, [present(g, f) for g, f in parts])
        assert got == slow(start, total, align, parts), (start, total, align, parts)


def test_window_needs_only_its_tail():
    window = Group(1, SLIDING, 4, 6, ())
    full = Group(0, FULL, 4, 0, ())
    parts = [Present(full, 4, []), Present(window, 0, [False, False, True, True])]
    assert usable_tokens(0, 16, 4, parts) == 16


def test_nothing_asked():
    assert usable_tokens(8, 8, 4, []) == 8
