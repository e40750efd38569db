# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Which model this is, by content: configuration and weight files, not by path.

vLLM's block hashes cover the tokens only. Two engines with other weights compute the same hashes, so the
key space must tell them apart; the same path with new weights in it included.
"""

import hashlib
import json
import os
from typing import Any, List, NamedTuple, Optional, Tuple

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".tensors")
# Read whole up to here (1.5 GB/s with SHA instructions: under a second of an engine's start). Beyond, a
# file is known by its size, its time and samples.
_WHOLE_BYTES = 1 << 30
_SAMPLE_BYTES = 64 << 10
_SAMPLES = 64
# Keys of hf_config that say where a model lies or who wrote it, not what it computes.
_NOT_IDENTITY = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


class WeightFile(NamedTuple):
    """A weight file as found when the engine started to read it."""

    name: str
    path: str
    size: int
    mtime_ns: int
    inode: int


class Unresolved(Exception):
    """The weights cannot be found as files, so nobody can say which they are."""


def canonical(value: Any) -> str:
    """The same text for equal values in every process: sorted keys, anything odd by its str()."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def find_weights(model_config: Any) -> List[WeightFile]:
    """The model's weight files, by name. Raises Unresolved."""
    directory = _directory(model_config)
    files = []
    if os.path.isfile(directory):
        files.append(_stat(os.path.basename(directory), directory))
    else:
        for folder, _, names in os.walk(directory):
            for name in names:
                if name.endswith(_WEIGHT_SUFFIXES):
                    path = os.path.join(folder, name)
                    files.append(_stat(os.path.relpath(path, directory), path))
    if not files:
        raise Unresolved(f"no weight files in {directory}")
    return sorted(files)


def _directory(model_config: Any) -> str:
    model = str(getattr(model_config, "model_weights", None) or model_config.model)
    if os.path.exists(model):
        return model
    try:  # a model of the Hugging Face hub: vLLM has put it into the local cache
        from huggingface_hub import snapshot_download

        return snapshot_download(model, revision=getattr(model_config, "revision", None),
                                 local_files_only=True)
    except Exception as error:
        raise Unresolved(f"{model} is neither a local path nor in the hub's cache") from error


def _stat(name: str, path: str) -> WeightFile:
    info = os.stat(path)
    return WeightFile(name, path, info.st_size, info.st_mtime_ns, info.st_ino)


def digest_weights(files: List[WeightFile]) -> str:
    """A digest over the files' content: whole when together under 1 GiB, else size, time and samples.

    A file of the hub's cache is named by its content already (blobs/<sha256>): no need to read it.
    """
    whole = sum(file.size for file in files) <= _WHOLE_BYTES
    digest = hashlib.sha256()
    for file in files:
        real = os.path.realpath(file.path)
        blob = os.path.basename(real)
        if os.path.basename(os.path.dirname(real)) == "blobs" and len(blob) == 64:
            content = ["blob", blob]
        elif whole:
            content = ["sha256", _digest_ranges(file.path, [(0, file.size)])]
        else:
            content = ["sample", _digest_ranges(file.path, _sample_ranges(file.size)), file.mtime_ns]
        digest.update(canonical([file.name, file.size, content]).encode())
    return digest.hexdigest()


def _sample_ranges(size: int) -> List[Tuple[int, int]]:
    """Head, tail and evenly spread pages; the head holds a safetensors file's table."""
    if size <= _SAMPLE_BYTES * _SAMPLES:
        return [(0, size)]
    step = (size - _SAMPLE_BYTES) // (_SAMPLES - 1)
    return [(i * step, _SAMPLE_BYTES) for i in range(_SAMPLES - 1)] + [
        (size - _SAMPLE_BYTES, _SAMPLE_BYTES)]


def _digest_ranges(path: str, ranges: List[Tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for offset, length in ranges:
            file.seek(offset)
            while length > 0:
                piece = file.read(min(length, 4 << 20))
                if not piece:
                    break
                digest.update(piece)
                length -= len(piece)
    return digest.hexdigest()


def config_of(model_config: Any) -> dict:
    """Everything in the model's configuration that may change what its KV cache holds."""
    hf_config = model_config.hf_config
    values = hf_config.to_dict() if hasattr(hf_config, "to_dict") else dict(vars(hf_config))
    return {
        "hf_config": {k: v for k, v in values.items() if k not in _NOT_IDENTITY},
        "dtype": str(getattr(model_config, "dtype", None)),
        "quantization": str(getattr(model_config, "quantization", None)),
        "quantization_config": str(getattr(model_config, "quantization_config", None)),
        "disable_sliding_window": getattr(model_config, "disable_sliding_window", None),
        "model_impl": str(getattr(model_config, "model_impl", None)),
    }


class ModelIdentity:
    """Which model this engine runs. Made before the weights are read, asked for after.

    Owner: the worker side. A file that changed in between was read half old, half new, or not at all:
    digest() raises Unresolved then, and the engine runs without the cache.
    """

    def __init__(self, model_config: Any, load_config: Any, override: Optional[str]) -> None:
        self._model_config = model_config
        self._override = override
        self._format = str(getattr(load_config, "load_format", "auto"))
        self._files: Optional[List[WeightFile]] = None
        self._problem: Optional[Unresolved] = None
        if override is None and self._format.rsplit(".", 1)[-1].lower() != "dummy":
            try:
                self._files = find_weights(model_config)
            except (Unresolved, OSError) as error:
                self._problem = Unresolved(str(error))

    def name(self) -> str:
        """For humans: the last part of a local path, or the hub's name."""
        model = str(self._model_config.model)
        return os.path.basename(os.path.normpath(model)) if os.path.exists(model) else model

    def digest(self) -> str:
        config = canonical(config_of(self._model_config))
        if self._override is not None:
            weights = "given:" + self._override
        elif self._problem is not None:
            raise self._problem
        elif self._files is None:
            # Dummy weights depend on nothing but the shapes; vLLM seeds them with a constant.
            weights = "dummy:" + str(getattr(self._model_config, "seed", None))
        else:
            now = [_stat(file.name, file.path) for file in self._files]
            if now != self._files:
                raise Unresolved("the weight files changed while the engine was starting")
            weights = digest_weights(self._files)
        return hashlib.sha256(f"{config}\0{weights}".encode()).hexdigest()


def digest_adapter(path: str) -> Optional[bytes]:
    """A LoRA adapter's content. vLLM's hash has its name and path only. None: cannot be read."""
    try:
        if not os.path.isdir(path):
            return None
        files = []
        for folder, _, names in os.walk(path):
            for name in names:
                if name.endswith(_WEIGHT_SUFFIXES + (".json",)):
                    full = os.path.join(folder, name)
                    files.append(_stat(os.path.relpath(full, path), full))
        return hashlib.sha256(digest_weights(sorted(files)).encode()).digest() if files else None
    except OSError:
        return None
