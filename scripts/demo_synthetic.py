#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The demonstration without an engine: two processes share blocks through a running terraced.

The first process makes the blocks of a prompt and stores them, as an engine does after its prefill;
the second, which has never seen them, looks the prompt up, loads it and checks every byte. A block's
bytes are a hash stream of its key, so that they can be checked without a stored copy; making them
stands in for the prefill. Plain Python over libterrace.so: it shows the C API in one page.
"""

import argparse
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import time

TOKENS_PER_BLOCK = 128
BYTES_PER_TOKEN = 8 * 1024
BLOCK_BYTES = TOKENS_PER_BLOCK * BYTES_PER_TOKEN
PROMPTS = (512, 2048, 8192)  # tokens
OK, STORE_CHAIN, MODE_PREFIX = 0, 0, 0
TIME_LIMIT_US = 30_000_000


class Options(ctypes.Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("socket_path", ctypes.c_char_p),
                ("tenant", ctypes.c_char_p), ("token", ctypes.c_char_p),
                ("client_name", ctypes.c_char_p), ("copy_threads", ctypes.c_uint32),
                ("request_timeout_ms", ctypes.c_uint32), ("staging_bytes", ctypes.c_uint64),
                ("load_timeout_ms", ctypes.c_uint32)]


class KeySpaceDesc(ctypes.Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t)] + [
        (name, ctypes.c_char_p) for name in ("model", "model_fingerprint", "kv_dtype", "layout",
                                             "parallel", "hash", "group", "extra")
    ] + [("block_bytes", ctypes.c_uint64), ("tokens_per_block", ctypes.c_uint32),
        ("block_class", ctypes.c_uint32)]


class Plane(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("stride", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class Ref(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint8 * 48)]


class LookupPart(ctypes.Structure):
    _fields_ = [("keyspace", ctypes.c_void_p), ("keys", ctypes.c_char_p), ("n_keys", ctypes.c_uint32),
                ("mode", ctypes.c_uint32), ("refs", ctypes.POINTER(Ref)),
                ("reasons", ctypes.POINTER(ctypes.c_uint8)), ("n_prefix", ctypes.c_uint32),
                ("n_here", ctypes.c_uint32), ("lease", ctypes.c_uint64), ("n_pending", ctypes.c_uint32),
                ("recompute_ns_per_token", ctypes.c_uint32)]


class Client:
    """One connection, one key space and one piece of memory for the blocks of the longest prompt."""

    def __init__(self, library, socket_path, name):
        self.lib = ctypes.CDLL(library)
        self.lib.terrace_error_text.restype = ctypes.c_char_p
        self.lib.terrace_reason_name.restype = ctypes.c_char_p
        self.lib.terrace_op_reasons.restype = ctypes.POINTER(ctypes.c_uint8)
        options = Options(struct_bytes=ctypes.sizeof(Options), socket_path=socket_path.encode(),
                          client_name=name.encode(), staging_bytes=32 << 20)
        self.client, self.keyspace, self.pages = (ctypes.c_void_p() for _ in range(3))
        connected = self.lib.terrace_connect(ctypes.byref(options), ctypes.byref(self.client))
        if not self.client:
            self.must(connected)
        self.must(self.lib.terrace_wait_ready(self.client, 10_000))
        desc = KeySpaceDesc(struct_bytes=ctypes.sizeof(KeySpaceDesc), model=b"synthetic",
                            model_fingerprint=b"shake256", kv_dtype=b"bytes", layout=b"contiguous",
                            hash=b"sha256", block_bytes=BLOCK_BYTES, tokens_per_block=TOKENS_PER_BLOCK)
        self.must(self.lib.terrace_keyspace_open(self.client, ctypes.byref(desc),
                                                 ctypes.byref(self.keyspace)))
        n_blocks = max(PROMPTS) // TOKENS_PER_BLOCK
        self.memory = ctypes.create_string_buffer(n_blocks * BLOCK_BYTES)
        plane = Plane(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)
        self.must(self.lib.terrace_pages_register(self.client, ctypes.byref(plane), 1,
                                                  ctypes.c_uint64(n_blocks), ctypes.byref(self.pages)))

    def must(self, status):
        if status != OK:
            sys.exit(f"status {status}: {self.lib.terrace_error_text().decode()}")

    def finish(self, op):
        """Waits for an operation and returns the names of its blocks' reasons."""
        self.lib.terrace_op_wait(op, TIME_LIMIT_US)
        if not self.lib.terrace_op_done(op):
            sys.exit("the operation did not finish in time")
        n = ctypes.c_uint32()
        reasons = self.lib.terrace_op_reasons(op, ctypes.byref(n))
        names = [self.lib.terrace_reason_name(reasons[i]).decode() for i in range(n.value)]
        self.lib.terrace_op_free(op)
        return names

    def store(self, keys):
        op = ctypes.c_void_p()
        ids = (ctypes.c_uint64 * len(keys))(*range(len(keys)))
        self.must(self.lib.terrace_store(self.client, self.keyspace, None, b"".join(keys), len(keys),
                                         STORE_CHAIN, None, self.pages, ids, ctypes.byref(op)))
        return self.finish(op)

    def load(self, keys):
        """Looks the chain up, loads what is here; returns (blocks here, reasons of the load)."""
        refs = (Ref * len(keys))()
        reasons = (ctypes.c_uint8 * len(keys))()
        part = LookupPart(self.keyspace, b"".join(keys), len(keys), MODE_PREFIX, refs, reasons)
        self.must(self.lib.terrace_lookup(self.client, ctypes.byref(part), 1, 0, TIME_LIMIT_US))
        if part.n_prefix == 0:
            return 0, []
        op = ctypes.c_void_p()
        ids = (ctypes.c_uint64 * part.n_prefix)(*range(part.n_prefix))
        self.must(self.lib.terrace_load(self.client, self.keyspace, refs, b"".join(keys), part.n_prefix,
                                        self.pages, ids, ctypes.byref(op)))
        names = self.finish(op)
        self.must(self.lib.terrace_release(self.client, ctypes.c_uint64(part.lease)))
        return part.n_prefix, names

    def close(self):
        self.lib.terrace_pages_free(self.pages)
        self.lib.terrace_keyspace_free(self.keyspace)
        self.lib.terrace_close(self.client)


def chain(n_tokens):
    """Keys of a prompt's blocks: each hashes its parent and its tokens. Prompts differ from the start."""
    keys, parent = [], b""
    for first in range(0, n_tokens, TOKENS_PER_BLOCK):
        tokens = range(n_tokens + first, n_tokens + first + TOKENS_PER_BLOCK)
        parent = hashlib.sha256(parent + repr(list(tokens)).encode()).digest()
        keys.append(parent)
    return keys


def payload(key):
    return hashlib.shake_256(key).digest(BLOCK_BYTES)


def first_process(client):
    for n_tokens in PROMPTS:
        keys = chain(n_tokens)
        here, _ = client.load(keys)
        start = time.monotonic()
        for i, key in enumerate(keys):
            ctypes.memmove(ctypes.addressof(client.memory) + i * BLOCK_BYTES, payload(key), BLOCK_BYTES)
        computed = time.monotonic() - start
        reasons = client.store(keys)
        stored = sum(reason in ("none", "duplicate") for reason in reasons)
        yield dict(tokens=n_tokens, here_before=here, computed_s=computed, stored=stored, blocks=len(keys))


def second_process(client):
    for n_tokens in PROMPTS:
        keys = chain(n_tokens)
        ctypes.memset(client.memory, 0, len(keys) * BLOCK_BYTES)
        start = time.monotonic()
        here, reasons = client.load(keys)
        loaded = time.monotonic() - start
        base = ctypes.addressof(client.memory)
        same = sum(ctypes.string_at(base + i * BLOCK_BYTES, BLOCK_BYTES) == payload(key)
                   for i, key in enumerate(keys[:here]))
        yield dict(tokens=n_tokens, here=here, loaded_s=loaded, same=same,
                   failed=sum(reason != "none" for reason in reasons))


def run_role(arguments, role):
    command = [sys.executable, os.path.abspath(__file__), "--library", arguments.library,
               "--socket", arguments.socket, "--role", role]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    if process.returncode != 0:
        sys.exit(f"the {role} process failed")
    return [json.loads(line) for line in process.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help="libterrace.so")
    parser.add_argument("--socket", required=True, help="the daemon's engine socket")
    parser.add_argument("--role", choices=("first", "second"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        client = Client(arguments.library, arguments.socket, f"demo {arguments.role}")
        for row in (first_process if arguments.role == "first" else second_process)(client):
            print(json.dumps(row), flush=True)
        client.close()
        return 0

    print("first process: makes the blocks and stores them", flush=True)
    firsts = run_role(arguments, "first")
    print("second process: looks them up, loads them, checks every byte\n", flush=True)
    seconds = run_role(arguments, "second")
    print(f"{'prompt tokens':>13} {'made in':>10} {'from Terrace':>13} {'blocks hit':>11} {'MiB':>6} "
          f"{'bytes identical':>16}")
    good = True
    for first, second in zip(firsts, seconds):
        identical = (first["stored"] == second["here"] == second["same"] == first["blocks"]
                     and second["failed"] == 0)
        good = good and identical
        print(f"{second['tokens']:>13,} {first['computed_s'] * 1e3:>7.1f} ms "
              f"{second['loaded_s'] * 1e3:>10.2f} ms {second['here']:>5} / {first['blocks']:<3} "
              f"{second['here'] * BLOCK_BYTES >> 20:>6} {'yes' if identical else 'NO':>16}")
    if not good:
        print("\nsomething was not served as it should be; see the daemon's log")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
