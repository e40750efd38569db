# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Paged KV-cache layouts as engines have them: where the pieces of a block lie. Plain arithmetic."""

from typing import Dict, List, NamedTuple, Tuple


class Plane(NamedTuple):
    allocation: int
    offset: int
    stride: int
    bytes: int


class Layout(NamedTuple):
    """allocations: bytes of each. groups: planes of each KV-cache group, in the order of the layers."""

    name: str
    n_blocks: int
    allocations: List[int]
    groups: List[List[Plane]]

    def text(self) -> str:
        """What the key space says of it: equal exactly when payloads are."""
        return f"{self.name} " + ";".join(",".join(str(p.bytes) for p in g) for g in self.groups)


def _apart(name: str, n_blocks: int, layers: int, pieces: Tuple[int, ...]) -> Layout:
    """One allocation a layer; in it one array of n_blocks after the other for each kind of piece."""
    planes, allocations = [], []
    for layer in range(layers):
        offset = 0
        for size in pieces:
            planes.append(Plane(layer, offset, size, size))
            offset += n_blocks * size
        allocations.append(offset)
    return Layout(name, n_blocks, allocations, [planes])


def make(name: str, n_blocks: int, layers: int = 6, unit: int = 8192) -> Layout:
    """unit: bytes of one layer's K of one block."""
    if name == "kv_apart":  # [2, blocks, ...]: all K, then all V
        return _apart(name, n_blocks, layers, (unit, unit))
    if name == "packed":  # [blocks, 2, ...]
        return _apart(name, n_blocks, layers, (2 * unit,))
    if name == "mla":  # one latent vector a token, and no power of two
        return _apart(name, n_blocks, layers, (unit // 512 * 576,))
    if name == "heads_first":  # [heads, blocks, ...]: many small pieces
        return _apart(name, n_blocks, layers, (unit // 4,) * 8)
    if name == "odd":  # nothing aligned to more than a byte
        return _apart(name, n_blocks, layers, (unit - 13, 7))
    if name == "cross_layer":  # [blocks, layers, ...]: one plane
        size = layers * 2 * unit
        return Layout(name, n_blocks, [n_blocks * size], [[Plane(0, 0, size, size)]])
    if name == "cross_layer_views":  # the same memory as planes of their own, layer by layer
        stride = layers * 2 * unit
        planes = [Plane(0, layer * 2 * unit, stride, 2 * unit) for layer in range(layers)]
        return Layout(name, n_blocks, [n_blocks * stride], [planes])
    if name == "hybrid":  # two groups on the same allocations; the second's pages are padded
        full = [Plane(layer, 0, 2 * unit, 2 * unit) for layer in range(layers // 2)]
        window = [Plane(layer, 0, 2 * unit, 3 * unit // 2) for layer in range(layers // 2)]
        return Layout(name, n_blocks, [n_blocks * 2 * unit] * (layers // 2), [full, window])
    raise ValueError(f"no layout {name}; there are {', '.join(NAMES)}")


NAMES = ["kv_apart", "packed", "mla", "heads_first", "odd", "cross_layer", "cross_layer_views", "hybrid"]


def check(layout: Layout) -> None:
    """Pieces of a group lie inside their allocations and apart from each other."""
    for planes in layout.groups:
        taken: Dict[int, List[Tuple[int, int]]] = {}
        for plane in planes:
            for block in range(layout.n_blocks):
                start = plane.offset + block * plane.stride
                assert start + plane.bytes <= layout.allocations[plane.allocation], layout.name
                taken.setdefault(plane.allocation, []).append((start, start + plane.bytes))
        for spans in taken.values():
            spans.sort()
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])), layout.name
