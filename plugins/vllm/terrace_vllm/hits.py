# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""How many tokens a set of present blocks is good for. Pure arithmetic, no I/O."""

from typing import List, NamedTuple, Sequence

from terrace_vllm.layout import FULL, Group


class Present(NamedTuple):
    """Which blocks of a group are here, from the block that holds token `start` on."""

    group: Group
    n_prefix: int  # FULL: leading run
    here: Sequence[bool]  # SLIDING: one flag a block


def first_needed_token(group: Group, n: int) -> int:
    """The first token whose K and V the next token (number n) needs in this group."""
    return 0 if group.kind == FULL else max(0, n - group.window + 1)


def usable_tokens(start: int, total: int, align: int, present: List[Present]) -> int:
    """The largest n in (start, total], a multiple of align, whose needed blocks are all here.

    start: tokens the engine has already (block-aligned); their blocks are not asked for. Answers
    `start` when nothing beyond is usable. Full groups need every block before n, sliding ones only
    those that reach into the window before n.
    """
    n = total
    for part in present:
        if part.group.kind == FULL:
            n = min(n, start + part.n_prefix * part.group.block_tokens)
    n -= n % align
    while n > start:
        missing = _lowest_missing(start, n, present)
        if missing is None:
            return n
        # Every shorter hit that reaches past the missing block needs it too: end before it.
        n = missing - missing % align
    return start


def _lowest_missing(start: int, n: int, present: List[Present]):
    """First token of the lowest needed block that is not here; None if all are."""
    lowest = None
    for part in present:
        if part.group.kind == FULL:
            continue
        size = part.group.block_tokens
        base = start // size
        first = max(base, first_needed_token(part.group, n) // size)
        for block in range(first, n // size):
            if not (block - base < len(part.here) and part.here[block - base]):
                if lowest is None or block * size < lowest:
                    lowest = block * size
                break
    return lowest
