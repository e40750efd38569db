#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The skeleton of a custom inference server that keeps its KV blocks in Terrace, over gRPC.

For a prompt it looks up the longest prefix whose blocks are in the cache, loads these, "computes" the
rest and stores what it computed. Run twice, the second process loads what the first one computed:

    kv_server.py --socket /run/terrace/grpc.sock --blocks 16

starts both and compares the bytes. Where this program makes up a block's bytes from its key, yours runs
the model. Exit code 0: the second process got every block, byte for byte.
"""

import argparse
import hashlib
import subprocess
import sys

import grpc

from terrace_session import Session, kv, reasons

TOKENS_PER_BLOCK = 16
NO_PARENT = b"\0" * 32


def chain_keys(prompt, n_blocks):
    """One key per block of the prompt: hash of the parent's key and the block's tokens.

    Equal keys must mean equal bytes, so everything that changes a block's bytes goes either in here
    (tokens, adapters, images) or into the key space (model, layout, dtype).
    """
    keys, parent = [], NO_PARENT
    for block in range(n_blocks):
        tokens = ",".join(str(prompt * 1000003 + block * TOKENS_PER_BLOCK + i)
                          for i in range(TOKENS_PER_BLOCK))
        parent = hashlib.sha256(parent + tokens.encode()).digest()
        keys.append(parent)
    return keys


def compute(key, n_bytes):
    """Stands for the model: the KV bytes of one block. Derived from the key, so that anyone can check."""
    return hashlib.shake_256(key).digest(n_bytes)


def identity(block_bytes):
    return kv.KeySpaceIdentity(
        model="example/toy", model_fingerprint="sha256:0", kv_dtype="bytes", layout="flat",
        parallel="tp=1/0", hash="sha256-chain", group="0:full", block_bytes=block_bytes,
        tokens_per_block=TOKENS_PER_BLOCK)


def why_not_more(found, n_loaded):
    """Name of the reason why the loaded prefix ended where it did."""
    if n_loaded < found.n_prefix:
        return "lost"  # between lookup and load: flushed by an operator, or found damaged
    reason = found.reasons[n_loaded] if n_loaded < len(found.reasons) else reasons.REASON_NONE
    return reasons.Reason.Name(reason).removeprefix("REASON_").lower()


def serve(options):
    """Answers one prompt. Returns how many blocks were loaded, and how many had wrong bytes."""
    keys = chain_keys(options.prompt, options.blocks)
    n_wrong = 0
    with Session(f"unix:{options.socket}", "kv_server.py", options.tenant, options.token) as session:
        key_space = session.open_key_space(identity(options.block_bytes))
        found = session.lookup(key_space, keys)
        loaded = {}
        if found.n_prefix > 0:
            for index, payload in session.get(key_space, keys[:found.n_prefix], found.lease_id):
                if payload is None:
                    break  # lost meanwhile (an operator flushed): compute from here on
                loaded[index] = payload
            session.release(found.lease_id)
        n_loaded = 0
        while n_loaded in loaded:  # a server uses the leading run only
            n_wrong += loaded[n_loaded] != compute(keys[n_loaded], options.block_bytes)
            n_loaded += 1
        computed = [(keys[i], keys[i - 1] if i else b"", compute(keys[i], options.block_bytes))
                    for i in range(n_loaded, options.blocks)]
        n_stored = 0
        if computed:
            fine = (reasons.REASON_NONE, reasons.REASON_DUPLICATE)
            n_stored = sum(reason in fine for reason in session.put(key_space, computed))
    print(f"{options.role}: blocks={options.blocks} loaded={n_loaded} computed={len(computed)} "
          f"stored={n_stored} wrong={n_wrong} reason={why_not_more(found, n_loaded)}", flush=True)
    return n_loaded, n_stored, n_wrong


def parse(arguments):
    parser = argparse.ArgumentParser(description="A custom server on Terrace's gRPC API")
    parser.add_argument("--socket", default="/run/terrace/grpc.sock", help="gRPC socket of terraced")
    parser.add_argument("--tenant", default="")
    parser.add_argument("--token", default="")
    parser.add_argument("--prompt", type=int, default=1, help="a number that stands for a prompt")
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--block-bytes", type=int, default=1 << 20)
    parser.add_argument("--role", choices=["both", "first", "second"], default="both",
                        help="first: one server process; second: it must find all; both: one after the other")
    return parser.parse_args(arguments)


def main():
    options = parse(sys.argv[1:])
    if options.role == "both":
        for role in ("first", "second"):  # two processes, two sessions; they share through the daemon
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--role", role], check=False)
            if done.returncode != 0:
                return done.returncode
        print(f"ok: {options.blocks} blocks of {options.block_bytes} bytes came back equal")
        return 0
    try:
        n_loaded, n_stored, n_wrong = serve(options)
    except grpc.RpcError as error:  # a real server would go on without the cache
        print(f"kv_server.py: {error.code().name}: {error.details()}", file=sys.stderr)
        return 2
    complete = n_loaded == options.blocks if options.role == "second" else \
        n_loaded + n_stored == options.blocks
    return 0 if complete and n_wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
