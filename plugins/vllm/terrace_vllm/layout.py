# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What a block is on this engine: KV-cache groups, and the pages of live tensors as raw memory.

A block's payload is, for one group, its layers' pages one after the other; where a page lies in several
pieces (K and V, or heads, apart), these in the order of the tensor's dimensions. Pages are opaque: how K
and V lie inside a piece is the attention kernel's affair and goes into the key space's layout text. What
cannot be moved page by page is refused (Unsupported), never guessed.

torch is not imported: tensors are used through data_ptr(), shape, stride(), element_size(), dtype, device.
"""

import hashlib
import itertools
import json
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

FULL = "full"
SLIDING = "sliding"

# Kinds whose blocks are addressed by the hash chain and are complete once their tokens are computed.
# Others (Mamba states, cross attention, chunked local, ring buffers) are not cached by this version.
_FULL_SPECS = ("FullAttentionSpec", "MLAAttentionSpec", "SinkFullAttentionSpec")
_SLIDING_SPECS = ("SlidingWindowSpec", "SlidingWindowMLASpec")


class Unsupported(Exception):
    """This engine's KV cache cannot be cached; the text says which part and why."""


class Group(NamedTuple):
    """One KV-cache group: layers that share a block table."""

    index: int
    kind: str  # FULL or SLIDING
    block_tokens: int
    window: int  # SLIDING: tokens a position sees, itself included; else 0
    layers: Tuple[str, ...]

    def name(self) -> str:
        window = f":{self.window}" if self.kind == SLIDING else ""
        return f"{self.index}:{self.kind}{window}"


class Plane(NamedTuple):
    """One array of equal pieces in memory, e.g. a layer's pages; see terrace_plane."""

    address: int
    stride: int
    bytes: int


class GroupPages(NamedTuple):
    group: Group
    planes: List[Plane]
    block_bytes: int
    n_blocks: int
    kv_dtype: str
    layout: str
    device: str = "cpu"


def describe_groups(kv_cache_config: Any) -> Tuple[List[Group], int, int]:
    """Returns (groups, tokens per block hash, tokens to which a hit must be aligned)."""
    specs = list(kv_cache_config.kv_cache_groups)
    if not specs:
        raise Unsupported("the model has no KV cache")
    groups = []
    for index, spec in enumerate(specs):
        if not getattr(spec, "enable_kv_transfer", True) or getattr(spec, "host_resident", False):
            raise Unsupported(f"KV-cache group {index} is not externally transferable")
        if getattr(spec, "is_eagle_group", False):
            raise Unsupported(f"KV-cache group {index} holds a draft model's layers")
        groups.append(_describe_group(index, spec))
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None) or _gcd(groups)
    align = getattr(kv_cache_config, "cache_hit_alignment_tokens", None) or 1
    for group in groups:
        if group.block_tokens % hash_tokens:
            raise Unsupported(f"blocks of {group.block_tokens} tokens are not made of whole hashes "
                              f"of {hash_tokens} tokens")
        align = _lcm(align, group.block_tokens)
    return groups, hash_tokens, align


def _describe_group(index: int, group_spec: Any) -> Group:
    spec = group_spec.kv_cache_spec
    inner = getattr(spec, "kv_cache_specs", None)  # UniformTypeKVCacheSpecs: one spec per layer
    members = list(inner.values()) if isinstance(inner, dict) else [spec]
    kinds = {type(member).__name__ for member in members}
    if not getattr(spec, "prefix_cacheable", True):
        raise Unsupported(f"KV-cache group {index} ({', '.join(sorted(kinds))}) is not prefix-cacheable")
    layers = tuple(group_spec.layer_names)
    if kinds <= set(_FULL_SPECS):
        return Group(index, FULL, spec.block_size, 0, layers)
    if kinds <= set(_SLIDING_SPECS):
        windows = {m.sliding_window + getattr(m, "extra_retained_tokens", 0) for m in members}
        return Group(index, SLIDING, spec.block_size, max(windows), layers)
    raise Unsupported(f"KV-cache group {index} is of a kind that is not cached: "
                      f"{', '.join(sorted(kinds))}")


def _gcd(groups: Sequence[Group]) -> int:
    import math

    result = 0
    for group in groups:
        result = math.gcd(result, group.block_tokens)
    return result


def _lcm(a: int, b: int) -> int:
    import math

    return a // math.gcd(a, b) * b


# What libterrace and the daemon take of one registration.
_MAX_PLANES = 4096


class _Page(NamedTuple):
    """How a block's share of one layer's tensor lies in memory."""

    planes: List[Plane]  # in the order of the payload
    shape: List[int]  # of a kernel block, as the tensor has it
    strides: List[int]  # the same; 0 where they say nothing about a block (pieces apart, a size of 1)
    kernel_blocks: int


def planes_of(name: str, tensor: Any, n_blocks: int) -> List[Plane]:
    """The layer's pages as arrays of dense pieces. Raises Unsupported if there are none."""
    return _page_of(name, tensor, n_blocks).planes


def _page_of(name: str, tensor: Any, n_blocks: int) -> _Page:
    if not hasattr(tensor, "data_ptr"):
        raise Unsupported(f"layer {name} has no single KV tensor ({type(tensor).__name__})")
    if tensor.device.type not in ("cpu", "cuda"):
        raise Unsupported(f"layer {name}'s KV cache is on {tensor.device}; this version moves KV caches "
                          "in host memory and in the memory of NVIDIA GPUs")
    shape, strides, item = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    _check_apart(name, shape, strides)
    at = _block_dimension(name, shape, n_blocks)
    kernel_blocks = shape[at] // n_blocks  # the kernel may split a block into smaller ones
    inner = [d for d in range(len(shape)) if d != at]
    dense, run = _dense_run(shape, strides, inner)
    outer = [d for d in inner if d not in dense]
    step = strides[at] * item  # from one kernel block to the next
    joined = kernel_blocks if step == run * item else 1
    planes = []
    for index in itertools.product(*(range(shape[d]) for d in outer)):
        base = tensor.data_ptr() + sum(i * strides[d] for i, d in zip(index, outer)) * item
        for part in range(kernel_blocks // joined):
            planes.append(Plane(base + part * step, step * kernel_blocks, run * item * joined))
    return _Page(planes, [shape[d] for d in inner],
                 [strides[d] if d in dense and shape[d] > 1 else 0 for d in inner], kernel_blocks)


def _block_dimension(name: str, shape: Tuple[int, ...], n_blocks: int) -> int:
    """Which dimension counts blocks: the first, or the second behind one of K and V."""
    fits = [d for d in (0, 1) if d < len(shape) and shape[d] and shape[d] % n_blocks == 0]
    if fits and fits[0] == 1 and shape[0] != 2:
        fits = []
    if not fits:
        raise Unsupported(f"layer {name}: {shape} is not divided into {n_blocks} blocks")
    if len(fits) == 2 and shape[0] == 2:  # a cache of one or two blocks
        raise Unsupported(f"layer {name}: {shape} may be two blocks or K and V; use more than {n_blocks} blocks")
    return fits[0]


def _check_apart(name: str, shape: Tuple[int, ...], strides: Tuple[int, ...]) -> None:
    """No two elements of the tensor lie on the same bytes."""
    reach = 1
    for size, stride in sorted(((n, s) for n, s in zip(shape, strides) if n != 1), key=lambda p: p[1]):
        if stride < reach:
            raise Unsupported(f"layer {name}: parts of its KV cache overlap (shape {shape}, strides {strides})")
        reach += stride * (size - 1)


def _dense_run(shape: Tuple[int, ...], strides: Tuple[int, ...],
               inner: Sequence[int]) -> Tuple[List[int], int]:
    """The dimensions that together are one piece of memory without gaps, and its elements."""
    dense, run = [], 1
    for d in sorted(inner, key=lambda d: (strides[d], shape[d])):
        if shape[d] == 1 or strides[d] == run:
            dense.append(d)
            run *= shape[d]
    return dense, run


def _merge(planes: List[Plane]) -> List[Plane]:
    """Joins neighbours in the payload that are neighbours in memory: fewer, larger pieces, the same payload."""
    merged: List[Plane] = []
    for plane in planes:
        last = merged[-1] if merged else None
        if last and last.stride == plane.stride and last.address + last.bytes == plane.address and (
                last.bytes + plane.bytes <= plane.stride):
            merged[-1] = last._replace(bytes=last.bytes + plane.bytes)
        else:
            merged.append(plane)
    return merged


def _check_planes(index: int, planes: Sequence[Plane], n_blocks: int) -> None:
    """Pieces of different planes never lie on the same bytes. Raises Unsupported."""
    if len(planes) > _MAX_PLANES:
        raise Unsupported(f"KV-cache group {index}: a block lies in {len(planes)} pieces, at most {_MAX_PLANES} "
                          "can be moved; choose a KV-cache layout with blocks outside of heads")
    cluster: List[Plane] = []
    end = 0
    for plane in sorted(planes) + [None]:  # type: ignore[list-item]
        if plane is None or plane.address >= end:
            _check_cluster(index, cluster)
            cluster = []
        if plane is not None:
            cluster.append(plane)
            end = max(end, plane.address + (n_blocks - 1) * plane.stride + plane.bytes)


def _check_cluster(index: int, planes: Sequence[Plane]) -> None:
    """Planes that reach into each other must be interleaved with one stride."""
    if len(planes) < 2:
        return
    stride = planes[0].stride
    spans = sorted(((p.address - planes[0].address) % stride, p.bytes) for p in planes)
    spans.append((spans[0][0] + stride, 0))
    if any(p.stride != stride for p in planes) or any(
            a[0] + a[1] > b[0] for a, b in zip(spans, spans[1:])):
        raise Unsupported(f"KV-cache group {index}: pages of different layers overlap")


def plan_group(group: Group, kv_caches: Dict[str, Any], n_blocks: int, storage_layout: Optional[str],
               kernels: Dict[str, Dict[str, Any]]) -> GroupPages:
    """Planes and layout text of one group. kernels: per layer, what else decides its bytes.

    The text is equal for two engines exactly when their payloads mean the same: numbers of blocks, addresses
    and how far apart pieces lie do not count; which kind of memory they lie in does.
    """
    planes: List[Plane] = []
    described: List[Any] = []
    seen = set()
    dtypes, devices = set(), set()
    for name in group.layers:
        tensor = kv_caches.get(name)
        if tensor is None:
            raise Unsupported(f"KV-cache group {group.index}: no tensor for layer {name}")
        page = _page_of(name, tensor, n_blocks)
        dtype = str(tensor.dtype).replace("torch.", "")
        described.append({"layer": name, "shape": page.shape, "strides": page.strides,
                          "kernel_blocks": page.kernel_blocks, "dtype": dtype,
                          "bytes": sum(plane.bytes for plane in page.planes), **kernels.get(name, {})})
        dtypes.add(dtype)
        devices.add(str(tensor.device))
        if tuple(page.planes) not in seen:  # layers that share their KV cache are moved once
            seen.add(tuple(page.planes))
            planes += page.planes
    if not described:
        raise Unsupported(f"KV-cache group {group.index} has no layers on this rank")
    if len(devices) != 1:
        raise Unsupported(f"KV-cache group {group.index} lies on {', '.join(sorted(devices))}; one device "
                          "is needed")
    device = devices.pop()
    merged = _merge(planes)
    _check_planes(group.index, merged, n_blocks)
    return GroupPages(group, merged, sum(plane.bytes for plane in merged), n_blocks,
                      "+".join(sorted(dtypes)),
                      _layout_text(group, storage_layout, described, device.partition(":")[0]), device)


def _layout_text(group: Group, storage_layout: Optional[str], described: List[Any], memory: str) -> str:
    facts = {"storage": storage_layout, "block_tokens": group.block_tokens, "window": group.window,
             "layers": described}
    if memory != "cpu":
        facts["memory"] = memory
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    first = described[0]
    shape = "x".join(str(n) for n in first["shape"])
    isa = first.get("isa", "") if memory == "cpu" else f"{memory} {first.get('backend', '')}"
    summary = (f"{storage_layout or 'unnamed'} {len(group.layers)} layers of {shape} "
               f"{isa} block={group.block_tokens}").replace("  ", " ")
    return f"{summary} sha256:{digest}"
