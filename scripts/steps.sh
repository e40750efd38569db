# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Sourced by the other scripts: headings with elapsed time, one way to fail, where things are.
# ROOT is the repository; no script depends on the caller's folder.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Set by the outermost script, so that nested ones count from the same moment.
export STEPS_START="${STEPS_START:-$(date +%s)}"

step() {  # step TEXT: a heading with the time since the start
  local s=$(($(date +%s) - STEPS_START))
  printf '\n[%02d:%02d] == %s\n' $((s / 60)) $((s % 60)) "$*"
}

say() { printf '        %s\n' "$*"; }

die() {  # die TEXT...: one line for what is wrong, the rest for what to do
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# One compiler takes up to 1.5 GiB: no more of them than memory carries.
build_jobs() {
  local cores mem_gib
  cores=$(nproc)
  mem_gib=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)
  local by_memory=$((mem_gib * 2 / 3))
  [ "$by_memory" -lt 1 ] && by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}
