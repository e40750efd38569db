# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What a block is on this engine: KV-cache groups, and the pages of live tensors as raw memory.

A block's payload is, for one group, its layers' pages one after the other. Pages are opaque: how K and
V lie inside one is the attention kernel's affair and goes into the key space's layout text. What cannot
be moved page by page is refused (Unsupported), never guessed.

torch is not imported: tensors are used through data_ptr(), shape, stride(), element_size(), dtype, device.
"""

import hashlib
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
    """One layer's pages in memory; see terrace_plane."""

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


def plane_of(name: str, tensor: Any, n_blocks: int) -> Plane:
    """The layer's pages as (address, stride, bytes). Raises Unsupported if a page is not dense."""
    if not hasattr(tensor, "data_ptr"):
        raise Unsupported(f"layer {name} has no single KV tensor ({type(tensor).__name__})")
    if tensor.device.type != "cpu":
        raise Unsupported(f"layer {name}'s KV cache is on {tensor.device}; this version moves only "
                          "KV caches in host memory")
    shape, strides, item = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    if not shape or shape[0] == 0 or shape[0] % n_blocks:
        raise Unsupported(f"layer {name}: {shape} is not divided into {n_blocks} blocks")
    kernel_blocks = shape[0] // n_blocks  # the kernel may split a block into smaller ones
    page = _dense_bytes(name, shape[1:], strides[1:], item)
    stride = strides[0] * item
    if stride < page:
        raise Unsupported(f"layer {name}: blocks overlap (stride {stride}, page {page} bytes)")
    if kernel_blocks > 1 and stride != page:
        raise Unsupported(f"layer {name}: {kernel_blocks} kernel blocks a block, but not adjacent")
    return Plane(tensor.data_ptr(), stride * kernel_blocks, page * kernel_blocks)


def _dense_bytes(name: str, shape: Tuple[int, ...], strides: Tuple[int, ...], item: int) -> int:
    """Bytes of a page, which may be permuted but must have neither gaps nor overlaps."""
    expected = 1
    for size, stride in sorted(((n, s) for n, s in zip(shape, strides) if n != 1),
                               key=lambda pair: pair[1]):
        if stride != expected:
            raise Unsupported(f"layer {name}: a block's page is not one piece of memory "
                              f"(shape {shape}, strides {strides})")
        expected *= size
    return expected * item


def plan_group(group: Group, kv_caches: Dict[str, Any], n_blocks: int, storage_layout: Optional[str],
               kernels: Dict[str, Dict[str, Any]]) -> GroupPages:
    """Planes and layout text of one group. kernels: per layer, what else decides its bytes."""
    planes: List[Plane] = []
    described: List[Any] = []
    seen = set()
    dtypes = set()
    first = None
    for name in group.layers:
        tensor = kv_caches.get(name)
        if tensor is None:
            raise Unsupported(f"KV-cache group {group.index}: no tensor for layer {name}")
        plane = plane_of(name, tensor, n_blocks)
        dtype = str(tensor.dtype).replace("torch.", "")
        page = {"layer": name, "shape": list(tensor.shape[1:]), "strides": list(tensor.stride()[1:]),
                "kernel_blocks": tensor.shape[0] // n_blocks, "dtype": dtype, "bytes": plane.bytes,
                **kernels.get(name, {})}
        described.append(page)
        dtypes.add(dtype)
        first = first or page
        if plane in seen:  # layers that share their KV cache are moved once
            continue
        seen.add(plane)
        planes.append(plane)
    if first is None:
        raise Unsupported(f"KV-cache group {group.index} has no layers on this rank")
    text = json.dumps({"storage": storage_layout, "block_tokens": group.block_tokens,
                       "window": group.window, "layers": described}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    shape = "x".join(str(n) for n in first["shape"])
    summary = (f"{storage_layout or 'unnamed'} {len(group.layers)} layers of {shape} "
               f"{first.get('isa', '')} block={group.block_tokens}").replace("  ", " ")
    return GroupPages(group, planes, sum(plane.bytes for plane in planes), n_blocks,
                      "+".join(sorted(dtypes)), f"{summary} sha256:{digest}")
