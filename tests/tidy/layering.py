# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Who may include whom: api -> tiering -> {kvstore, gpu}, and where foreign headers may stand."""

import posixpath
import re

CODE = (".h", ".cc", ".cu")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# A room is the longest matching folder.
ROOMS = ("src/kvstore/base", "src/kvstore", "src/gpu", "src/tiering", "src/api/client", "src/api")
ALLOWED = {
    "src/kvstore/base": {"src/kvstore/base"},
    "src/kvstore": {"src/kvstore/base", "src/kvstore"},
    "src/gpu": {"src/kvstore/base", "src/gpu"},
    "src/tiering": {"src/kvstore/base", "src/kvstore", "src/gpu", "src/tiering"},
    "src/api": set(ROOMS),
    "src/api/client": {"src/api/client"},
}
# libterrace is linked into foreign processes: beside its own files it may see these and no more.
CLIENT_MAY_SEE = {"kvstore/base/block_copy.h", "kvstore/base/reason.h", "kvstore/block_header.h",
                  "api/engine/wire.h", "api/engine/wire_region.h", "gpu/cuda/driver.h"}

# (name, include pattern, paths where it may stand)
FOREIGN = (
    ("CUDA and NCCL", re.compile(r"^(cuda|cudart|cublas|cufile|nccl|nvml)[\w./]*\.h$"),
     re.compile(r"^src/gpu/((cuda|nccl)/[^/]+|[^/]+\.(cc|cu))$|^src/api/client/[^/]+\.cc$|^(tests|bench)/")),
    ("liburing", re.compile(r"^liburing"), re.compile(r"^src/tiering/io/[^/]+\.cc$")),
    ("gRPC and Protobuf", re.compile(r"^(grpc|grpcpp|google/protobuf|terrace/v1)/|\.pb\.h$"),
     re.compile(r"^src/api/(?!client/|engine/)")),
    ("Abseil (libterrace needs none)", re.compile(r"^absl/"), re.compile(r"^src/(?!api/client/)")),
    ("spdlog", re.compile(r"^(spdlog|fmt)/"), re.compile(r"^src/kvstore/base/log\.cc$")),
    ("yaml-cpp", re.compile(r"^yaml-cpp/"), re.compile(r"^src/api/server/")),
    ("mimalloc", re.compile(r"^mimalloc"), re.compile(r"^src/api/server/")),
    ("GoogleTest", re.compile(r"^(gtest|gmock)/"), re.compile(r"^$")),
)


def room_of(path):
    return next((room for room in ROOMS if path.startswith(room + "/")), None)


def includes(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1), match.group(2)


def check_file(path, text, files):
    room = room_of(path)
    if room is None or not path.endswith(CODE):
        return []
    findings = []
    for line, quote, target in includes(text):
        if target.startswith(("tests/", "bench/", "testing/", "plugins/")) or ".." in target:
            findings.append((path, line, "layer", "src/ includes nothing outside src/"))
            continue
        for name, pattern, place in FOREIGN:
            if pattern.search(target) and not place.search(path):
                findings.append((path, line, "foreign", f"{name} may not be included here"))
        ours = "src/" + target
        if ours in files:
            other = room_of(ours)
            if room == "src/api/client":
                legal = other == room or target in CLIENT_MAY_SEE
            else:
                legal = other in ALLOWED[room] or other is None
            if not legal:
                findings.append((path, line, "layer", f"{room} may not see {target}"))
        elif quote == '"' and posixpath.join(posixpath.dirname(path), target) in files:
            findings.append((path, line, "include", "write the path from src/ on"))
    return findings


def check_circles(files):
    """One finding for each set of folders in src/ that include each other."""
    edges = {}
    for path, text in files.items():
        if not path.startswith("src/") or not path.endswith(CODE):
            continue
        for _, _, target in includes(text):
            ours = "src/" + target
            here, there = posixpath.dirname(path), posixpath.dirname(ours)
            if ours in files and here != there:
                edges.setdefault(here, {}).setdefault(there, path)
    reach = {folder: _reachable(folder, edges) for folder in edges}
    findings, seen = [], set()
    for folder in sorted(edges):
        circle = frozenset(other for other in reach[folder] if folder in reach.get(other, ()))
        if circle and circle not in seen:
            seen.add(circle)
            names = ", ".join(sorted(circle))
            example = next(path for there, path in edges[folder].items() if there in circle)
            findings.append((example, 1, "circle", f"folders include each other: {names}"))
    return findings


def _reachable(start, edges):
    found, open_ = set(), [start]
    while open_:
        for there in edges.get(open_.pop(), ()):
            if there not in found:
                found.add(there)
                open_.append(there)
    return found
