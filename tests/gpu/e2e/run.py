#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Runs the end-to-end scenarios of engines with paged caches against a daemon, without pytest.

    run.py --node PATH --library PATH --memory host|cuda|torch[:export] [--driver FOLDER] [--json FILE]

--node: terraced or region_node. --driver: a folder with a libcuda.so.1 to be used in place of the system's (for
the test stand-in `softcuda`: what then passes was not run on a GPU). Prints one line a scenario and ends with
`N passed, N failed, N skipped`; exit status 0 when nothing failed, 77 when all was skipped.
"""

import argparse
import json
import os
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import layouts
import rig
import scenarios

_EXPORTS = {"cuda": ["ipc", "vmm", "private", "refused"], "torch": ["ipc", "vmm"]}
_SKIPPED = 77  # what ctest takes for "skipped"


def kinds_of(memory):
    """`cuda` stands for all ways of exporting it, `cuda:ipc` for one."""
    name, _, export = memory.partition(":")
    return [memory] if export or name not in _EXPORTS else [f"{name}:{way}" for way in _EXPORTS[name]]


def chosen(names):
    if not names:
        return scenarios.ALL
    found = [scenario for scenario in scenarios.ALL if scenario.__name__ in names]
    unknown = set(names) - {scenario.__name__ for scenario in found}
    if unknown:
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are "
                 + ", ".join(scenario.__name__ for scenario in scenarios.ALL))
    return found


def run_one(scenario, setting):
    begun = time.monotonic()
    try:
        return {"result": "passed", "facts": scenario(setting), "seconds": time.monotonic() - begun}
    except Exception as error:
        traceback.print_exc()
        return {"result": "failed", "why": str(error)[:2000], "seconds": time.monotonic() - begun}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default=rig.find_binary("region_node") or rig.find_binary("terraced"))
    parser.add_argument("--library", default=rig.find_binary("libterrace.so.2", "lib"))
    parser.add_argument("--memory", action="append", help="may be given more than once")
    parser.add_argument("--driver", help="folder with a libcuda.so.1")
    parser.add_argument("--layout", action="append", choices=layouts.NAMES)
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--json", help="write the results there")
    args = parser.parse_args()
    for what, path in (("--node", args.node), ("--library", args.library)):
        if not path or not os.path.exists(path):
            parser.error(f"{what}: {path or 'nothing'} is not built")
    driver = os.path.abspath(args.driver) if args.driver else None
    print(f"seed {args.seed} (repeat with --seed), node {args.node}"
          + (f", driver {driver}: NOT A GPU unless it is NVIDIA's" if driver else ""), flush=True)
    results = []
    for memory in [kind for asked in args.memory or ["host"] for kind in kinds_of(asked)]:
        why = rig.why_not(memory, args.library, driver)
        setting = scenarios.Setting(os.path.abspath(args.node), os.path.abspath(args.library), memory, driver,
                                    tuple(args.layout or layouts.NAMES), args.seed)
        for scenario in chosen(args.scenario):
            outcome = {"result": "skipped", "why": why, "seconds": 0.0} if why else run_one(scenario, setting)
            results.append({"memory": memory, "scenario": scenario.__name__, **outcome})
            print(f"{outcome['result']:8} {memory:13} {scenario.__name__} {outcome['seconds']:.1f} s "
                  f"{json.dumps(outcome.get('facts')) if outcome.get('facts') else outcome.get('why', '')[:300]}",
                  flush=True)
    counts = {name: sum(r["result"] == name for r in results) for name in ("passed", "failed", "skipped")}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"seed": args.seed, "driver": driver, "results": results, **counts}, file, indent=1)
    print(", ".join(f"{counts[name]} {name}" for name in counts), flush=True)
    return 1 if counts["failed"] else 0 if counts["passed"] else _SKIPPED


if __name__ == "__main__":
    sys.exit(main())
