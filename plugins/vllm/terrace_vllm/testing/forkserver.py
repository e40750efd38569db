# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Real vLLM engines in about two seconds each: one parent imports vLLM, every engine is a fork of it.

    with ForkServer() as server:
        with server.engine(model=..., block_size=32, connector={"socket": ...}) as engine:
            [result] = engine.generate([[1, 2, 3]], max_tokens=8)

The parent starts no thread and runs no tensor operation; a child becomes one engine (engine core and
worker in one process) and answers calls over a private Unix socket. Engines are ordinary processes: they
can be killed at any time. Calls run on the engine's main thread, one after the other.

Owner: the caller. Threads: one engine object is used by one thread at a time. Failure: a call that
raised in the child raises EngineError here with the child's traceback; a dead child raises EngineDied.
"""

import dataclasses
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Dict, List, Optional, Sequence

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine core and worker in this process
    "OMP_NUM_THREADS": "1",  # more spin against each other as soon as another process has work
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
_PRELOAD = (
    "vllm", "vllm.v1.worker.cpu_model_runner", "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama", "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.uniproc_executor", "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.model_loader.default_loader", "safetensors.torch",
)
_AUTHKEY = b"terrace-forkserver"  # the sockets lie in a directory of mode 0700


class EngineError(Exception):
    """The call raised inside the engine's process."""


class EngineDied(Exception):
    """The engine's process ended."""


@dataclasses.dataclass
class Result:
    """One request's outcome."""

    token_ids: List[int]
    cached_tokens: int  # local and external hits together, as vLLM counts them
    finish_reason: Optional[str]
    seconds: float  # wall time of the generate call this was part of


class Engine:
    """One vLLM engine in a child process."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self._connection, self.pid = connection, pid

    def call(self, function: str, *args: Any, timeout: float = 120.0, **kwargs: Any) -> Any:
        """Calls "module:function" in the child with the child's LLM object as first argument."""
        self.submit(function, *args, **kwargs)
        return self.answer(timeout)

    def submit(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Starts a call without waiting for it; answer() fetches what it gave."""
        try:
            self._connection.send((function, args, kwargs))
        except OSError as error:
            raise EngineDied(f"engine {self.pid} is gone") from error

    def answer(self, timeout: float = 120.0) -> Any:
        try:
            if not self._connection.poll(timeout):
                raise TimeoutError(f"engine {self.pid} did not answer within {timeout} s")
            ok, value = self._connection.recv()
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise EngineDied(f"engine {self.pid} is gone") from error
        if not ok:
            raise EngineError(value)
        return value

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int = 8,
                 salts: Optional[Sequence[Optional[str]]] = None, timeout: float = 120.0,
                 **sampling: Any) -> List[Result]:
        """Greedy generation of all prompts as one batch."""
        return self.call("terrace_vllm.testing.forkserver:_generate", [list(p) for p in prompts],
                         max_tokens, list(salts or []), sampling, timeout=timeout)

    def kill(self) -> None:
        """SIGKILL, as a crash would be. The fork server's parent reaps it."""
        os.kill(self.pid, signal.SIGKILL)
        self._connection.close()

    def close(self) -> None:
        """Ends the engine in order (connector shutdown included) and waits for it."""
        try:
            self.call("terrace_vllm.testing.forkserver:_shutdown", timeout=30)
        except (EngineDied, EngineError, TimeoutError):
            pass
        self._connection.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class ForkServer:
    """The parent process and its sockets' directory. Children die with it."""

    def __init__(self, log: Optional[str] = None, path: Sequence[str] = (),
                 environment: Optional[Dict[str, str]] = None) -> None:
        """log: a file for the engines' output. path: more entries for the children's sys.path."""
        self._directory = tempfile.TemporaryDirectory(prefix="terrace-fork-")
        self.log = log or os.path.join(self._directory.name, "engines.log")
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        python_path = [*path, package, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, **_ENVIRONMENT, **(environment or {}),
               "PYTHONPATH": os.pathsep.join(python_path)}
        # Whether the engines see huge pages, a display or a proxy is none of a test's business.
        with open(self.log, "ab") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "terrace_vllm.testing.forkserver"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log_file, env=env, text=True)
        self._ready = False
        self._count = 0

    def wait_ready(self) -> None:
        """Waits until vLLM is imported (about 16 s after the start)."""
        if not self._ready:
            line = self._process.stdout.readline()
            if line.strip() != "ready":
                raise EngineDied(f"the fork server did not start: see {self.log}")
            self._ready = True

    def bare(self, environment: Optional[Dict[str, str]] = None) -> Engine:
        """A child that has vLLM imported but no engine yet."""
        self.wait_ready()
        self._count += 1
        address = os.path.join(self._directory.name, f"{self._count}.sock")
        with Listener(address, "AF_UNIX", authkey=_AUTHKEY) as listener:
            self._process.stdin.write(json.dumps({"address": address, "env": environment or {}}) + "\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
            connection = listener.accept()
        return Engine(connection, pid)

    def engine(self, model: str, connector: Optional[Dict[str, Any]] = None,
               environment: Optional[Dict[str, str]] = None, role: str = "kv_both",
               failure_policy: Optional[str] = None, before: Sequence[str] = (),
               **llm: Any) -> Engine:
        """A running engine. connector: extra config for TerraceConnector, None for plain vLLM.

        before: functions ("module:function") to call in the child before the engine is made.
        """
        engine = self.bare(environment)
        try:
            for function in before:
                engine.call(function)
            engine.call("terrace_vllm.testing.forkserver:_start", model, connector, role,
                        failure_policy, llm, timeout=180)
        except BaseException:
            engine.kill()
            raise
        return engine

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


# ---------------------------------------------------------------- in the child


def _start(_: Any, model: str, connector: Optional[dict], role: str, failure_policy: Optional[str],
           llm: dict) -> Any:
    from vllm import LLM
    from vllm.config import KVTransferConfig

    options: Dict[str, Any] = dict(
        model=model, skip_tokenizer_init=True, enforce_eager=True, max_model_len=4096, block_size=32,
        kv_cache_memory_bytes=64 << 20, max_num_seqs=16)
    options.update(llm)
    if connector is not None:
        transfer: Dict[str, Any] = dict(
            kv_connector="TerraceConnector", kv_connector_module_path="terrace_vllm.connector",
            kv_role=role, kv_connector_extra_config=connector)
        if failure_policy is not None:
            transfer["kv_load_failure_policy"] = failure_policy
        options["kv_transfer_config"] = KVTransferConfig(**transfer)
    return _Replace(LLM(**options))


class _Replace:
    """A call's answer that becomes the first argument of later calls."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _generate(llm: Any, prompts: List[List[int]], max_tokens: int, salts: List[Optional[str]],
              sampling: dict) -> List[Result]:
    from vllm import SamplingParams

    settings: Dict[str, Any] = dict(temperature=0, max_tokens=max_tokens, detokenize=False,
                                    ignore_eos=True)
    settings.update(sampling)
    inputs: List[dict] = [{"prompt_token_ids": prompt} for prompt in prompts]
    for entry, salt in zip(inputs, salts):
        if salt is not None:
            entry["cache_salt"] = salt
    begun = time.perf_counter()
    outputs = llm.generate(inputs, SamplingParams(**settings), use_tqdm=False)
    seconds = time.perf_counter() - begun
    return [Result(list(o.outputs[0].token_ids), o.num_cached_tokens or 0,
                   o.outputs[0].finish_reason, seconds) for o in outputs]


def _shutdown(llm: Any) -> None:
    if llm is not None:
        llm.llm_engine.engine_core.shutdown()


def _serve(connection: Connection) -> None:
    """The child's loop: calls until the caller closes its end."""
    llm = None
    while True:
        try:
            function, args, kwargs = connection.recv()
        except (EOFError, OSError):
            return
        try:
            module, name = function.split(":")
            value = getattr(importlib.import_module(module), name)(llm, *args, **kwargs)
            if isinstance(value, _Replace):
                llm, value = value.value, None
            answer = (True, value)
        except BaseException:
            answer = (False, traceback.format_exc())
        connection.send(answer)


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _parent() -> None:
    for module in _PRELOAD:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to the log
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid:
            out.write(f"{pid}\n")
            out.flush()
            continue
        status = 1
        try:
            _die_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            out.close()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.environ.update(order["env"])
            faulthandler.register(signal.SIGUSR1, all_threads=True)  # kill -USR1: stacks to the log
            with Client(order["address"], "AF_UNIX", authkey=_AUTHKEY) as connection:
                _serve(connection)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    # Run as a module, the classes here are __main__'s; the caller knows them by their full name.
    importlib.import_module("terrace_vllm.testing.forkserver")._parent()
