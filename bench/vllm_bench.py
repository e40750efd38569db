#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Time to first token in real vLLM engines (CPU build): from Terrace, from the engine's own prefix cache,
from LMCache, and recomputed. Started by `terrace_bench vllm`, which starts the daemon.

Engines, all alike (model, block size, cores, prefix caching on), all alive during the whole run:

    plain      no connector. Recomputes a cold prompt; its second answer is the floor: nothing moves.
    producer   Terrace. Computes and stores.     consumer   Terrace. Loads what the producer computed.
    lmcache-producer, lmcache-consumer           the same with LMCache's cache server (needs --peers).

One request at a time. For every prompt: each producer and the plain engine compute it cold, in turning
order; then floor, consumer and lmcache-consumer answer it, alternating, --hits times. A consumer's own
prefix cache is emptied before each, so that its hit can only come from the other process; that it was a
hit, and of all blocks, is checked by the engine's count of cached tokens. Afterwards the consumer and the
plain engine continue the prompt by 16 tokens, which must be equal.

Prints one JSON object a line: vllm_hit, vllm_cold, and what they are made of. Exit codes: 0, 1.
"""

import argparse
import ctypes
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PLUGIN = os.path.join(os.path.dirname(HERE), "plugins", "vllm")
sys.path.insert(0, PLUGIN)

from terrace_vllm.testing.forkserver import ForkServer, _Replace  # noqa: E402
from terrace_vllm.testing.model import BENCH  # noqa: E402

VOCAB = 1000
LMCACHE_CHUNK = 256


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--socket", required=True, help="engine socket of the daemon")
    parser.add_argument("--daemon-pid", type=int, default=-1, help="its processor time is not others'")
    parser.add_argument("--library", default="", help="libterrace.so; empty: searched for")
    parser.add_argument("--cache", required=True, help="folder for the model and the peers' environments")
    parser.add_argument("--peers", default="", help="folder with lmcache_up.sh; empty: without LMCache")
    parser.add_argument("--tokens", type=int, default=4098, help="prompt length (%(default)s)")
    parser.add_argument("--prompts", type=int, default=5, help="distinct prompts (%(default)s)")
    parser.add_argument("--hits", type=int, default=3, help="answers from the cache per prompt (%(default)s)")
    parser.add_argument("--cold-tokens", type=int, default=2050,
                        help="prompt length of the extra pairs for vllm_cold (%(default)s)")
    parser.add_argument("--cold-pairs", type=int, default=8, help="such pairs (%(default)s)")
    parser.add_argument("--block", type=int, default=128, help="tokens a block (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="compute threads of each engine, pinned to the first cores (all cores)")
    parser.add_argument("--settle", type=float, default=1.0,
                        help="seconds between computing and loading: stores are asynchronous (%(default)s)")
    parser.add_argument("--table", action="store_true", help="for humans instead of JSON")
    return parser.parse_args()


# ---------------------------------------------------------------- in the engines' processes


def hide_missing_attributes_of_llvmlite():
    """LMCache imports llvmlite, whose library object claims to have every attribute, `__dict__` too; vLLM,
    with engine core and worker in one process, then trips over it while it looks through all modules."""
    try:
        from llvmlite.binding import ffi
    except ImportError:
        return
    kind = type(ffi.lib)
    original = kind.__getattr__

    def get(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return original(self, name)

    kind.__getattr__ = get


def start_engine(_, model, transfer, options):
    """Becomes an engine. transfer: arguments of KVTransferConfig, or None."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    if transfer is not None:
        if transfer["kv_connector"].startswith("LMCache"):
            hide_missing_attributes_of_llvmlite()
        options = dict(options, kv_transfer_config=KVTransferConfig(kv_role="kv_both", **transfer))
    return _Replace(LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, max_num_seqs=4,
                        enable_prefix_caching=True, disable_log_stats=True, **options))


def empty_prefix_cache(llm):
    """Stores under way may still hold blocks: tries again until it worked. Returns whether it did."""
    core = llm.llm_engine.engine_core.engine_core
    deadline = time.monotonic() + 30
    while not llm.reset_prefix_cache():
        if time.monotonic() > deadline:
            return False
        # An engine learns of finished stores in its steps only, and an idle one makes none.
        core.scheduler.has_requests = lambda: True
        core.step()
        del core.scheduler.has_requests
        time.sleep(0.01)
    return True


def make_model(_, directory):
    from terrace_vllm.testing.model import BENCH as shape, write_model

    write_model(directory, shape)


# ---------------------------------------------------------------- the driver


def free_ports(count):
    """The first of `count` neighbouring TCP ports that are free on loopback."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for opened in sockets:
                opened.close()


class LMCache:
    """LMCache's cache server in its best mode on this hardware (shared memory), by the peers' script."""

    def __init__(self, peers, cache):
        self.script, self.venv = os.path.join(peers, "lmcache_up.sh"), os.path.join(cache, "lmcache-venv")
        self.run = os.path.join(cache, f"lmcache-run-{os.getpid()}")
        self.port = free_ports(3)

    def install(self):
        subprocess.run([self.script, self.venv], check=True, stdout=sys.stderr)

    def start(self):
        env = dict(os.environ, PORT=str(self.port), L1_GB="3", CHUNK=str(LMCACHE_CHUNK))
        subprocess.run([self.script, self.venv, "shm", self.run], check=True, env=env, stdout=sys.stderr)

    def stop(self):
        subprocess.run([self.script, "--stop", self.run], check=False, stdout=sys.stderr)

    def pid(self):
        with open(os.path.join(self.run, "server.pid"), encoding="ascii") as file:
            return int(file.read())

    def transfer(self):
        return {"kv_connector": "LMCacheMPConnector",
                "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1",
                                              "lmcache.mp.port": self.port}}


class CpuMeter:
    """How many cores others kept busy: all processor time of the machine less that of our processes."""

    def __init__(self, pids):
        self.pids, self.hertz = pids, os.sysconf("SC_CLK_TCK")
        self.begun, self.before = time.monotonic(), self._others()

    def _others(self):
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(value) for value in file.readline().split()[1:]]
        ours = 0
        for pid in self.pids:
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                    ours += sum(int(value) for value in file.read().rpartition(")")[2].split()[11:13])
            except OSError:
                pass
        return (sum(fields[:8]) - fields[3] - fields[4] - ours) / self.hertz

    def cores(self):
        return max(0.0, (self._others() - self.before) / (time.monotonic() - self.begun))


def memcpy_seconds(count, buffers=[]):
    """Copies `count` bytes between two warm anonymous buffers: the limit of any load."""
    if not buffers:
        buffers.extend((ctypes.create_string_buffer(b"\1" * count), ctypes.create_string_buffer(count)))
        ctypes.memmove(buffers[1], buffers[0], count)
    begun = time.perf_counter()
    ctypes.memmove(buffers[1], buffers[0], count)
    return time.perf_counter() - begun


class Bench:
    """The engines and what was measured. Times are in seconds."""

    def __init__(self, arguments, server, model, lmcache):
        self.arguments, self.random = arguments, random.Random(7)
        top = max(arguments.tokens, arguments.cold_tokens) + 64
        block_tokens = (top // arguments.block + 2) * arguments.block
        options = dict(block_size=arguments.block, max_model_len=top, max_num_batched_tokens=top,
                       kv_cache_memory_bytes=3 * block_tokens * BENCH.bytes_per_token())
        ours = {"kv_connector": "TerraceConnector", "kv_connector_module_path": "terrace_vllm.connector",
                "kv_connector_extra_config": {
                    "socket": arguments.socket, **({"library": arguments.library} if arguments.library else {}),
                    "lookup_timeout_ms": 1000}}  # a busy machine must not turn a hit into a recomputation
        self.engines = {}
        kinds = {"plain": None, "producer": ours, "consumer": ours}
        if lmcache is not None:
            kinds.update({"lmcache-producer": lmcache.transfer(), "lmcache-consumer": lmcache.transfer()})
        for name, transfer in kinds.items():
            note(f"starting engine {name}")
            self.engines[name] = server.bare()
            self.engines[name].call("vllm_bench:start_engine", model, transfer, options, timeout=300)
        for name in self.engines:
            self.ask(name, self.prompt(300), cached=None)  # warm-up
        self.hit_tokens = (arguments.tokens - 1) // arguments.block * arguments.block
        self.hit_bytes = self.hit_tokens * BENCH.bytes_per_token()

    def prompt(self, tokens):
        return [self.random.randrange(3, VOCAB) for _ in range(tokens)]

    def ask(self, name, prompt, cached):
        """Time to first token; cached: what the engine must have found (None: do not look)."""
        [result] = self.engines[name].generate([prompt], max_tokens=1, timeout=600)
        if cached is not None and result.cached_tokens != cached:
            raise RuntimeError(f"{name} found {result.cached_tokens} cached tokens, not {cached}")
        return result.seconds, result.token_ids

    def empty(self, name):
        if not self.engines[name].call("vllm_bench:empty_prefix_cache"):
            raise RuntimeError(f"{name} does not let go of its blocks")

    def cold_round(self, tokens, names):
        """Every named engine computes the same new prompt. Seconds by name, and the prompt."""
        prompt, seconds, first = self.prompt(tokens), {}, set()
        for name in names:
            self.empty(name)
            seconds[name], token = self.ask(name, prompt, cached=0)
            first.add(tuple(token))
        if len(first) != 1:
            raise RuntimeError(f"engines disagree on the first token: {first}")
        return seconds, prompt, list(first.pop())

    def hit_round(self, prompt, expected):
        """Floor, ours, theirs, memcpy: one of each."""
        seconds = {"floor": self.ask("plain", prompt, cached=self.hit_tokens)[0]}
        for name, key in (("consumer", "ours"), ("lmcache-consumer", "lmcache")):
            if name not in self.engines:
                continue
            self.empty(name)
            cached = self.hit_tokens if key == "ours" else self.hit_tokens // LMCACHE_CHUNK * LMCACHE_CHUNK
            seconds[key], token = self.ask(name, prompt, cached=cached)
            if token != expected:
                raise RuntimeError(f"{name} gave another token than was computed: {token} {expected}")
        seconds["memcpy"] = memcpy_seconds(self.hit_bytes)
        return seconds

    def same_continuation(self, prompt):
        """16 more tokens from loaded KV and from the engine's own."""
        self.empty("consumer")
        [ours] = self.engines["consumer"].generate([prompt], max_tokens=16)
        [own] = self.engines["plain"].generate([prompt], max_tokens=16)
        if ours.token_ids != own.token_ids:
            raise RuntimeError(f"tokens differ: {ours.token_ids} from Terrace, {own.token_ids} recomputed")


def note(text):
    print(text, file=sys.stderr, flush=True)


class Output:
    """Lines as they come, JSON or for humans."""

    def __init__(self, table):
        self.table = table

    def add(self, case, value, unit, **more):
        line = {"case": case, "value": round(value, 4), "unit": unit}
        line.update({key: round(v, 4) if isinstance(v, float) else v for key, v in more.items()})
        if self.table:
            rest = "  ".join(f"{key}={v}" for key, v in line.items() if key not in ("case", "value", "unit"))
            print(f"{case:14} {line['value']:>10} {unit:8} {rest}", flush=True)
        else:
            print(json.dumps(line), flush=True)


def quartiles(values):
    ordered = sorted(values)
    at = lambda q: ordered[round(q * (len(ordered) - 1))]  # noqa: E731
    return {"ratio_p25": at(0.25), "ratio_p75": at(0.75)}


def report(bench, hits, colds, output, condition):
    median = statistics.median
    # Blocks that this consumer has never touched: page tables and caches are cold for them.
    first = [h for h in hits if h["first"]]
    more = {"limit": 1e3 * median(h["lmcache"] - h["floor"] for h in first), "limit_is": "LMCache, shm",
            "ratio": median((h["ours"] - h["floor"]) / (h["lmcache"] - h["floor"]) for h in first)
            } if "lmcache" in first[0] else {}
    output.add("vllm_hit_first", 1e3 * median(h["ours"] - h["floor"] for h in first), "ms",
               rounds=len(first), **more, **condition)
    hits = [{key: s for key, s in h.items() if key != "first"} for h in hits]
    milli = {key: 1e3 * median(h[key] for h in hits) for key in hits[0]}
    for key, value in milli.items():
        output.add(f"vllm_{key}", value, "ms", rounds=len(hits), tokens=bench.arguments.tokens,
                   bytes=bench.hit_bytes, **condition)
    above = [h["ours"] - h["floor"] for h in hits]
    more = {"memcpy_ms": milli["memcpy"], "memcpy_ratio": median(above) * 1e3 / milli["memcpy"],
            "memcpy_ratio_aim": 1.3}
    if "lmcache" in milli:
        theirs = [h["lmcache"] - h["floor"] for h in hits]
        ratios = [a / b for a, b in zip(above, theirs) if b > 0]
        ratio = median(ratios)
        more.update(limit=1e3 * median(theirs), limit_is="LMCache, shm", ratio=ratio, **quartiles(ratios),
                    target=0.6, reached="yes" if ratio <= 0.6 else "no")
    else:
        more["note"] = "no ratio: LMCache was not run (--peers)"
    output.add("vllm_hit", 1e3 * median(above), "ms", rounds=len(hits), **more, **condition)
    ratios = [c["producer"] / c["plain"] for c in colds]
    ratio = median(ratios)
    output.add("vllm_cold", 1e3 * median(c["producer"] for c in colds), "ms",
               limit=1e3 * median(c["plain"] for c in colds), limit_is="without a connector", ratio=ratio,
               **quartiles(ratios), target=1.05, aim=1.01, reached="yes" if ratio <= 1.05 else "no",
               rounds=len(colds), tokens=bench.arguments.cold_tokens, **condition)


def measure(bench, output, pids):
    arguments = bench.arguments
    names = [n for n in bench.engines if n != "consumer" and n != "lmcache-consumer"]
    meter = CpuMeter(pids)
    hits, colds = [], []
    for i in range(arguments.prompts):
        order = names[i % len(names):] + names[:i % len(names)]
        seconds, prompt, token = bench.cold_round(arguments.tokens, order)
        note(f"prompt {i + 1}/{arguments.prompts}, cold: " +
             ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items()))
        time.sleep(arguments.settle)
        for number in range(arguments.hits):
            hit = bench.hit_round(prompt, token)
            note("  " + ", ".join(f"{key} {1e3 * s:.1f} ms" for key, s in hit.items()))
            hits.append(dict(hit, first=number == 0))
        bench.same_continuation(prompt)
    for i in range(arguments.cold_pairs + 1):
        order = ["plain", "producer"] if i % 2 else ["producer", "plain"]
        seconds, _, _ = bench.cold_round(arguments.cold_tokens, order)
        note(f"cold pair {i}: " + ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items()))
        if i > 0:  # the first is a warm-up
            colds.append(seconds)
    others = meter.cores()
    condition = {"threads": arguments.threads, "machine_was": "busy" if others > 0.15 else "idle",
                 "others_cpu": others}
    report(bench, hits, colds, output, condition)


def run(arguments, lmcache):
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:arguments.threads]))
    environment = {"OMP_NUM_THREADS": str(arguments.threads), "VLLM_CPU_OMP_THREADS_BIND": cores,
                   "PYTHONHASHSEED": "0", "VLLM_LOGGING_LEVEL": "INFO"}
    os.makedirs(arguments.cache, exist_ok=True)
    log = os.path.join(arguments.cache, "engines.log")
    model = os.path.join(arguments.cache, "bench-model")
    note(f"importing vLLM; engines' output goes to {log}")
    with ForkServer(log=log, path=[HERE], environment=environment) as server:
        server.wait_ready()
        if not os.path.exists(os.path.join(model, "config.json")):
            maker = server.bare()
            maker.call("vllm_bench:make_model", model)
            maker.close()
        bench = Bench(arguments, server, model, lmcache)
        pids = [os.getpid(), arguments.daemon_pid, *(e.pid for e in bench.engines.values())]
        measure(bench, Output(arguments.table), pids + ([lmcache.pid()] if lmcache is not None else []))
        for engine in bench.engines.values():
            engine.close()


def main():
    arguments = parse_arguments()
    lmcache = LMCache(arguments.peers, arguments.cache) if arguments.peers else None
    if lmcache is not None:
        lmcache.install()
        # All engines run from the environment that has both, so that nothing but the connector differs.
        python = os.path.join(lmcache.venv, "bin", "python")
        if os.path.realpath(sys.prefix) != os.path.realpath(lmcache.venv):
            os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])
        lmcache.start()
    try:
        run(arguments, lmcache)
    finally:
        if lmcache is not None:
            lmcache.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
