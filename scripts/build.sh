#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Configures and builds one preset of CMakePresets.json, the given targets or all.
#
#   scripts/build.sh release terraced terracectl terrace
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
preset="${1:?usage: scripts/build.sh PRESET [TARGET...]}"
shift
cd "$ROOT"

mkdir -p "build/$preset"
log="build/$preset/configure.log"
if ! cmake --preset "$preset" >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  die "configuring '$preset' failed; the whole output is in $log"
fi
NINJA_STATUS='        [%f/%t %es] ' ninja -C "build/$preset" -j "$(build_jobs)" "$@" </dev/null
