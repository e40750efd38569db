# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The model's identity follows content, not paths and not times."""

import os
import types

import pytest
from terrace_vllm import fingerprint
from terrace_vllm.fingerprint import ModelIdentity, Unresolved, digest_adapter


def model(path, **hf):
    return types.SimpleNamespace(model=str(path), model_weights="", revision=None, dtype="bfloat16",
                                 quantization=None, seed=0,
                                 hf_config=types.SimpleNamespace(to_dict=lambda: {"layers": 2, **hf}))


def load(kind="auto"):
    return types.SimpleNamespace(load_format=kind)


def write(folder, data=b"weights" * 1000, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


def identity(folder, override=None, kind="auto", **hf):
    return ModelIdentity(model(folder, **hf), load(kind), override).digest()


def test_same_content_elsewhere_is_the_same_model(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    os.utime(b / "model.safetensors", (1, 1))
    assert identity(a, _name_or_path="/a") == identity(b, _name_or_path="/b")


def test_new_weights_under_the_same_path_differ(tmp_path):
    folder = write(tmp_path / "a")
    before = identity(folder)
    info = os.stat(folder / "model.safetensors")
    data = bytearray(b"weights" * 1000)
    data[3500] ^= 1  # one bit, same size, same time
    write(folder, bytes(data))
    os.utime(folder / "model.safetensors", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert identity(folder) != before


@pytest.mark.parametrize("where", [0, 40 << 10, (8 << 20) - 1])
def test_large_files_are_sampled(tmp_path, monkeypatch, where):
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 1 << 20)
    folder = write(tmp_path / "a", bytes(8 << 20))
    path = folder / "model.safetensors"
    before = identity(folder)
    info = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(b"x")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert identity(folder) != before


def test_large_files_also_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 1 << 10)
    folder = write(tmp_path / "a", bytes(1 << 20))
    before = identity(folder)
    os.utime(folder / "model.safetensors", (5, 5))
    assert identity(folder) != before


def test_configuration_counts(tmp_path):
    folder = write(tmp_path / "a")
    assert identity(folder) != identity(folder, rope_theta=2)
    other = ModelIdentity(types.SimpleNamespace(**{**vars(model(folder)), "quantization": "fp8"}),
                          load(), None)
    assert other.digest() != identity(folder)


def test_hub_blobs_are_known_by_name(tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), folder.mkdir()
    name = "ab" * 32
    (blobs / name).write_bytes(b"x")
    (folder / "model.safetensors").symlink_to(blobs / name)
    before = identity(folder)
    (folder / "model.safetensors").unlink()
    (blobs / ("cd" * 32)).write_bytes(b"x")
    (folder / "model.safetensors").symlink_to(blobs / ("cd" * 32))
    assert identity(folder) != before


def test_weights_that_change_during_the_start_are_refused(tmp_path):
    folder = write(tmp_path / "a")
    started = ModelIdentity(model(folder), load(), None)
    write(folder, b"other")
    with pytest.raises(Unresolved, match="changed"):
        started.digest()


def test_unknown_weights_are_refused_unless_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unresolved):
        identity(tmp_path / "empty")
    with pytest.raises(Unresolved):
        identity("no-such/model-anywhere")
    given = identity(tmp_path / "empty", override="v1")
    assert given != identity(tmp_path / "empty", override="v2")


def test_dummy_weights_need_no_files(tmp_path):
    assert identity(tmp_path, kind="dummy") == identity(tmp_path, kind="dummy")
    assert identity(tmp_path, kind="dummy") != identity(tmp_path, kind="dummy", layers=3)


def test_adapters_by_content(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", b"other")
    assert digest_adapter(str(a)) != digest_adapter(str(b))
    assert digest_adapter(str(tmp_path / "none")) is None
