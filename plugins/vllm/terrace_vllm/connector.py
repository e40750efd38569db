# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""TerraceConnector: vLLM's hooks, each a short call into the scheduler's or the worker's side.

Written for vLLM 0.30 and later (tested with 0.32). An older vLLM cannot be told that a load failed as a
whole, so there the connector stays off. Optional names are looked up when they are used, never imported
at the top. No exception leaves a hook, see guard.py.
"""

import logging
import os
from typing import Any, Dict, Optional

from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)

from terrace_vllm import __version__, meta, stats
from terrace_vllm import client as api
from terrace_vllm.config import Settings
from terrace_vllm.fingerprint import ModelIdentity
from terrace_vllm.guard import guarded, limited, logger
from terrace_vllm.layout import Unsupported, describe_groups
from terrace_vllm.scheduler import SchedulerSide
from terrace_vllm.worker import WorkerSide, cpu_facts, kernel_facts

_SupportsHMA = getattr(_base, "SupportsHMA", object)
_TransferResults = getattr(_base, "KVConnectorTransferResults", None)

try:
    TerraceStats = stats.make_stats_class()
except ImportError:  # a vLLM without connector statistics
    TerraceStats = None


class TerraceMetadata(meta.StepOrders, KVConnectorMetadata):
    """StepOrders as vLLM wants to see them."""


class TerraceHandshake(meta.RankReport, KVConnectorHandshakeMetadata):
    """RankReport as vLLM wants to see it."""


class TerraceConnector(KVConnectorBase_V1, _SupportsHMA):
    """One per role and process, made and owned by vLLM; all calls come on that process's engine thread.

    Always constructs. What is missing or unsupported (library, daemon, kind of model) leaves it without
    a side: every hook then gives the neutral answer and the engine serves as if there were no connector.
    An absent daemon is not such a case: libterrace connects as soon as it is there.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self._scheduler_side: Optional[SchedulerSide] = None
        self._worker_side: Optional[WorkerSide] = None
        self._identity: Optional[ModelIdentity] = None
        self._counters = stats.Counters()
        self._wait_in_save = False
        self._expected_ranks = 1
        self._problem: Optional[str] = None  # why there is no side
        self._role = role
        self._connector_metadata = None
        self._kv_cache_config = kv_cache_config
        self._vllm_config = vllm_config
        self._kv_transfer_config = None
        try:
            self._kv_transfer_config = vllm_config.kv_transfer_config
            super().__init__(vllm_config, role, kv_cache_config)
            self._build(vllm_config, role, kv_cache_config)
        except Unsupported as error:
            self._give_up(logging.WARNING, f"not caching: {error}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._give_up(logging.ERROR, f"the connector is off: {str(error) or repr(error)}")
            logger.debug("terrace: construction failed", exc_info=error)

    def _give_up(self, level: int, problem: str) -> None:
        """One line per engine: a worker's problem travels to the scheduler side, which logs it."""
        self._problem = problem
        is_worker = self._role == KVConnectorRole.WORKER
        logger.log(logging.DEBUG if is_worker else level, "terrace: %s", problem)

    # ------------------------------------------------------------ construction

    def _build(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        transfer = self._kv_transfer_config
        settings, warnings = Settings.from_extra_config(transfer.kv_connector_extra_config)
        is_scheduler = role == KVConnectorRole.SCHEDULER
        for warning in warnings if is_scheduler else ():
            logger.warning("terrace: %s", warning)
        if not settings.enabled:
            if is_scheduler:
                logger.info("terrace: off by kv_connector_extra_config.enabled")
            return
        if _TransferResults is None:
            raise Unsupported("this vLLM cannot report a failed load (get_transfer_results); "
                              "use vLLM 0.30 or later")
        self._check_model(vllm_config)
        self._groups, hash_tokens, align = describe_groups(kv_cache_config)
        # V2 runner: pages are zeroed and copied before the step's first hook, see WorkerSide.barrier().
        self._wait_in_save = bool(getattr(vllm_config, "use_v2_model_runner", False))
        self._expected_ranks = int(vllm_config.parallel_config.world_size)
        if is_scheduler:
            if settings.load_failure_policy == "recompute" and getattr(
                    transfer, "kv_load_failure_policy", "recompute") != "recompute":
                # The scheduler reads it right after this. "fail", vLLM's default, would end requests
                # with an error for what is, to a cache, a late miss.
                transfer.kv_load_failure_policy = "recompute"
                logger.info("terrace: kv_load_failure_policy set to recompute")
            self._scheduler_side = SchedulerSide(
                settings, self._connect(settings, "scheduler"), self._groups, hash_tokens, align,
                self._hash_identity, self._counters, may_load=bool(transfer.is_kv_consumer),
                may_store=bool(transfer.is_kv_producer))
        else:
            self._identity = ModelIdentity(vllm_config.model_config, vllm_config.load_config,
                                           settings.model_fingerprint)
            self._worker_side = WorkerSide(self._connect(settings, "worker"), _rank(), self._counters,
                                           export=settings.gpu_export)

    @staticmethod
    def _check_model(vllm_config: Any) -> None:
        """What makes blocks of equal hash unequal, or was never tried: refused."""
        parallel = vllm_config.parallel_config
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
            if getattr(parallel, name, 1) != 1:
                raise Unsupported(f"{name} is not 1")
        if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
            raise Unsupported("calculate_kv_scales makes every engine's fp8 blocks different")
        speculative = getattr(vllm_config, "speculative_config", None)
        if speculative is not None and "ngram" not in str(getattr(speculative, "method", "")):
            raise Unsupported("speculative decoding with a draft model is not cached")

    def _connect(self, settings: Settings, what: str) -> api.Client:
        token = settings.token()
        library = api.Library(settings.library)
        client = api.Client(library, socket=settings.socket, tenant=settings.tenant, token=token,
                            name=f"vllm-{what}-{os.getpid()}", copy_threads=settings.copy_threads,
                            staging_bytes=settings.staging_bytes,
                            load_timeout_ms=settings.load_timeout_ms)
        socket = settings.socket or os.environ.get("TERRACE_SOCKET", "/run/terrace/engine.sock")
        try:
            client.wait_ready(settings.connect_timeout_ms)
            logger.info("terrace: %s connected to %s (plugin %s, %s)", what, socket, __version__,
                        library.path)
        except api.TerraceError as error:
            logger.warning("terrace: serving without cache until terraced answers on %s: %s", socket,
                           error)
        return client

    def _hash_identity(self) -> Optional[str]:
        """Algorithm and seed of the block hashes. The seed is made after this connector was."""
        from vllm.v1.core import kv_cache_utils

        seed = getattr(kv_cache_utils, "NONE_HASH", None)
        if seed is None:
            return None
        algorithm = getattr(self._vllm_config.cache_config, "prefix_caching_hash_algo", "builtin")
        if isinstance(algorithm, str) and not algorithm.endswith("_cbor"):
            import pickle

            algorithm += f" pickle{pickle.HIGHEST_PROTOCOL}"  # what the tokens become before hashing
        return f"{algorithm} seed={bytes(seed).hex()}"

    def note_error(self, hook: str, error: BaseException) -> None:
        """Called by guarded() for an exception caught in a hook."""
        self._counters.add("errors")
        limited.log(logging.ERROR, hook, "terrace: internal error in %s: %r", hook, error,
                    exc_info=error)

    # ------------------------------------------------------------ class-level facts

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a cache: a dropped save is a later miss

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        return False

    @property
    def prefer_cross_layer_blocks(self) -> bool:
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: Any) -> bool:
        return False  # the per-layer hooks do nothing

    # ------------------------------------------------------------ worker

    @guarded(None)
    def register_kv_caches(self, kv_caches: Dict[str, Any]) -> None:
        worker = self._worker_side
        if worker is None:
            return
        config = self._vllm_config
        layers = [name for group in self._groups for name in group.layers]
        import vllm

        mode = "eager" if getattr(config.model_config, "enforce_eager", False) else "compiled"
        # On a GPU the kernels' page formats are those of the backend and the tensors' shapes.
        on_cpu = all(getattr(getattr(t, "device", None), "type", "cpu") == "cpu" for t in kv_caches.values())
        extra = f"vllm {vllm.__version__} {mode} {cpu_facts() if on_cpu else 'cuda'}"
        try:
            worker.register(self._groups, kv_caches, self._kv_cache_config.num_blocks,
                            getattr(self._kv_cache_config, "kv_cache_layout", None),
                            kernel_facts(config, layers, on_cpu), self._identity, self._parallel(), extra)
        except Exception:
            # The scheduler side logs the problem, once for all ranks, from our report.
            logger.debug("terrace: registration failed", exc_info=True)

    def _parallel(self) -> str:
        parallel = self._vllm_config.parallel_config
        pp, tp = _rank()
        return (f"tp={parallel.tensor_parallel_size}/{tp} pp={parallel.pipeline_parallel_size}/{pp}")

    @guarded(None)
    def get_handshake_metadata(self) -> Optional[TerraceHandshake]:
        if self._worker_side is None:
            return TerraceHandshake(problem=self._problem) if self._problem else None
        report = self._worker_side.report()
        return TerraceHandshake(report.key_spaces, report.problem)

    @guarded(None)
    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        if self._worker_side is not None:
            self._worker_side.barrier()

    @guarded(None)
    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker_side is not None:
            if isinstance(connector_metadata, meta.StepOrders):
                self._worker_side.take(connector_metadata)
            self._worker_side.barrier()

    @guarded(None)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker_side is not None:
            self._worker_side.start_loads()

    def wait_for_layer_load(self, layer_name: str) -> None:
        return  # loads end between steps, never inside one

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any,
                      **kwargs: Any) -> None:
        return  # whole blocks of all layers are saved at the end of the step

    @guarded(None)
    def wait_for_save(self) -> None:
        if self._worker_side is not None:
            self._worker_side.start_stores()
            if self._wait_in_save:
                self._worker_side.barrier()

    def _poll(self) -> tuple:
        if self._worker_side is None:
            return set(), set()
        return self._worker_side.poll()

    @guarded(lambda: None if _TransferResults is None else _TransferResults())
    def get_transfer_results(self, finished_req_ids: Any) -> Any:
        finished, failed = set(), set()
        if self._worker_side is not None:
            finished, failed = self._worker_side.poll()
        return _TransferResults(finished_recving=finished, failed_recving=failed)

    # ------------------------------------------------------------ scheduler

    @guarded(None)
    def set_xfer_handshake_metadata(self, metadata: Any) -> None:
        self._set_reports({(0, rank): report for rank, report in metadata.items()})

    @guarded(None)
    def set_xfer_handshake_metadata_pp_aware(self, metadata: Any) -> None:
        self._set_reports(dict(metadata))

    def _set_reports(self, reports: Dict[meta.Rank, Any]) -> None:
        if self._scheduler_side is not None:
            self._scheduler_side.set_reports(reports, self._expected_ranks)

    @guarded(None)
    def on_new_request(self, request: Any) -> None:
        if self._scheduler_side is not None:
            self._scheduler_side.on_new_request(request)

    @guarded((0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        if self._scheduler_side is None:
            return 0, False
        return self._scheduler_side.matched_tokens(request, num_computed_tokens)

    @guarded(None)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler_side is not None:
            self._scheduler_side.allocated(request, blocks, num_external_tokens)

    @guarded(TerraceMetadata)
    def build_connector_meta(self, scheduler_output: Any) -> TerraceMetadata:
        side = self._scheduler_side
        if side is None:
            return TerraceMetadata()
        orders = side.take_orders()
        try:
            side.order_stores(scheduler_output, orders)
        except Exception as error:  # the loads must go out all the same
            self.note_error("build_connector_meta", error)
        return TerraceMetadata(orders.hash_id, orders.loads, orders.stores, orders.abandoned)

    @guarded(None)
    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler_side is not None:
            self._scheduler_side.update_output(
                getattr(connector_output, "finished_recving", None) or (),
                getattr(connector_output, "failed_recving", None) or ())

    @guarded((False, None))
    def request_finished(self, request: Any, block_ids: Any) -> Any:
        if self._scheduler_side is not None:
            self._scheduler_side.finished(request)
        return False, None

    @guarded((False, None))
    def request_finished_all_groups(self, request: Any, block_ids: Any) -> Any:
        if self._scheduler_side is not None:
            self._scheduler_side.finished(request)
        return False, None

    @guarded(False)
    def reset_cache(self) -> bool:
        """Forgets this engine's answers. Blocks stay in terraced, others use them: `terracectl flush`."""
        if self._scheduler_side is not None:
            self._scheduler_side.forget_hits()
        return True

    # ------------------------------------------------------------ both

    @guarded(None)
    def get_kv_connector_stats(self) -> Any:
        data = self._counters.take() if TerraceStats is not None else None
        return None if data is None else TerraceStats(data=data)

    @classmethod
    def build_kv_connector_stats(cls, data: Optional[Dict[str, Any]] = None) -> Any:
        try:
            return None if TerraceStats is None else TerraceStats(data=dict(data or {}))
        except Exception:
            return None

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, labelnames: Any,
                           per_engine_labelvalues: Any) -> Any:
        try:
            return stats.make_prom_class()(vllm_config, metric_types, labelnames,
                                           per_engine_labelvalues)
        except Exception as error:
            logger.warning("terrace: no Prometheus metrics from the plugin: %r", error)
            return None

    @guarded(None)
    def shutdown(self) -> None:
        worker, self._worker_side = self._worker_side, None
        scheduler, self._scheduler_side = self._scheduler_side, None
        if worker is not None:
            worker.shutdown()
        if scheduler is not None:
            scheduler.shutdown()


# vLLM's metrics label external hits by the tier they came from.
try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    TerraceConnector._cache_hit_source = CacheHitSource.HOST
except ImportError:
    pass


def _rank() -> meta.Rank:
    """(pipeline rank, tensor rank) of this worker process."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return get_pp_group().rank_in_group, get_tp_group().rank_in_group
