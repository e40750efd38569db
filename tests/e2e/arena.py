# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Harms a terraced's memory from outside, as a broken memory bank would: through /proc/PID/mem."""

import re

_CHUNK = 4096


def flip_payload_bits(pid: int, every: int = 16) -> int:
    """Flips one bit in every `every`-th 4 KiB page of stored payloads. Returns the number of flips.

    Only pages that hold something (are not all zero) in the payload segments are touched.
    """
    flipped = 0
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "r+b", 0) as mem:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-s .*memfd:\S*payload", line)
            if not found:
                continue
            begin, end = int(found[1], 16), int(found[2], 16)
            used = 0
            for address in range(begin, end, _CHUNK):
                mem.seek(address)
                page = mem.read(_CHUNK)
                if not any(page):
                    continue
                used += 1
                if used % every:
                    continue
                mem.seek(address + 100)
                mem.write(bytes([page[100] ^ 1]))
                flipped += 1
    return flipped
