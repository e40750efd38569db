# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Terrace's connector for vLLM: KV blocks come from, and go to, the node's `terraced`.

Attach it with

    --kv-transfer-config '{"kv_connector": "TerraceConnector", "kv_role": "kv_both",
                           "kv_connector_module_path": "terrace_vllm.connector"}'

This module imports nothing, so that it is free to load in every vLLM process.
"""

__version__ = "0.1.0"


def register() -> None:
    """Entry point `vllm.general_plugins`: makes the name TerraceConnector known to vLLM.

    With it installed, `kv_connector_module_path` may be left out. Never raises: a plugin that fails
    to load must not stop an engine that does not even use it.
    """
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        if "TerraceConnector" not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(
                "TerraceConnector", "terrace_vllm.connector", "TerraceConnector"
            )
    except Exception as error:  # an unknown vLLM; the module path still works there
        from terrace_vllm.guard import logger

        logger.warning("terrace: could not register with this vLLM (%s); give "
                       "kv_connector_module_path=terrace_vllm.connector instead", error)
