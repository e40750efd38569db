#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# clang-tidy with the checks of .clang-tidy over src/, or over the given files.
# Needs: scripts/setup_debian.sh --lint
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
cd "$ROOT"
command -v clang-tidy >/dev/null || die "clang-tidy is not installed" "scripts/setup_debian.sh --lint"
# Generated headers must exist before anything that includes them can be parsed.
[ -f build/release/compile_commands.json ] || scripts/build.sh release
files=("$@")
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(find src -name '*.cc' | sort)
printf '%s\0' "${files[@]}" | xargs -0 -n 4 -P "$(build_jobs)" clang-tidy -p build/release --quiet
say "clang-tidy: ${#files[@]} files, no findings"
