# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The demonstration: one vLLM process computes long prompts, another one gets their KV from terraced.

    python -m terrace_vllm.demo --socket /run/terrace/engine.sock

Real engines on the CPU (vLLM's CPU build), one thread each, with a Llama of random weights that is made
on the spot. Exit status 1 when the second process did not hit or gave other tokens.
"""

import argparse
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from typing import Any, List, NamedTuple

from terrace_vllm.testing.forkserver import EngineDied, EngineError, ForkServer
from terrace_vllm.testing.model import Shape, write_model

SHAPE = Shape(layers=12, hidden=512, heads=8, kv_heads=8, head_dim=64, inter=1408, vocab=1000)
BLOCK = 128
LENGTHS = (1026, 2050, 4098)  # whole blocks and two tokens
TOKENS = 16


class Run(NamedTuple):
    """One prompt in one process."""

    seconds: float  # to the first token
    cached_tokens: int
    token_ids: List[int]


def make_model(_: Any, directory: str) -> str:
    return write_model(directory, SHAPE)


def say(begun: float, text: str) -> None:
    print(f"[{time.monotonic() - begun:5.1f} s] {text}", flush=True)


def run_engine(server: ForkServer, model: str, path: str, prompts: List[List[int]]) -> List[Run]:
    """Starts an engine, runs the prompts one by one, ends it."""
    connector = {"socket": path, "lookup_timeout_ms": 1000}
    with server.engine(model, connector=connector, block_size=BLOCK, max_model_len=8192,
                       max_num_batched_tokens=8192, kv_cache_memory_bytes=512 << 20) as engine:
        engine.generate([[5] * 64], 2)  # the first request of a process pays for one-time set-up
        runs = []
        for prompt in prompts:
            [first] = engine.generate([prompt], 1)
            # Continues from the prompt's KV in the engine's own cache: computed there, or loaded.
            [more] = engine.generate([prompt], TOKENS)
            runs.append(Run(first.seconds, first.cached_tokens, more.token_ids))
        return runs


def table(lengths: List[int], cold: List[Run], warm: List[Run]) -> str:
    head = ("prompt tokens", "recomputed", "from Terrace", "ratio", "blocks", "MiB", "tokens identical")
    rows = [head]
    for n, a, b in zip(lengths, cold, warm):
        blocks = b.cached_tokens // BLOCK
        size = blocks * BLOCK * SHAPE.bytes_per_token() / 2**20
        rows.append((f"{n:,}", f"{a.seconds * 1e3:,.0f} ms", f"{b.seconds * 1e3:,.0f} ms",
                     f"{a.seconds / b.seconds:.0f} x", str(blocks), f"{size:.0f}",
                     "yes" if a.token_ids == b.token_ids else "NO"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m terrace_vllm.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", help="terraced's engine socket ($TERRACE_SOCKET, else "
                        "/run/terrace/engine.sock)",
                        default=os.environ.get("TERRACE_SOCKET", "/run/terrace/engine.sock"))
    parser.add_argument("--model-dir", help="keep the model here and use it again")
    parser.add_argument("--log", help="engines' output (a file in the system's folder for such)")
    arguments = parser.parse_args()
    if not answers(arguments.socket):
        print(f"No terraced answers on {arguments.socket}. Start one (`terraced --run-dir DIR "
              "--host-budget 1GiB`) and give its DIR/engine.sock with --socket.", file=sys.stderr)
        return 1
    folder = tempfile.mkdtemp(prefix="terrace-demo-")
    log = arguments.log or os.path.join(folder, "engines.log")
    status = 1
    try:
        status = demonstrate(arguments.socket, arguments.model_dir or os.path.join(folder, "model"), log)
    except (EngineDied, EngineError, TimeoutError) as error:
        print(f"\nAn engine failed: {error}\nIts output: {log}", file=sys.stderr)
    finally:
        # After a failure the log stays, the model never does.
        keep = status != 0 and arguments.log is None
        shutil.rmtree(os.path.join(folder, "model") if keep else folder, ignore_errors=True)
    return status


def answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(path)
            return True
    except OSError:
        return False


def demonstrate(path: str, model: str, log: str) -> int:
    begun = time.monotonic()
    # New prompts every time: a daemon that has run this before must not help the first process.
    rng = random.Random()
    prompts = [[rng.randrange(3, SHAPE.vocab) for _ in range(n)] for n in LENGTHS]
    say(begun, "importing vLLM (once; every engine is a fork of this process) ...")
    with ForkServer(log=log, environment={"VLLM_LOGGING_LEVEL": "INFO"}) as server:
        server.wait_ready()
        if not os.path.exists(os.path.join(model, "model.safetensors")):
            say(begun, f"making a Llama with random weights: {SHAPE.layers} layers, "
                f"{SHAPE.bytes_per_token() >> 10} KiB of KV cache per token ...")
            with server.bare() as child:
                child.call("terrace_vllm.demo:make_model", model)
        say(begun, "process 1: starts, computes the prompts, stores their blocks, ends ...")
        cold = run_engine(server, model, path, prompts)
        say(begun, "process 2: starts with an empty cache, gets the same prompts ...")
        warm = run_engine(server, model, path, prompts)
    say(begun, "done\n")
    print("Time to first token, one thread per engine:\n")
    print(table(list(LENGTHS), cold, warm), flush=True)
    if any(run.cached_tokens < n // BLOCK * BLOCK for n, run in zip(LENGTHS, warm)):
        print(f"\nNot everything was found in Terrace. Has the terraced on {path} room for "
              f"{sum(LENGTHS) * SHAPE.bytes_per_token() >> 20} MiB? The engines' output: {log}",
              file=sys.stderr)
        return 1
    return 0 if all(a.token_ids == b.token_ids for a, b in zip(cold, warm)) else 1


if __name__ == "__main__":
    sys.exit(main())
