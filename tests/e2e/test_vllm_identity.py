# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Engines that compute something else never get each other's blocks, though their hashes are equal."""

import random
import shutil

import pytest
from conftest import VOCAB, attach

TOKENS = 12


@pytest.fixture(scope="module")
def stored(server, shared_daemon, models):
    """A prompt that an engine of the base model has stored, and its tokens."""
    rng = random.Random("identity")
    prompt = [rng.randrange(3, VOCAB) for _ in range(400)]
    with server.engine(models(), connector=attach(shared_daemon)) as first:
        tokens = first.generate([prompt], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
    return prompt, tokens


def test_equal_engine_in_another_folder_does_hit(stored, engine, models, tmp_path):
    """The check of the checks below: the same setting with equal weights is a hit."""
    prompt, tokens = stored
    copy = tmp_path / "base"
    shutil.copytree(models(), copy)
    with engine(str(copy)) as other:
        [result] = other.generate([prompt], TOKENS)
        assert (result.cached_tokens, result.token_ids) == (384, tokens)


DIFFERENT = {
    "other weights, same shapes": dict(seed=1),
    "other dtype of the model": dict(dtype="float32"),
    "other dtype of the cache": dict(kv_cache_dtype="fp8"),
    "other block size": dict(block_size=64),
    "other hash algorithm": dict(prefix_caching_hash_algo="sha256_cbor"),
    "other hash seed": dict(environment={"PYTHONHASHSEED": "7"}),
    "other rope": dict(hf_overrides={"rope_theta": 5000.0}),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_difference_never_hits(case, stored, engine, models):
    prompt, tokens = stored
    options = dict(DIFFERENT[case])
    seed = options.pop("seed", 0)
    model = models("seed 1", seed=1) if seed else models()
    with engine(model, **options) as other:
        [result] = other.generate([prompt], TOKENS)
        assert result.cached_tokens == 0
        if seed:
            assert result.token_ids != tokens
        assert other.call("engine_side:counters").get("hit_blocks", 0) == 0


def test_new_weights_under_the_same_path(engine, server, prompts, tmp_path):
    """A fine-tuning job writes its result over the old one; no shape, no name, no size changes."""
    folder = str(tmp_path / "model")
    [prompt] = prompts(400)

    def write(seed):
        with server.bare() as child:
            child.call("engine_side:make_model", folder, seed=seed)

    write(1)
    with engine(folder) as first:
        old = first.generate([prompt], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
    write(2)
    with engine(folder, connector=None) as plain:
        expected = plain.generate([prompt], TOKENS)[0].token_ids
    with engine(folder) as second:
        [result] = second.generate([prompt], TOKENS)
        assert (result.cached_tokens, result.token_ids) == (0, expected)
    assert expected != old
    write(1)
    with engine(folder) as third:  # the old weights are back, and so are their blocks
        [result] = third.generate([prompt], TOKENS)
        assert (result.cached_tokens, result.token_ids) == (384, old)
