#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The GPU report; scripts/gpu_report.sh says what it is. Standard library only.

Every step has a time limit within that of the whole, a log, and one of four ends: passed, failed, skipped (with the
reason), or out of time. What is left to do when the time is up is reported as skipped, so there is always a report.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import sum_results

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGURE = ["-DCMAKE_BUILD_TYPE=Release", "-DTERRACE_SERVER=OFF", "-DTERRACE_CUDA=ON", "-DTERRACE_WERROR=OFF"]
# A few short tests of the copy engine under compute-sanitizer: it makes everything many times slower.
MEMCHECK = ("cuda_copy_engine_gpu_test", "*FramesOnTheDevice:*FramesMayLieAnywhere:*AFlippedBitIsFoundInItsPageOnly")


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def python_package_dir(name):
    """Folder of a package that a wheel brought, or None. Does not import it."""
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(*(s.submodule_search_locations if s else []))"
    found = output_of("python3", "-c", code).split()
    return pathlib.Path(found[0]) if found else None


class Report:
    """Runs steps and keeps what became of them. Owner: main."""

    def __init__(self, out, minutes):
        self.out = out
        self.begun = time.monotonic()
        self.end = self.begun + minutes * 60
        self.patience = max(1.0, minutes / 7.5)  # steps get more time on a slow machine that is given more
        self.steps = []  # {"name", "result", "seconds", "why"?, "counts"?, ...}
        self.facts = {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE_")}
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"

    def seconds(self):
        return time.monotonic() - self.begun

    def add(self, name, result, seconds=0.0, **more):
        self.steps.append({"name": name, "result": result, "seconds": round(seconds, 1), **more})
        why = more.get("why", "")
        print(f"[{int(self.seconds()) // 60:02d}:{int(self.seconds()) % 60:02d}] {result:8} {name} ({seconds:.0f} s)"
              + (f": {why}" if why else ""), flush=True)
        return self.steps[-1]

    def run(self, name, command, limit, environment=None, skip_code=None):
        """One command as a step; its output is in the log of that name. Returns the step."""
        left = self.end - time.monotonic()
        if left < 5:
            return self.add(name, "skipped", why="the time of the report is up")
        log = self.out / f"{name}.log"
        begun = time.monotonic()
        with open(log, "wb") as file:
            try:
                process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=subprocess.STDOUT, env=environment or self.environment, cwd=ROOT,
                                           start_new_session=True)
            except OSError as error:
                return self.add(name, "failed", why=str(error))
            try:
                code = process.wait(min(limit * self.patience, left))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing else
                process.wait()
                code = None
        seconds = time.monotonic() - begun
        if code is None:
            return self.add(name, "failed", seconds, why=f"not done after {seconds:.0f} s; see {log.name}")
        if code == skip_code:
            return self.add(name, "skipped", seconds, why=self.last_line(log))
        if code != 0:
            return self.add(name, "failed", seconds, why=f"exit status {code}; see {log.name}")
        return self.add(name, "passed", seconds)

    @staticmethod
    def last_line(log):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no output"

    def probe(self):
        query = "name,driver_version,memory.total,pci.bus_id,compute_cap,clocks.max.mem,pcie.link.gen.max,pcie.link.width.max"
        smi = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").strip()
        self.facts = {
            "gpu": smi.splitlines(),
            "nvcc": (output_of(nvcc(), "--version").strip().splitlines() or ["none"])[-1],
            "cmake": output_of("cmake", "--version").split("\n")[0],
            "compiler": output_of(os.environ.get("CXX", "c++"), "--version").split("\n")[0],
            "python": sys.version.split()[0],
            "kernel": " ".join(os.uname()[i] for i in (0, 2, 4)),
            "cores": os.cpu_count(),
        }
        torch = "import torch; print(torch.__version__, torch.cuda.is_available(), torch.cuda.nccl.version())"
        self.facts["torch"] = output_of("python3", "-c", torch).strip() or "none"
        (self.out / "nvidia-smi.txt").write_text(output_of("nvidia-smi") or "no nvidia-smi\n")
        (self.out / "topology.txt").write_text(output_of("nvidia-smi", "topo", "-m") or "no nvidia-smi\n")


def nvcc():
    home = os.environ.get("CUDA_HOME", os.environ.get("CUDA_PATH", "/usr/local/cuda"))
    return shutil.which("nvcc") or f"{home}/bin/nvcc"


def architectures(report):
    """Of the GPUs here, so that kernels are compiled once each."""
    found = sorted({line.split(",")[4].strip().replace(".", "") for line in report.facts["gpu"]})
    return [f"-DTERRACE_CUDA_ARCHITECTURES={';'.join(found)}"] if found else []


def nccl_settings(report):
    """NCCL's header and library as they come with PyTorch."""
    package = python_package_dir("nvidia.nccl")
    if package is None:
        return []
    path = report.environment.get("LD_LIBRARY_PATH", "")
    report.environment["LD_LIBRARY_PATH"] = f"{package / 'lib'}:{path}".rstrip(":")
    return [f"-DTERRACE_NCCL_INCLUDE={package / 'include'}"] if (package / "include" / "nccl.h").exists() else []


def gpu_tests(build):
    """Programs of the tests that need a GPU, by name."""
    listing = json.loads(output_of("ctest", "--test-dir", str(build), "-L", "gpu", "--show-only=json-v1") or "{}")
    tests = {}
    for test in listing.get("tests", []):
        command = test.get("command", [])  # missing while the program is not built
        tests[test["name"]] = pathlib.Path(command[0]).name if command else test["name"]
    return tests


def known_targets(build):
    lines = output_of("cmake", "--build", str(build), "--target", "help").splitlines()
    return {line.removeprefix("... ").split(":")[0].split(" ")[0] for line in lines}


def build_all(report, args, build):
    kit = [f"-DTERRACE_KIT={args.kit}"] if args.kit else []
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", ROOT, "-B", build, *generator, *CONFIGURE, *kit, *architectures(report),
                 *nccl_settings(report)]
    if report.run("configure", configure, 90)["result"] != "passed":
        return False
    targets = ["terrace", "region_node", "terrace_gpu_bench"]
    targets += [name for name in gpu_tests(build) if not name.startswith("region_engines")]
    if args.dry_run:
        targets += ["softcuda", "softnccl"]
    known = known_targets(build)
    for name in [name for name in targets if name not in known]:
        report.add(f"build of {name}", "failed", why="this build has no such program; see configure.log")
    targets = [name for name in targets if name in known]
    jobs = max(2, os.cpu_count() or 2)
    # -k: what does not build must not hide what the rest shows.
    keep_going = ["--", "-k", "0"] if generator else ["--", "-k"]
    step = report.run("build", ["cmake", "--build", build, "-j", jobs, "--target", *targets, *keep_going], 300)
    return step["result"] == "passed" or (build / "bin").exists()


def use_softcuda(report, build):
    """The stand-ins in place of the driver and of NCCL, by the names that the product opens."""
    path = report.environment.get("LD_LIBRARY_PATH", "")
    report.environment["LD_LIBRARY_PATH"] = f"{build / 'softcuda'}:{build / 'softnccl'}:{path}".rstrip(":")
    report.environment["SOFTCUDA_MEMORY_MB"] = "2048"


def run_tests(report, build):
    """The C++ tests: one step, with the counts of cases."""
    folder = report.out / "ctest"
    folder.mkdir()
    environment = dict(report.environment, GTEST_OUTPUT=f"xml:{folder}/gtest/", GTEST_COLOR="no")
    step = report.run("ctest", ["ctest", "--test-dir", build, "-L", "gpu", "-E", "region_engines", "-j", 4,
                                "--timeout", 120, "--output-on-failure", "--output-junit", folder / "ctest.xml"],
                      200, environment)
    sums = sum_results.read_ctest(folder)
    if sums is None:
        step["counts"] = {"passed": 0, "failed": 1, "skipped": 0}
        return
    step["counts"] = {"passed": sums.passed, "failed": len(sums.failed), "skipped": len(sums.skipped)}
    step["failed"], step["skipped"] = sums.failed, sums.skipped
    if step["result"] == "passed" and sums.passed == 0:
        step["result"], step["why"] = "skipped", "; ".join(sums.skipped[:1]) or "no test"


def run_engines(report, build):
    """Engines with paged caches, end to end."""
    for memory in ("cuda", "torch"):
        result = report.out / f"engines_{memory}.json"
        command = ["python3", "-B", "tests/gpu/e2e/run.py", "--node", build / "bin" / "region_node", "--library",
                   build / "lib" / "libterrace.so", "--memory", memory, "--json", result]
        step = report.run(f"engines_{memory}", command, 150, skip_code=77)
        if result.exists():
            found = json.loads(result.read_text())
            step["counts"] = {name: found[name] for name in ("passed", "failed", "skipped")}
            step["failed"] = [f"{r['memory']} {r['scenario']}: {r.get('why', '')}" for r in found["results"]
                              if r["result"] == "failed"]
            step["skipped"] = [f"{r['memory']} {r['scenario']}: {r.get('why', '')}" for r in found["results"]
                               if r["result"] == "skipped"]


def run_memcheck(report, args, build):
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    program, cases = MEMCHECK
    if args.dry_run:
        report.add("memcheck", "skipped", why="needs a GPU")
    elif not os.path.exists(tool):
        report.add("memcheck", "skipped", why="no compute-sanitizer here")
    elif not (build / "bin" / program).exists():
        report.add("memcheck", "failed", why=f"{program} was not built")
    else:
        environment = dict(report.environment, TERRACE_TEST_DRIVER="libcuda.so.1")
        # Calls that answer with an error are tested elsewhere; some are meant to.
        step = report.run("memcheck", [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", 9,
                                       build / "bin" / program, f"--gtest_filter={cases}"], 90, environment)
        ran = re.search(r"\[  PASSED  \] (\d+) test", (report.out / "memcheck.log").read_text(errors="replace"))
        if step["result"] == "passed" and (ran is None or ran.group(1) == "0"):
            step["result"], step["why"] = "failed", "no test ran"


def run_bench(report, args, build):
    command = [build / "bin" / "terrace_gpu_bench", "--json"]
    if args.dry_run:
        command += ["--allow-softcuda", "--scale", "0.1"]
    step = report.run("bench", command, 120)
    lines = []
    for line in (report.out / "bench.log").read_text(errors="replace").splitlines() if step["seconds"] else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    step["lines"] = lines


def bench_table(lines):
    rows = ["| case | result |", "|---|---|"]
    for line in lines:
        name = line.get("case") or line.get("name")
        if name:
            rest = ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("case", "name"))
            rows.append(f"| `{name}` | {rest} |")
    return rows


def counts_of(report):
    """Cases; a step without cases of its own counts as one."""
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for step in report.steps:
        counts = step.get("counts") or {step["result"]: 1}
        for name in total:
            total[name] += counts.get(name, 0)
        if step["result"] == "failed" and step.get("counts") and not step["counts"]["failed"]:
            total["failed"] += 1
    return total


def write(report, args):
    total = counts_of(report)
    where = "NOT A GPU (softcuda, a stand-in for the driver)" if args.dry_run else "; ".join(report.facts["gpu"]) or "no GPU"
    ran = ", ".join(step["name"] for step in report.steps if step["result"] != "skipped")
    skipped = ", ".join(step["name"] for step in report.steps if step["result"] == "skipped") or "nothing"
    line = (f"GPU report on {where}: ran {ran}; skipped {skipped}; {total['passed']} passed, {total['failed']} failed, "
            f"{total['skipped']} skipped; {report.seconds():.0f} s")
    text = ["# GPU report", "", f"**{line}**", ""]
    if args.dry_run:
        text += ["Dry run on softcuda: it shows that the report works and our own code with it, and nothing about a GPU.", ""]
    text += ["| what | is |", "|---|---|"] + [f"| {key} | {value} |" for key, value in report.facts.items()]
    text += ["", "| step | result | seconds | passed | failed | skipped | |", "|---|---|---|---|---|---|---|"]
    for step in report.steps:
        counts = step.get("counts", {})
        cells = [step["name"], step["result"], step["seconds"], *(counts.get(n, "") for n in ("passed", "failed", "skipped")),
                 step.get("why", "")]
        text.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    for title in ("failed", "skipped"):
        names = [f"- {step['name']}: {name}" for step in report.steps for name in step.get(title, [])]
        if names:
            text += ["", f"## {title.capitalize()}", "", *names]
    bench = next((step for step in report.steps if step["name"] == "bench"), {})
    if bench.get("lines"):
        text += ["", "## Measurements", "", *bench_table(bench["lines"])]
    (report.out / "summary.md").write_text("\n".join(text) + "\n")
    (report.out / "results.json").write_text(json.dumps(
        {"line": line, "is_gpu": not args.dry_run and bool(report.facts["gpu"]), "counts": total,
         "facts": report.facts, "steps": report.steps, "seconds": round(report.seconds(), 1)}, indent=1) + "\n")
    print(f"\nreport: {report.out}\n{line}", flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


def parse():
    parser = argparse.ArgumentParser(prog="gpu_report.sh", description="Builds, tests and measures Terrace on a GPU.")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "gpu-report")
    parser.add_argument("--kit", type=pathlib.Path, help="made by scripts/gpu_kit.sh; default build/gpu-kit if it is there")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "gpu-report-build")
    parser.add_argument("--minutes", type=float, default=7.5, help="time limit of all (7.5)")
    parser.add_argument("--dry-run", action="store_true", help="on softcuda: not a GPU")
    args = parser.parse_args()
    for name in ("out", "build", "kit"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).absolute())
    if args.kit is None and (ROOT / "build" / "gpu-kit" / "kit.txt").exists():
        args.kit = ROOT / "build" / "gpu-kit"
    return args


def main():
    args = parse()
    if args.out.exists() and any(args.out.iterdir()) and not (args.out / "results.json").exists():
        sys.exit(f"{args.out} holds something else; give another folder with --out")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    report = Report(args.out, args.minutes)
    (args.out / "results.json").write_text("{}\n")  # marks the folder as ours from now on
    report.probe()
    if not report.facts["gpu"] and not args.dry_run:
        report.add("gpu", "skipped", why="nvidia-smi shows no GPU: what needs one will be skipped")
    if build_all(report, args, args.build):
        if args.dry_run:
            use_softcuda(report, args.build)
        run_tests(report, args.build)
        run_bench(report, args, args.build)
        run_engines(report, args.build)
        run_memcheck(report, args, args.build)
    return write(report, args)


if __name__ == "__main__":
    sys.exit(main())
