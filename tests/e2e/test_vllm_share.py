# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What one vLLM process computed another one loads, and its tokens are those of plain vLLM."""

import pytest
from conftest import attach

TOKENS = 12


def tokens_of(results):
    return [result.token_ids for result in results]


SLIDING = dict(name="sliding", window=96)

CASES = {
    "block 32": (dict(), dict(block_size=32)),
    "block 64": (dict(), dict(block_size=64)),
    "block 128": (dict(), dict(block_size=128)),
    "float32": (dict(name="float32", dtype="float32"), dict(dtype="float32")),
    "fp8 cache": (dict(), dict(kv_cache_dtype="fp8")),
    "no prefix caching": (dict(), dict(enable_prefix_caching=False)),
    "chunked prefill": (dict(), dict(max_num_batched_tokens=128, enable_chunked_prefill=True)),
    "sliding window": (SLIDING, dict()),
    "sliding window, chunks": (SLIDING, dict(max_num_batched_tokens=128, enable_chunked_prefill=True)),
    "sliding window, no prefix caching": (SLIDING, dict(enable_prefix_caching=False)),
    "cbor hashes": (dict(), dict(prefix_caching_hash_algo="sha256_cbor")),
}


@pytest.mark.parametrize("case", CASES)
def test_fresh_process_hits_with_the_same_tokens(case, engine, models, prompts):
    model, options = CASES[case]
    model = models(**model)
    block = options.get("block_size", 32)
    # Whole blocks, a rest, one block, and less than a block.
    batch = prompts(5 * 128, 700, 128, 31)
    with engine(model, connector=None, **options) as plain:
        expected = tokens_of(plain.generate(batch, TOKENS))
    with engine(model, **options) as first:
        cold = first.generate(batch, TOKENS)
        assert tokens_of(cold) == expected
        assert [r.cached_tokens for r in cold] == [0, 0, 0, 0]
        first.call("engine_side:wait_stored")
        assert first.call("engine_side:counters")["store_blocks"] > 0
    with engine(model, **options) as second:
        warm = second.generate(batch, TOKENS)
        assert tokens_of(warm) == expected
        for prompt, result in zip(batch, warm):
            whole = len(prompt) // block * block
            # A whole-prompt hit still computes its last token.
            assert result.cached_tokens in (whole, whole - 1)
        counters = second.call("engine_side:counters")
        assert counters["loads"] == 3 and counters["load_blocks"] > 0
        assert counters.get("loads_failed", 0) == counters.get("errors", 0) == 0
        left = second.call("engine_side:leftovers")
        assert all(n == 0 for n in left.values()), left


def test_generated_tokens_are_shared_too(engine, models, prompts):
    [prompt] = prompts(40)
    with engine(models()) as first:
        [answer] = first.generate([prompt], 64)
        first.call("engine_side:wait_stored")
    turn = prompt + answer.token_ids[:-1] + prompts(20)[0]
    with engine(models()) as second, engine(models(), connector=None) as plain:
        [result] = second.generate([turn], TOKENS)
        assert result.cached_tokens == 96  # 103 tokens computed before: three full blocks
        assert result.token_ids == plain.generate([turn], TOKENS)[0].token_ids


def test_local_and_external_hit_together(engine, models, prompts):
    base, tail = prompts(96, 200)
    with engine(models()) as first, engine(models()) as second:
        expected = first.generate([base + tail], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
        second.generate([base], 1)  # three blocks in the second engine's own cache
        before = second.call("engine_side:counters").get("load_blocks", 0)
        [result] = second.generate([base + tail], TOKENS)
        assert result.token_ids == expected and result.cached_tokens == 288
        assert second.call("engine_side:counters")["load_blocks"] - before == 6


def test_two_engines_at_once(engine, models, prompts):
    batch = prompts(300, 400, 500, 260)
    with engine(models(), connector=None) as plain:
        expected = [r.token_ids for r in plain.generate(batch, TOKENS)]
    with engine(models()) as one, engine(models()) as two:
        for _ in range(3):
            for node in (one, two):
                node.submit("terrace_vllm.testing.forkserver:_generate", batch, TOKENS, [], {})
            for node in (one, two):
                assert tokens_of(node.answer()) == expected
            for node in (one, two):
                assert node.call("engine_side:reset_local_cache")
        for node in (one, two):
            assert node.call("engine_side:counters")["load_blocks"] > 0


def test_salt_separates(engine, models, prompts):
    [prompt] = prompts(200)
    with engine(models()) as first:
        expected = first.generate([prompt], TOKENS, salts=["alice"])[0].token_ids
        first.call("engine_side:wait_stored")
    with engine(models(), enable_prefix_caching=False) as second:
        for salt, cached in (("bob", 0), (None, 0), ("alice", 192)):
            [result] = second.generate([prompt], TOKENS, salts=[salt])
            assert (result.cached_tokens, result.token_ids) == (cached, expected), salt


def test_prompt_logprobs_are_computed_not_loaded(engine, models, prompts):
    [prompt] = prompts(100)
    with engine(models()) as first:
        expected = first.generate([prompt], TOKENS)[0].token_ids
        first.call("engine_side:wait_stored")
    with engine(models()) as second:
        [result] = second.generate([prompt], TOKENS, prompt_logprobs=1)
        assert (result.cached_tokens, result.token_ids) == (0, expected)
        assert second.generate([prompt], TOKENS)[0].token_ids == expected


def test_preemption(engine, models, prompts):
    """Eight requests in a cache for about three: they are preempted, and come back through Terrace."""
    batch = prompts(*[150] * 8)
    with engine(models(), connector=None) as plain:
        expected = tokens_of(plain.generate(batch, 80))
    with engine(models(), num_gpu_blocks_override=26, max_num_seqs=8, max_model_len=512) as small:
        small.call("engine_side:count_preemptions")
        for _ in range(2):
            assert tokens_of(small.generate(batch, 80)) == expected
        counters = small.call("engine_side:counters")
        assert counters["preemptions"] > 0 and counters["loads"] > 0
        left = small.call("engine_side:leftovers")
        assert all(n == 0 for n in left.values()), left


@pytest.mark.slow
def test_tensor_parallel_two(server, daemon, models, prompts):
    """Two worker processes, each with its own key space; a hit needs both ranks' blocks."""
    batch = prompts(640, 300)
    options = dict(connector=attach(daemon), tensor_parallel_size=2,
                   distributed_executor_backend="mp", before=["engine_side:fork_workers"])
    with server.engine(models(), **options) as first:
        cold = first.generate(batch, TOKENS)
        assert [r.cached_tokens for r in cold] == [0, 0]
    with server.engine(models(), **options) as second:
        warm = second.generate(batch, TOKENS)
        assert tokens_of(warm) == tokens_of(cold)
        assert [r.cached_tokens for r in warm] in ([639, 288], [640, 288])
    # One rank's blocks are half the size and lie in other key spaces: a single worker finds nothing.
    with server.engine(models(), connector=attach(daemon)) as single:
        assert [r.cached_tokens for r in single.generate(batch, 1)] == [0, 0]
