#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Runs the end-to-end scenarios of engines with paged caches against a daemon, without pytest.

    run.py --node PATH --library PATH --memory host|cuda|torch[:export] [--driver FOLDER] [--jobs N] [--json FILE]

--node: terraced or region_node. --driver: a folder with a libcuda.so.1 to be used in place of the system's (for
the test stand-in `softcuda`: what then passes was not run on a GPU). Prints one line a scenario and ends with
`N passed, N failed, N skipped`; exit status 0 when nothing failed, 77 when all was skipped. Ways of export
that differ little, and PyTorch, whose processes start slowly, run fewer scenarios unless --all is given.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import layouts
import rig
import scenarios

_EXPORTS = {"cuda": ["ipc", "vmm", "pieces", "private", "refused"], "torch": ["ipc", "pieces"]}
_SKIPPED = 77  # what ctest takes for "skipped"


def kinds_of(memory):
    """`cuda` stands for all ways of exporting it, `cuda:ipc` for one."""
    name, _, export = memory.partition(":")
    return [memory] if export or name not in _EXPORTS else [f"{name}:{way}" for way in _EXPORTS[name]]


def chosen(names, memory, everything):
    """The scenarios of one kind of memory, and the layouts of those that take several."""
    by_name = {scenario.__name__: scenario for scenario in scenarios.ALL}
    unknown = set(names or ()) - set(by_name)
    if unknown:
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    if names or everything:
        return [by_name[name] for name in names or by_name], layouts.NAMES
    few = [scenario for scenario in scenarios.ALL if scenario in scenarios.EVERY_WAY]
    if memory.startswith("torch"):
        return few, ["kv_apart", "cross_layer", "hybrid"]
    return few if memory in ("cuda:vmm", "cuda:pieces", "cuda:private") else scenarios.ALL, layouts.NAMES


def run_one(scenario, setting, why_skipped):
    begun = time.monotonic()
    if why_skipped:
        return {"result": "skipped", "why": why_skipped, "seconds": 0.0}
    try:
        return {"result": "passed", "facts": scenario(setting), "seconds": time.monotonic() - begun}
    except Exception as error:
        return {"result": "failed", "why": str(error)[:2000], "trace": traceback.format_exc(),
                "seconds": time.monotonic() - begun}


def show(memory, scenario, outcome):
    facts = json.dumps(outcome["facts"]) if outcome.get("facts") else outcome.get("why", "")[:300]
    print(f"{outcome['result']:8} {memory:13} {scenario.__name__} {outcome['seconds']:.1f} s {facts}")
    print(outcome.get("trace", ""), end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default=rig.find_binary("region_node") or rig.find_binary("terraced"))
    parser.add_argument("--library", default=rig.find_binary("libterrace.so.2", "lib"))
    parser.add_argument("--memory", action="append", help="may be given more than once")
    parser.add_argument("--driver", help="folder with a libcuda.so.1")
    parser.add_argument("--layout", action="append", choices=layouts.NAMES)
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--all", action="store_true", help="all scenarios and layouts for every kind of memory")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at a time")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--json", help="write the results there")
    args = parser.parse_args()
    for what, path in (("--node", args.node), ("--library", args.library)):
        if not path or not os.path.exists(path):
            parser.error(f"{what}: {path or 'nothing'} is not built")
    driver = os.path.abspath(args.driver) if args.driver else None
    print(f"seed {args.seed} (repeat with --seed), node {args.node}"
          + (f", driver {driver}: NOT A GPU unless it is NVIDIA's" if driver else ""), flush=True)
    work = []
    for memory in [kind for asked in args.memory or ["host"] for kind in kinds_of(asked)]:
        why = rig.why_not(memory, args.library, driver)
        found, orders = chosen(args.scenario, memory, args.all)
        setting = scenarios.Setting(os.path.abspath(args.node), os.path.abspath(args.library), memory, driver,
                                    tuple(args.layout or orders), args.seed)
        work += [(scenario, setting, why) for scenario in found]
    results = []
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for (scenario, setting, _), outcome in zip(work, pool.map(run_one, *zip(*work))):
            show(setting.memory, scenario, outcome)
            results.append({"memory": setting.memory, "scenario": scenario.__name__, **outcome})
    counts = {name: sum(r["result"] == name for r in results) for name in ("passed", "failed", "skipped")}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"seed": args.seed, "driver": driver, "results": results, **counts}, file, indent=1)
    print(", ".join(f"{counts[name]} {name}" for name in counts), flush=True)
    return 1 if counts["failed"] else 0 if counts["passed"] else _SKIPPED


if __name__ == "__main__":
    sys.exit(main())
