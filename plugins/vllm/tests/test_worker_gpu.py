# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The worker's side with GPU tensors: how pages are registered, and that copies follow the engine's stream."""

import ctypes
import logging
import types

import pytest
from terrace_vllm import client as api
from terrace_vllm.layout import FULL, Group, Unsupported
from terrace_vllm.meta import LoadOrder, LoadPart, StepOrders, StoreOrder
from terrace_vllm.stats import Counters
from terrace_vllm.streams import EngineStream
from terrace_vllm.worker import WorkerSide

HASH = "sha256 seed=00"
N_BLOCKS = 8
SHAPE, STRIDES = (2, N_BLOCKS, 4), (N_BLOCKS * 4, 4, 1)  # K and V apart, 4 bytes of each a block


class Device:
    def __init__(self, text):
        self.text, self.type = text, text.partition(":")[0]

    def __str__(self):
        return self.text


class GpuTensor:
    """A GPU tensor whose memory happens to be the host's."""

    def __init__(self, device="cuda:1"):
        self.memory = ctypes.create_string_buffer(2 * N_BLOCKS * 4)
        self.shape, self.dtype, self.device = SHAPE, "torch.uint8", Device(device)

    def data_ptr(self):
        return ctypes.addressof(self.memory)

    def stride(self):
        return STRIDES

    def element_size(self):
        return 1


class FakeStream:
    def __init__(self, device):
        self.device, self.handle, self.followed = device, 0x5EA, 0

    def follow(self):
        self.followed += 1


IDENTITY = types.SimpleNamespace(digest=lambda: "f", name=lambda: "m")


def worker(fake, caches, layers=("l0", "l1"), **options):
    client = fake(types.SimpleNamespace(reason_text=str))
    side = WorkerSide(client, (0, 0), Counters(), make_stream=FakeStream, **options)
    groups = [Group(0, FULL, 4, 0, tuple(layers))]
    side.register(groups, caches, N_BLOCKS, None, {}, IDENTITY, "tp=1/0", "x")
    return side


def caches(*devices):
    return {f"l{i}": GpuTensor(device) for i, device in enumerate(devices or ("cuda:1", "cuda:1"))}


def test_pages_are_registered_with_their_addresses_and_the_stream(fake):
    tensors = caches()
    side = worker(fake, tensors)
    pages = side._pages[0]
    assert (pages.stream, pages.flags, pages.n_blocks) == (0x5EA, 0, N_BLOCKS)
    assert side._stream.device == "cuda:1"
    expected = []
    for tensor in tensors.values():
        expected += [(tensor.data_ptr(), 4, 4), (tensor.data_ptr() + N_BLOCKS * 4, 4, 4)]
    assert pages.planes == expected
    report = side.report()
    assert report.problem is None and report.key_spaces[0]["block_bytes"] == 16
    assert "cuda" in report.key_spaces[0]["layout"]


def test_export_can_be_refused(fake):
    assert worker(fake, caches(), export=False)._pages[0].flags == api.PAGES_NO_EXPORT


def test_host_pages_need_no_stream(fake):
    side = worker(fake, caches("cpu", "cpu"))
    assert side._stream is None and side._pages[0].stream is None


def test_a_library_without_gpus_is_a_problem_that_is_reported(fake, monkeypatch):
    monkeypatch.setattr(fake, "__init__", _too_old(fake.__init__))
    client = fake(types.SimpleNamespace(reason_text=str))
    side = WorkerSide(client, (0, 0), Counters(), make_stream=FakeStream)
    with pytest.raises(api.TerraceError):
        side.register([Group(0, FULL, 4, 0, ("l0",))], caches("cuda:0"), N_BLOCKS, None, {}, IDENTITY, "", "")
    assert "update Terrace" in side.report().problem


def _too_old(original):
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.too_old = True
    return init


def test_groups_on_two_devices_are_refused(fake):
    client = fake(types.SimpleNamespace(reason_text=str))
    side = WorkerSide(client, (0, 0), Counters(), make_stream=FakeStream)
    groups = [Group(0, FULL, 4, 0, ("l0",)), Group(1, FULL, 4, 0, ("l1",))]
    with pytest.raises(Unsupported, match="cuda:0, cuda:1"):
        side.register(groups, caches("cuda:0", "cuda:1"), N_BLOCKS, None, {}, IDENTITY, "", "")
    assert side._pages == {} and "cuda:1" in side.report().problem


def store(side, block, key, **more):
    side.take(StepOrders(HASH, [], [StoreOrder(0, None, key, False, [block])], **more))
    side.start_stores()


def test_copies_follow_the_engines_stream(fake):
    tensors = caches()
    side = worker(fake, tensors)
    stream, client = side._stream, side._client
    side.take(StepOrders(HASH))
    side.start_loads()
    side.start_stores()
    assert stream.followed == 0  # nothing to copy, nothing to pay
    for tensor in tensors.values():
        tensor.memory.raw = bytes(range(64))
    key = b"k" * 32
    store(side, 3, key)
    assert stream.followed == 1
    refs = client.ref(side._key_spaces[0], key)
    order = LoadOrder("r", [LoadPart((0, 0), 0, key, refs, [5])])
    side.take(StepOrders(HASH, [order]))
    side.start_loads()
    assert stream.followed == 2
    assert side.poll() == ({"r"}, set())
    for tensor in tensors.values():
        assert tensor.memory.raw[20:24] == bytes(range(12, 16))
        assert tensor.memory.raw[52:56] == bytes(range(44, 48))


def test_who_copies_is_said_once(fake, caplog):
    caplog.set_level(logging.INFO)
    logging.getLogger("vllm").propagate = True
    side = worker(fake, caches(), export=False)
    side._client.ready = False
    store(side, 1, b"a" * 32)
    assert "copies" not in caplog.text  # not known yet
    side._client.ready = True
    store(side, 1, b"b" * 32)
    store(side, 1, b"c" * 32)
    assert caplog.text.count("copies its GPU pages itself") == 1
    assert "export was refused" in caplog.text


def test_the_engine_may_compute_on_another_stream(monkeypatch):
    torch = pytest.importorskip("torch")

    class Stream:
        def __init__(self, handle):
            self.cuda_stream, self.waited = handle, []

        def wait_stream(self, other):
            self.waited.append(other.cuda_stream)

    current = [Stream(7)]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    stream, first = EngineStream("cuda:0"), current[0]
    stream.follow()
    assert stream.handle == 7 and first.waited == []
    current[0] = Stream(9)
    stream.follow()
    stream.follow()
    assert first.waited == [9, 9] and stream.handle == 7
