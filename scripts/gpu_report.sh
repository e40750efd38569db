#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Builds, tests and measures the GPU side on a machine with a GPU and the CUDA toolkit, without network, in less than
# eight minutes. Leaves a report (summary.md, results.json, logs) and ends with one line of results.
#
#   scripts/gpu_report.sh [--out DIR] [--kit DIR] [--build DIR] [--minutes N]
#   scripts/gpu_report.sh --dry-run      on softcuda, the tests' stand-in for the driver: nothing of it ran on a GPU
#
# Needs CMake 3.25, make or ninja, nvcc, a C++20 compiler and Python 3 (PyTorch for its part), and the kit that
# scripts/gpu_kit.sh makes on a Debian machine (build/gpu-kit; without one Debian's packages are used).
set -euo pipefail
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/gpu_report.py" "$@"
