#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# From a bare Debian 12 to an engine that answers from blocks another process computed:
#
#   ./quickstart.sh             with real vLLM engines (CPU build; about 6 GB in .venv)
#   ./quickstart.sh --no-vllm   with a synthetic client; needs no Python packages
#
# Installs what is missing, builds, starts terraced in a temporary folder, runs the demonstration, stops
# everything. Nothing stays running and nothing outside this folder is changed but Debian packages.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/steps.sh"

with_vllm=1
for argument in "$@"; do
  case "$argument" in
    --no-vllm) with_vllm=0 ;;
    -h | --help) sed -n '4,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option: $argument" "usage: ./quickstart.sh [--no-vllm]" ;;
  esac
done
cd "$ROOT"

# A setting of the caller's shell must not reach the demonstration's own daemon.
while read -r name; do unset "$name"; done < <(compgen -e | grep '^TERRACE_' || true)

daemon=""
run_dir=""
stop_all() {
  local status=$?
  trap - EXIT INT TERM
  if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
    kill -TERM "$daemon" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$daemon" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  if [ "$status" -ne 0 ] && [ -s "$run_dir/terraced.log" ]; then
    printf '\nthe last lines of the daemon'\''s log:\n' >&2
    tail -n 20 "$run_dir/terraced.log" >&2
  fi
  [ -z "$run_dir" ] || rm -rf "$run_dir"
  exit "$status"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "Debian packages"
scripts/setup_debian.sh

if [ "$with_vllm" = 1 ]; then
  step "Python environment with vLLM (CPU)"
  scripts/setup_python.sh
fi

step "Build"
scripts/build.sh release terraced terracectl terrace

step "Start terraced"
run_dir=$(mktemp -d /tmp/terrace-quickstart.XXXXXX)
cat >"$run_dir/terraced.yaml" <<YAML
run_dir: $run_dir/run
host:
  budget: 1GiB
  memory_dir: ""  # nothing is left behind; by default blocks outlive the daemon
http:
  listen: 127.0.0.1:0
YAML
build/release/bin/terraced --config "$run_dir/terraced.yaml" >"$run_dir/terraced.log" 2>&1 </dev/null &
daemon=$!
socket="$run_dir/run/engine.sock"
for _ in $(seq 100); do
  [ -S "$socket" ] && break
  kill -0 "$daemon" 2>/dev/null || die "terraced ended at its start"
  sleep 0.1
done
[ -S "$socket" ] || die "terraced did not open its socket within 10 s"
say "process $daemon, 1 GiB of memory, socket $socket"

step "Demonstration"
if [ "$with_vllm" = 1 ]; then
  PYTHONPATH=plugins/vllm TERRACE_LIBRARY="$ROOT/build/release/lib/libterrace.so" \
    .venv/bin/python -m terrace_vllm.demo --socket "$socket"
else
  /usr/bin/python3 scripts/demo_synthetic.py --library build/release/lib/libterrace.so --socket "$socket"
fi

step "What the daemon has seen"
build/release/bin/terracectl --socket "$run_dir/run/grpc.sock" status

step "Done. Attach your own engine"
cat <<'TEXT'

  1. Start the daemon, with the memory it may use:

       build/release/bin/terraced --run-dir /run/terrace --host-budget 16GiB

  2. Start vLLM 0.32 with the connector (more in docs/vllm.md):

       export PYTHONPATH=plugins/vllm TERRACE_SOCKET=/run/terrace/engine.sock
       export TERRACE_LIBRARY=$PWD/build/release/lib/libterrace.so
       .venv/bin/python -m vllm.entrypoints.openai.api_server --model MODEL --kv-transfer-config \
         '{"kv_connector": "TerraceConnector", "kv_connector_module_path": "terrace_vllm.connector",
           "kv_role": "kv_both"}'

  3. Watch:  build/release/bin/terracectl top

  Another engine, or your own server in C or Python: docs/custom-server.md
TEXT
