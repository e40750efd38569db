#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that the build and the tests need, as far as they are missing. Asks dpkg
# first: with everything there it needs no root, no network and no time.
#
#   scripts/setup_debian.sh            what build and tests need
#   scripts/setup_debian.sh --bench    also what the benchmarks compare with (redis-server, fio)
#   scripts/setup_debian.sh --lint     also clang-tidy and clang-format
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

PACKAGES=(
  # tools. ca-certificates: the Python packages come over TLS
  clang lld cmake ninja-build ccache pkg-config ca-certificates
  protobuf-compiler protobuf-compiler-grpc python3 python3-venv
  # headers and libraries; the versions are listed in CMakeLists.txt
  libc6-dev libstdc++-12-dev libclang-rt-14-dev
  libabsl-dev libgrpc++-dev libprotobuf-dev libssl-dev libxxhash-dev zlib1g-dev
  libspdlog-dev libfmt-dev libyaml-cpp-dev libcli11-dev libcpp-httplib-dev
  prometheus-cpp-dev libmimalloc-dev liburing-dev libgtest-dev libgmock-dev
)
for argument in "$@"; do
  case "$argument" in
    --bench) PACKAGES+=(redis-server fio) ;;
    --lint) PACKAGES+=(clang-tidy clang-format) ;;
    *) die "unknown option: $argument" "usage: scripts/setup_debian.sh [--bench] [--lint]" ;;
  esac
done

command -v dpkg-query >/dev/null || die "this is not a Debian system (no dpkg-query)" \
  "Terrace is built and tested on Debian 12. Elsewhere install the counterparts of:" "${PACKAGES[*]}"

missing=()
for package in "${PACKAGES[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  say "Debian packages: all ${#PACKAGES[@]} are installed"
  exit 0
fi

say "missing: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null; then
    as_root=(sudo)
  else
    die "packages are missing, and this is neither root nor is there sudo; as root run:" \
      "apt-get update && apt-get install --no-install-recommends ${missing[*]}"
  fi
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q)
"${apt[@]}" update
# A freshly installed redis-server would start a service that nobody asked for.
if [[ " ${missing[*]} " == *" redis-server "* ]] && [ ! -e /usr/sbin/policy-rc.d ]; then
  "${as_root[@]}" sh -c 'printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d'
  trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
fi
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
say "Debian packages: ${#missing[@]} installed"
