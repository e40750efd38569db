# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Tools to run real vLLM engines quickly on a CPU: a model made on the spot, and a fork server.

Used by the end-to-end tests, the demonstration and the benchmark; not by the connector.
"""
