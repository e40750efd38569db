#!/usr/bin/env bash
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Makes the folder that scripts/gpu_report.sh needs on a machine without Debian's packages: headers and static
# libraries of what the core and its tests link, from this machine's packages. About 25 MiB. x86-64 only.
#
#   scripts/gpu_kit.sh [DIR]     default: build/gpu-kit
#
# Then carry the checkout (without .git and build/) and this folder to the machine with the GPU. The libraries are
# under their own licences, which are copied along; do not ship the kit with Terrace.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
case "${1:-}" in -*) die "unknown option: $1" "usage: scripts/gpu_kit.sh [DIR]" ;; esac
kit="${1:-$ROOT/build/gpu-kit}"
lib=/usr/lib/x86_64-linux-gnu
packages=(libabsl-dev libxxhash-dev libssl-dev zlib1g-dev libspdlog-dev libfmt-dev liburing-dev libgtest-dev libgmock-dev)

[ "$(uname -m)" = x86_64 ] || die "the kit is made on x86-64 machines only"
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || die "$package is not installed" "run scripts/setup_debian.sh first"
done

if [ -e "$kit" ] && [ ! -e "$kit/kit.txt" ]; then
  die "$kit exists and is no kit" "give another folder"
fi
rm -rf "$kit"
mkdir -p "$kit/include/openssl" "$kit/lib/x86_64-linux-gnu/cmake" "$kit/licences"
for header in absl spdlog fmt gtest gmock liburing openssl xxhash.h zlib.h zconf.h liburing.h; do
  cp -rL "/usr/include/$header" "$kit/include/"
done
for header in openssl zconf.h; do  # Debian keeps the machine-dependent ones apart
  [ ! -e "/usr/include/x86_64-linux-gnu/$header" ] || cp -rL "/usr/include/x86_64-linux-gnu/$header" "$kit/include/"
done
cp -L "$lib"/libabsl_*.a "$lib"/lib{xxhash,crypto,z,uring,gtest,gtest_main,gmock,gmock_main}.a \
  "$kit/lib/x86_64-linux-gnu/"
cp -rL "$lib/cmake/absl" "$lib/cmake/GTest" "$kit/lib/x86_64-linux-gnu/cmake/"
# Debian's file names Abseil's shared libraries; the static ones lie beside them.
sed -i -E 's/ SHARED IMPORTED/ STATIC IMPORTED/; s/\.so\.[0-9.]+"/.a"/; /IMPORTED_SONAME/d' \
  "$kit"/lib/x86_64-linux-gnu/cmake/absl/abslTargets*.cmake
for package in "${packages[@]}"; do
  cp -L "/usr/share/doc/$package/copyright" "$kit/licences/$package"
done
{
  echo "Libraries for building Terrace's core and GPU tests elsewhere (cmake -DTERRACE_KIT=THIS_FOLDER)."
  echo "Made by scripts/gpu_kit.sh of:"
  dpkg-query -W -f='${Package} ${Version}\n' "${packages[@]}"
} >"$kit/kit.txt"
say "$kit: $(du -sh "$kit" | cut -f1)"
