# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What host memory cannot hold lies on disk, and an engine gets it from there: with the tokens of plain vLLM, after
kill -9 of the daemon too, and computes it when the disk does not deliver."""

import pytest
from conftest import attach

from terrace_vllm.testing.daemon import Daemon

TOKENS = 8
PROMPT = 20 * 32


def value(daemon, name, **labels):
    """Sum over the samples of a metric that have these labels."""
    wanted = [f'{key}="{text}"' for key, text in labels.items()]
    return sum(number for sample, number in daemon.metrics().items()
               if sample.split("{")[0] == name and all(want in sample for want in wanted))


@pytest.fixture
def disk_daemon(binaries, tmp_path):
    with Daemon(budget="96MiB", warm=True, host_process_bytes="32MiB", nvme_io_memory="16MiB",
                engine_staging_bytes="1MiB", nvme_admission_policy="all", host_eviction_policy="lru",
                nvme_devices=f"{tmp_path}/disk=256MiB") as daemon:
        yield daemon


def generate_until_on_disk(first, daemon, prompts, wanted):
    """Stores the prompt, then others until the first lies on disk and no more in host memory."""
    [wanted_result] = first.generate([wanted], TOKENS)
    first.call("engine_side:wait_stored")
    for _ in range(200):
        first.generate(prompts(PROMPT), 1)  # one after the other: a disk is slower than memory
        first.call("engine_side:wait_stored")
        if value(daemon, "terrace_demoted_blocks_total") > 400:
            return wanted_result.token_ids
    pytest.fail("hardly anything went to disk")


def test_a_prompt_on_disk_is_loaded(disk_daemon, engine, models, prompts):
    model = models()
    [wanted] = prompts(PROMPT)
    with engine(model, connector=None) as plain:
        expected = plain.generate([wanted], TOKENS)[0].token_ids
    with engine(model, connector=attach(disk_daemon)) as first:
        assert generate_until_on_disk(first, disk_daemon, prompts, wanted) == expected
    with engine(model, connector=attach(disk_daemon)) as second:
        [result] = second.generate([wanted], TOKENS)
        assert result.token_ids == expected
        assert result.cached_tokens in (PROMPT, PROMPT - 1)
        assert value(disk_daemon, "terrace_hit_blocks_total", tier="nvme") > 0
        counters = second.call("engine_side:counters")
        assert counters.get("loads_failed", 0) == counters.get("errors", 0) == 0
        assert all(n == 0 for n in second.call("engine_side:leftovers").values())

    disk_daemon.kill()
    disk_daemon.start()
    with engine(model, connector=attach(disk_daemon)) as third:
        [result] = third.generate([wanted], TOKENS)
        assert result.token_ids == expected
        assert result.cached_tokens in (PROMPT, PROMPT - 1)


def test_a_disk_that_is_gone_costs_computing(disk_daemon, engine, models, prompts, tmp_path):
    model = models()
    [wanted] = prompts(PROMPT)
    with engine(model, connector=attach(disk_daemon)) as first:
        expected = generate_until_on_disk(first, disk_daemon, prompts, wanted)
    disk_daemon.stop()
    (tmp_path / "disk").write_bytes(bytes(1 << 20))  # somebody else's file by now
    disk_daemon.start()
    with engine(model, connector=attach(disk_daemon)) as second:
        [result] = second.generate([wanted], TOKENS)
        assert result.token_ids == expected
        assert second.call("engine_side:counters").get("errors", 0) == 0
