# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Pages from live tensors: addresses, refusals, and that the layout text tells engines apart."""

import ctypes
import types

import pytest

torch = pytest.importorskip("torch")

from terrace_vllm.layout import FULL, SLIDING, Group, Unsupported, describe_groups, plan_group, planes_of


def one_plane(name, tensor, n_blocks):
    [plane] = planes_of(name, tensor, n_blocks)
    return plane


def test_plane_reads_what_the_tensor_holds():
    tensor = torch.arange(8 * 2 * 4 * 6, dtype=torch.int16).view(8, 2, 4, 6)
    plane = one_plane("l", tensor, 8)
    for block in range(8):
        raw = ctypes.string_at(plane.address + block * plane.stride, plane.bytes)
        assert raw == tensor[block].contiguous().numpy().tobytes()


def test_block_stride_larger_than_page():
    storage = torch.arange(8 * 100, dtype=torch.int16)
    tensor = torch.as_strided(storage, (8, 4, 6), (100, 6, 1), 3)
    plane = one_plane("l", tensor, 8)
    assert (plane.stride, plane.bytes) == (200, 48)
    assert ctypes.string_at(plane.address + 5 * 200, 48) == tensor[5].contiguous().numpy().tobytes()


def test_kernel_blocks_are_joined():
    tensor = torch.zeros(16, 2, 4, dtype=torch.float32)
    plane = one_plane("l", tensor, 8)
    assert (plane.stride, plane.bytes) == (64, 64)


def test_permuted_page_is_moved_as_it_lies():
    tensor = torch.zeros(8, 4, 2, 6).permute(0, 2, 1, 3)
    assert one_plane("l", tensor, 8).bytes == 4 * 2 * 6 * 4


def test_pages_with_gaps_are_several_pieces():
    tensor = torch.as_strided(torch.zeros(1000), (8, 2, 4), (16, 8, 1))
    first, second = planes_of("l", tensor, 8)
    assert (first.stride, first.bytes, second.bytes) == (64, 16, 16)
    assert second.address - first.address == 32


@pytest.mark.parametrize("shape, stride", [
    ((8, 2, 4), (4, 4, 1)),  # blocks overlap
    ((8, 2, 4), (8, 1, 1)),  # elements overlap
])
def test_pages_with_overlaps_are_refused(shape, stride):
    tensor = torch.as_strided(torch.zeros(1000), shape, stride)
    with pytest.raises(Unsupported):
        planes_of("l", tensor, 8)


def test_split_blocks_that_are_not_adjacent_are_a_plane_each():
    tensor = torch.as_strided(torch.zeros(1000), (16, 4), (8, 1))
    first, second = planes_of("l", tensor, 8)
    assert first.stride == second.stride == 2 * 32 and second.address - first.address == 32
    assert first.bytes == second.bytes == 16


def test_what_is_not_made_of_blocks_is_refused():
    with pytest.raises(Unsupported):
        planes_of("l", torch.zeros(15, 4), 8)
    with pytest.raises(Unsupported):
        planes_of("l", [torch.zeros(8, 4)], 8)


def test_memory_of_other_devices_is_refused():
    with pytest.raises(Unsupported, match="host memory"):
        planes_of("l", torch.zeros(8, 4, device="meta"), 8)


def plan(caches, layers=("a", "b"), kernels=None, storage="LBHNC", block_tokens=4):
    return plan_group(Group(0, FULL, block_tokens, 0, layers), caches, 8, storage, kernels or {})


def test_layout_text_changes_with_whatever_changes_the_bytes():
    base = {"a": torch.zeros(8, 2, 4), "b": torch.zeros(8, 2, 4)}
    texts = [
        plan(base).layout,
        plan({**base, "b": torch.zeros(8, 2, 4, dtype=torch.int32)}).layout,
        plan({**base, "b": torch.zeros(8, 4, 2)}).layout,
        plan({**base, "b": torch.zeros(8, 4, 2).permute(0, 2, 1)}).layout,
        plan(base, layers=("b", "a")).layout,
        plan(base, storage="LBNHC").layout,
        plan(base, block_tokens=8).layout,
        plan(base, kernels={"a": {"isa": "amx"}}).layout,
        plan(base, kernels={"a": {"k_scale": "0.5"}}).layout,
        plan({"a": torch.zeros(16, 2, 4), "b": torch.zeros(16, 2, 4)}).layout,
    ]
    assert len(set(texts)) == len(texts)
    assert all(len(text) <= 1024 for text in texts)
    more = {"a": torch.zeros(8, 2, 4), "b": torch.zeros(8, 2, 4)}
    assert plan(more).layout == texts[0]


def test_number_of_blocks_is_not_identity():
    small = plan_group(Group(0, FULL, 4, 0, ("a",)), {"a": torch.zeros(8, 2)}, 8, "L", {})
    large = plan_group(Group(0, FULL, 4, 0, ("a",)), {"a": torch.zeros(32, 2)}, 32, "L", {})
    assert small.layout == large.layout and small.block_bytes == large.block_bytes


def test_layers_sharing_their_cache_are_moved_once():
    shared = torch.zeros(8, 2, 4)
    planned = plan({"a": shared, "b": shared})
    assert len(planned.planes) == 1 and planned.block_bytes == 32


def test_missing_layer():
    with pytest.raises(Unsupported, match="no tensor for layer b"):
        plan({"a": torch.zeros(8, 2, 4)})


def spec(name, block=4, **fields):
    return type(name, (), {"block_size": block, **fields})()


def config(*specs, **fields):
    groups = [types.SimpleNamespace(layer_names=[f"l{i}"], kv_cache_spec=s) for i, s in enumerate(specs)]
    return types.SimpleNamespace(kv_cache_groups=groups, **fields)


def test_groups_are_described():
    groups, hash_tokens, align = describe_groups(config(
        spec("FullAttentionSpec", 8), spec("SlidingWindowSpec", 4, sliding_window=10)))
    assert [g.name() for g in groups] == ["0:full", "1:sliding:10"]
    assert (hash_tokens, align) == (4, 8)
    assert groups[1].kind == SLIDING


@pytest.mark.parametrize("specs", [
    [], [spec("MambaSpec")], [spec("ChunkedLocalAttentionSpec")],
    [spec("FullAttentionSpec", prefix_cacheable=False)], [spec("SomethingNewSpec")],
])
def test_other_kinds_are_refused(specs):
    with pytest.raises(Unsupported):
        describe_groups(config(*specs))


def test_hash_size_must_divide():
    with pytest.raises(Unsupported):
        describe_groups(config(spec("FullAttentionSpec", 4), hash_block_size=3))
