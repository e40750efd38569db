#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds, runs the tests and ends with one line: `N passed, N failed`.
#
#   ./test.sh                everything: C++, sanitizers, Python, end to end with real vLLM engines
#   ./test.sh --fast         C++ unit and contract tests of the release build
#   ./test.sh --cpp          all C++ tests of the release build
#   ./test.sh --sanitizers   unit and contract tests under address+undefined and thread sanitizers
#   ./test.sh --python       the Python tests of plugins/ and tests/python
#   ./test.sh --e2e          terraced with faults and with vLLM engines (tests/faults, tests/e2e)
#   ./test.sh --gpu          what needs a GPU: C++ tests on the real driver, engines with paged caches on it;
#                            skipped, and reported so, where there is none. --cpp tries them, too
#
# Options add up. Results (JUnit) and logs are left in build/test-results/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/steps.sh"

suites=()
for argument in "$@"; do
  case "$argument" in
    --fast) suites+=(fast) ;;
    --cpp) suites+=(cpp) ;;
    --sanitizers) suites+=(asan tsan) ;;
    --python) suites+=(python) ;;
    --e2e) suites+=(e2e) ;;
    --gpu) suites+=(gpu) ;;
    -h | --help) sed -n '4,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option: $argument" "usage: ./test.sh [--fast|--cpp|--sanitizers|--python|--e2e|--gpu]..." ;;
  esac
done
[ ${#suites[@]} -gt 0 ] || suites=(cpp asan tsan python e2e)
cd "$ROOT"
exec </dev/null

# A setting of the caller's shell must not reach the daemons that tests start.
while read -r name; do unset "$name"; done < <(compgen -e | grep '^TERRACE_' || true)

RESULTS="$ROOT/build/test-results"
rm -rf "$RESULTS"
mkdir -p "$RESULTS"

running=""
stop() {  # an interrupted run leaves no tests behind; timeout passes the signal on to its group
  [ -z "$running" ] || kill -TERM "$running" 2>/dev/null || true
  exit 130
}
trap stop INT TERM

# suite NAME SECONDS COMMAND...: runs one suite within its time and notes how it ended. A failed suite
# does not keep the others from running. `timeout` ends the whole process group of the suite.
suite() {
  local name="$1" seconds="$2" status=0
  shift 2
  mkdir -p "$RESULTS/$name"
  timeout --kill-after=20 "$seconds" "$@" &
  running=$!
  wait "$running" || status=$?
  running=""
  [ "$status" -ne 124 ] || say "suite $name did not end within $seconds s"
  echo "$status" >"$RESULTS/$name/status"
}

# run_ctest NAME BUILD_DIR ARGUMENTS...: one ctest run with results per GoogleTest case.
run_ctest() {
  local name="$1" build_dir="$2"
  shift 2
  GTEST_OUTPUT="xml:$RESULTS/$name/gtest/" GTEST_COLOR=no suite "$name" 1500 \
    ctest --test-dir "$build_dir" --output-on-failure -j "$(nproc)" \
    --output-junit "$RESULTS/$name/ctest.xml" "$@"
}

build() {  # build NAME PRESET [TARGET...]: a build that fails is a failed suite
  local name="$1"
  shift
  scripts/build.sh "$@" && return 0
  mkdir -p "$RESULTS/$name"
  echo build >"$RESULTS/$name/status"
  return 1
}

run_pytest() {  # run_pytest NAME SECONDS FOLDER...: folders that exist; none is a failure
  local name="$1" seconds="$2" folders=()
  shift 2
  for folder in "$@"; do [ -d "$folder" ] && folders+=("$folder"); done
  if [ ${#folders[@]} -eq 0 ]; then
    mkdir -p "$RESULTS/$name"
    echo "no tests in $*" >"$RESULTS/$name/status"
    return 0
  fi
  TERRACE_LIBRARY="$ROOT/build/release/lib/libterrace.so" TERRACE_BIN_DIR="$ROOT/build/release/bin" \
    PYTHONPATH="$ROOT/plugins/vllm${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 suite "$name" "$seconds" \
    .venv/bin/python -m pytest -p no:cacheprovider -ra -q --timeout 300 \
    --junitxml "$RESULTS/$name/pytest.xml" "${folders[@]}"
}

wants() { [[ " ${suites[*]} " == *" $1 "* ]]; }

sanitizer_suite() {
  local preset="$1" text="$2"
  step "Build: $text"
  build "$preset" "$preset" || return 0
  step "Unit and contract tests under $text"
  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1 \
    UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1:suppressions=$ROOT/tests/tsan_suppressions.txt" \
    run_ctest "$preset" "build/$preset" -L 'unit|contract'
}

# In a function, so that the shell has read all of this file before it starts: it may change meanwhile.
main() {
  local built=1
  step "Debian packages"
  scripts/setup_debian.sh
  if wants python || wants e2e; then
    step "Python environment with vLLM (CPU)"
    scripts/setup_python.sh
  fi

  if wants fast || wants cpp || wants python || wants e2e || wants gpu; then
    step "Build: release"
    if build release-build release; then
      if wants cpp; then
        step "C++ tests"
        run_ctest cpp build/release
      elif wants fast; then
        step "C++ unit and contract tests"
        run_ctest fast build/release -L 'unit|contract'
      fi
      if wants gpu; then
        step "Tests on a GPU"
        run_ctest gpu build/release -L gpu
      fi
    else
      built=0  # a failed suite already; what starts these programs would test older ones
    fi
  fi

  wants asan && sanitizer_suite asan "address and undefined-behaviour sanitizers"
  wants tsan && sanitizer_suite tsan "thread sanitizer"

  if wants python && [ "$built" = 1 ]; then
    step "Python tests"
    run_pytest python 900 plugins/vllm/tests tests/python
  fi
  if wants e2e && [ "$built" = 1 ]; then
    step "Faults: killed, stopped and hostile processes"
    run_pytest faults 900 tests/faults
    step "End to end with vLLM engines"
    run_pytest e2e 1200 tests/e2e
  fi

  step "Results (details in build/test-results)"
  /usr/bin/python3 -B scripts/sum_results.py "$RESULTS"
}
main; exit
