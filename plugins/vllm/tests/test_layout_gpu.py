# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Pages of GPU tensors in every layout of vLLM, against a numpy model of the same memory.

The tensors are stand-ins with a GPU tensor's face whose memory is a numpy array, so that every byte a plane
names can be looked at.
"""

import numpy as np
import pytest
from terrace_vllm.layout import FULL, Group, Unsupported, plan_group, planes_of

BASE = 0x7F00_0000_0000
ITEM = 2


class Tensor:
    """A GPU tensor's face over memory[offset:]; strides in elements."""

    def __init__(self, memory, offset, shape, strides, device="cuda:0", dtype="torch.bfloat16"):
        self.memory, self.offset, self.shape, self._strides = memory, offset, tuple(shape), tuple(strides)
        self.device = _Device(device)
        self.dtype = dtype

    def data_ptr(self):
        return BASE + self.offset

    def stride(self):
        return self._strides

    def element_size(self):
        return ITEM

    def array(self):
        return np.lib.stride_tricks.as_strided(
            self.memory[self.offset:].view(np.uint16), self.shape, [s * ITEM for s in self._strides])


class _Device:
    def __init__(self, text):
        self.text, self.type = text, text.partition(":")[0]

    def __str__(self):
        return self.text


def strides_of(shape, order):
    """Strides of a tensor whose dimensions lie in memory in this order, outermost first."""
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= shape[d]
    return strides


LAYERS, HEADS, TOKENS, CONTENT = 3, 4, 8, 6


def vllm_cache(name, n_blocks, kernel_blocks=1):
    """One memory and the layers' tensors [blocks, heads, tokens, content] in it, by vLLM's name of the order."""
    sizes = {"L": LAYERS, "B": n_blocks * kernel_blocks, "H": HEADS, "N": TOKENS, "C": CONTENT}
    letters = "LBHNC"
    whole = strides_of([sizes[x] for x in letters], [letters.index(x) for x in name])
    memory = np.zeros(int(np.prod(list(sizes.values()))) * ITEM + 64, np.uint8)
    shape = [sizes[x] for x in "BHNC"]
    return memory, {f"l{i}": Tensor(memory, 64 + i * whole[0] * ITEM, shape, whole[1:]) for i in range(LAYERS)}


def kv_first(n_blocks, kernel_blocks=1, heads_first=False):
    """An allocation a layer of [2, blocks, tokens, heads, content]; heads_first: HND in memory."""
    shape = [2, n_blocks * kernel_blocks, TOKENS, HEADS, CONTENT]
    order = [0, 1, 3, 2, 4] if heads_first else [0, 1, 2, 3, 4]
    size = int(np.prod(shape)) * ITEM
    memory = np.zeros(LAYERS * (size + 128), np.uint8)
    return memory, {f"l{i}": Tensor(memory, i * (size + 128), shape, strides_of(shape, order))
                    for i in range(LAYERS)}


def mla(n_blocks, kernel_blocks=1):
    shape = [n_blocks * kernel_blocks, TOKENS, 9]
    size = int(np.prod(shape)) * ITEM
    memory = np.zeros(LAYERS * size, np.uint8)
    return memory, {f"l{i}": Tensor(memory, i * size, shape, strides_of(shape, [0, 1, 2])) for i in range(LAYERS)}


def padded(n_blocks, kernel_blocks=1):
    """Pages that are smaller than the pool's: hybrid models."""
    assert kernel_blocks == 1
    shape, page = [n_blocks, 2, TOKENS, CONTENT], 2 * TOKENS * CONTENT + 32
    memory = np.zeros(LAYERS * n_blocks * page * ITEM, np.uint8)
    strides = strides_of(shape, [0, 1, 2, 3])
    strides[0] = page
    return memory, {f"l{i}": Tensor(memory, i * n_blocks * page * ITEM, shape, strides) for i in range(LAYERS)}


CASES = {
    **{name: lambda n, k=1, name=name: vllm_cache(name, n, k)
       for name in ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")},
    "kv first, NHD": kv_first,
    "kv first, HND": lambda n, k=1: kv_first(n, k, heads_first=True),
    "MLA": mla,
    "padded": padded,
}
# Planes a layer's page takes; those of layers that are neighbours in memory are joined.
PLANES = {"LBHNC": LAYERS, "LBNHC": LAYERS, "LHBNC": LAYERS * HEADS, "BLHNC": 1, "BLNHC": 1,
          "BHLNC": LAYERS * HEADS, "kv first, NHD": 2 * LAYERS, "kv first, HND": 2 * LAYERS, "MLA": LAYERS,
          "padded": LAYERS}
SPLITS = [(name, k) for name in CASES for k in (1, 3) if k == 1 or name != "padded"]


def plan(caches, n_blocks, storage=None, kernels=None, layers=None):
    return plan_group(Group(0, FULL, 16, 0, tuple(layers or caches)), caches, n_blocks, storage, kernels or {})


def touched(planned, block):
    """Offsets in memory of the block's bytes, in the order of the payload."""
    return np.concatenate([np.arange(p.bytes) + (p.address - BASE + block * p.stride) for p in planned.planes])


def block_axis(tensor, n_blocks):
    return 0 if tensor.shape[0] % n_blocks == 0 else 1


def block_of(tensor, block, n_blocks, kernel_blocks):
    index = [slice(None)] * len(tensor.shape)
    index[block_axis(tensor, n_blocks)] = slice(block * kernel_blocks, (block + 1) * kernel_blocks)
    return tensor.array()[tuple(index)]


@pytest.mark.parametrize("name, kernel_blocks", SPLITS)
def test_planes_are_exactly_the_tensors_bytes(name, kernel_blocks):
    n_blocks = 7
    memory, caches = CASES[name](n_blocks, kernel_blocks)
    planned = plan(caches, n_blocks)
    if kernel_blocks == 1:
        assert len(planned.planes) == PLANES[name]
    taken = np.zeros(memory.size, np.int32)
    for block in range(n_blocks):
        before = taken.copy()
        np.add.at(taken, touched(planned, block), 1)
        memory[:] = 0
        for tensor in caches.values():
            block_of(tensor, block, n_blocks, kernel_blocks)[...] = 0xFFFF
        assert np.array_equal((taken - before).astype(bool), memory != 0)
        assert planned.block_bytes == len(touched(planned, block))
    assert taken.max() == 1


# Orders that differ only in where a block's pieces lie: the payload is the same, and so is the text.
ALIKE = [("LBHNC", "BLHNC"), ("LBNHC", "BLNHC"), ("LHBNC", "BHLNC")]
PAIRS = [(name, name, k) for name, k in SPLITS] + [(a, b, k) for a, b in ALIKE for k in (1, 3)]


@pytest.mark.parametrize("name, other_name, kernel_blocks", PAIRS)
def test_equal_texts_mean_equal_payloads(name, other_name, kernel_blocks):
    """A block of one engine's cache becomes the same block in that of another of a different size."""
    memory, caches = CASES[name](7, kernel_blocks)
    other_memory, other = CASES[other_name](12, kernel_blocks)
    planned, target = plan(caches, 7), plan(other, 12)
    assert planned.layout == target.layout and planned.block_bytes == target.block_bytes
    memory[:] = np.random.default_rng(1).integers(0, 256, memory.size)
    other_memory[touched(target, 11)] = memory[touched(planned, 3)]
    for layer in caches:
        assert np.array_equal(block_of(other[layer], 11, 12, kernel_blocks),
                              block_of(caches[layer], 3, 7, kernel_blocks))


def test_texts_tell_layouts_apart():
    texts = [plan(CASES[name](7, k)[1], 7).layout for name, k in SPLITS]
    assert len(set(texts)) == len(texts) - 2 * len(ALIKE)
    assert len({plan(CASES[name](7)[1], 7, storage=name).layout for name in CASES}) == len(CASES)
    _, caches = CASES["LBHNC"](7)
    base = plan(caches, 7).layout
    assert "cuda" in base
    for tensor in caches.values():
        tensor.device = _Device("cpu")
    assert plan(caches, 7).layout != base
    for tensor in caches.values():
        tensor.device = _Device("cuda:3")
    assert plan(caches, 7).layout == base  # which GPU does not matter


@pytest.mark.parametrize("name", CASES)
def test_layers_come_in_their_order(name):
    """The leading planes hold the first layer: an engine may use it while the rest comes."""
    memory, caches = CASES[name](7)
    planned, memory[:], done = plan(caches, 7), 0, []
    for plane in planned.planes:
        start = plane.address - BASE + 2 * plane.stride
        memory[start:start + plane.bytes] = 1
        done.append([(block_of(tensor, 2, 7, 1) == 0x0101).all() for tensor in caches.values()])
    assert all(row == sorted(row, reverse=True) for row in done) and all(done[-1])


def test_hybrid_groups_share_one_allocation():
    memory, caches = vllm_cache("LBHNC", 7)
    group = [plan(caches, 7, layers=["l0", "l1"]), plan({"x": caches["l0"], "y": caches["l1"]}, 7)]
    assert group[0].planes == group[1].planes and group[0].layout != group[1].layout


def test_layers_that_reach_into_each_other_are_refused():
    _, caches = vllm_cache("LBHNC", 7)
    page = HEADS * TOKENS * CONTENT * ITEM
    caches["l1"].offset = caches["l0"].offset + page // 2
    with pytest.raises(Unsupported, match="overlap"):
        plan(caches, 7)
    caches["l1"].offset = caches["l0"].offset + page  # block 1 of one is block 0 of the other
    with pytest.raises(Unsupported, match="overlap"):
        plan(caches, 7)


def test_two_devices_are_refused():
    _, caches = vllm_cache("LBHNC", 7)
    caches["l2"].device = _Device("cuda:1")
    with pytest.raises(Unsupported, match="cuda:0, cuda:1"):
        plan(caches, 7)
    caches["l2"].device = _Device("xpu:0")
    with pytest.raises(Unsupported, match="xpu"):
        plan(caches, 7)


def test_too_many_pieces_are_refused():
    shape = [64, 1100, 2, 2]  # 1,100 pieces a layer
    strides = [4, 4 * 64, 2, 1]
    memory = np.zeros(8, np.uint8)
    caches = {f"l{i}": Tensor(memory, i << 30, shape, strides) for i in range(4)}
    with pytest.raises(Unsupported, match="4096"):
        plan(caches, 64)
    del caches["l3"]
    assert len(plan(caches, 64).planes) == 3300


@pytest.mark.parametrize("shape", [(2, 2, 8, 6), (2, 1, 8, 6)])
def test_two_blocks_or_k_and_v_is_not_guessed(shape):
    tensor = Tensor(np.zeros(8, np.uint8), 0, shape, strides_of(shape, [0, 1, 2, 3]))
    with pytest.raises(Unsupported, match="more than"):
        planes_of("l", tensor, shape[1])
