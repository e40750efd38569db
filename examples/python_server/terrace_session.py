# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A session with terraced over gRPC: what a custom server in Python needs, and not more.

Copy this file into your project and change it as you like. Needs grpcio, grpcio-tools and xxhash. The
Python code of the .proto files is made when this module is loaded, in a temporary folder, so nothing
generated has to be kept; a project of its own would rather generate it once, when it is built.
"""

import importlib.resources
import os
import pathlib
import shutil
import sys
import tempfile
import threading

import grpc
import xxhash
from grpc_tools import protoc

PROTOS = ["terrace/v1/reason.proto", "terrace/v1/kv.proto"]


def _find_protos():
    here = pathlib.Path(__file__).resolve()
    places = [os.environ.get("TERRACE_PROTO_DIR"), here.parents[2] / "src/api/proto",
              "/usr/share/terrace/proto", "/usr/local/share/terrace/proto"]
    for place in places:
        if place and (pathlib.Path(place) / PROTOS[0]).is_file():
            return place
    raise SystemExit("terrace/v1/*.proto not found: set TERRACE_PROTO_DIR to the folder above terrace/")


def _load_stubs():
    folder = tempfile.mkdtemp(prefix="terrace_stubs_")
    try:
        well_known = str(importlib.resources.files("grpc_tools") / "_proto")
        code = protoc.main(["protoc", f"-I{_find_protos()}", f"-I{well_known}",
                            f"--python_out={folder}", f"--grpc_python_out={folder}", *PROTOS])
        if code != 0:
            raise SystemExit("protoc failed; its message is above")
        sys.path.insert(0, folder)
        from terrace.v1 import kv_pb2, kv_pb2_grpc, reason_pb2
        return kv_pb2, kv_pb2_grpc, reason_pb2
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        shutil.rmtree(folder)  # what was loaded stays loaded


kv, kv_grpc, reasons = _load_stubs()


def checksum(data):
    """XXH3-64 with seed 0: the checksum of kv.proto."""
    return xxhash.xxh3_64_intdigest(data)


class Session:
    """One session, kept alive by a thread until close(). Calls raise grpc.RpcError.

    On NOT_FOUND (the daemon was restarted) or UNAVAILABLE, drop it and open a new one: a cache that is
    away is a miss, not a reason to stop serving.
    """

    def __init__(self, target, client_name, tenant="", token="", ttl_s=30):
        self._channel = grpc.insecure_channel(target)
        self._stub = kv_grpc.CacheServiceStub(self._channel)
        request = kv.OpenSessionRequest(tenant=tenant, token=token, client_name=client_name)
        request.ttl.FromSeconds(ttl_s)
        opened = self._stub.OpenSession(request, timeout=10)
        self.session_id = opened.session_id
        self._chunk_bytes = opened.max_chunk_bytes
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, args=(ttl_s / 3,), daemon=True)
        self._keeper.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the session and with it all its leases."""
        self._closing.set()
        self._keeper.join()
        try:
            self._stub.CloseSession(kv.CloseSessionRequest(session_id=self.session_id), timeout=5)
        except grpc.RpcError:
            pass  # gone already; the ttl ends it anyway
        self._channel.close()

    def open_key_space(self, identity):
        """identity: kv.KeySpaceIdentity. Returns the key space's id in this session."""
        request = kv.OpenKeySpaceRequest(session_id=self.session_id, identity=identity)
        return self._stub.OpenKeySpace(request, timeout=10).key_space_id

    def lookup(self, key_space, keys, lease=True, mode=kv.LOOKUP_MODE_PREFIX):
        """Which of these blocks are here? Returns kv.LookupResponse."""
        return self._stub.Lookup(kv.LookupRequest(
            session_id=self.session_id, key_space_id=key_space, keys=keys, lease=lease, mode=mode,
            may_wait=lease),  # what lies on a disk is taken too: get() waits for it
            timeout=10)

    def release(self, lease_id):
        self._stub.Release(kv.ReleaseRequest(session_id=self.session_id, lease_id=lease_id), timeout=10)

    def put(self, key_space, blocks):
        """Stores blocks: (key, parent key or b"", payload). Returns one reason per block."""
        return list(self._stub.Put(self._put_messages(key_space, blocks), timeout=60).reasons)

    def get(self, key_space, keys, lease_id=0):
        """Loads blocks. Yields (index, payload), or (index, None) for a block that is not here."""
        request = kv.GetRequest(session_id=self.session_id, key_space_id=key_space, keys=keys,
                                lease_id=lease_id)
        payload = bytearray()
        for message in self._stub.Get(request, timeout=60):
            if message.HasField("chunk"):
                chunk = message.chunk
                if chunk.offset != len(payload) or chunk.checksum != checksum(chunk.data):
                    raise ValueError("a chunk was damaged or lost on its way")
                payload += chunk.data
                continue
            end = message.block_end
            if end.reason != reasons.REASON_NONE:
                yield end.block_index, None
                continue
            if end.payload_bytes != len(payload) or end.checksum != checksum(payload):
                raise ValueError("a block was damaged on its way")
            yield end.block_index, bytes(payload)
            payload = bytearray()

    def _put_messages(self, key_space, blocks):
        yield kv.PutRequest(start=kv.PutStart(session_id=self.session_id, key_space_id=key_space))
        for key, parent, payload in blocks:
            yield kv.PutRequest(block=kv.PutBlock(
                key=key, parent=parent, payload_bytes=len(payload), checksum=checksum(payload)))
            for offset in range(0, len(payload), self._chunk_bytes):
                data = payload[offset:offset + self._chunk_bytes]
                yield kv.PutRequest(chunk=kv.PutChunk(
                    offset=offset, data=data, checksum=checksum(data)))

    def _keep_alive(self, period_s):
        request = kv.KeepAliveRequest(session_id=self.session_id)
        while not self._closing.wait(period_s):
            try:
                self._stub.KeepAlive(request, timeout=5)
            except grpc.RpcError:
                pass  # the next real call says what is wrong
