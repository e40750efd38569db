#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Adds up the results that test.sh left: one line a suite, every failed and skipped test by name, and as
the last line `N passed, N failed` (`, N skipped`). Ends with 1 when something failed or nothing ran.

A suite is a folder with `status` (exit status or why it did not run), `ctest.xml` with one GoogleTest
file a program in `gtest/`, or `pytest.xml`. A program that failed without a failed case (it crashed,
or ran out of time) counts as one failed test; so does a suite that failed without a failed test.
"""

import pathlib
import sys
import xml.etree.ElementTree as ET


class Sums:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []  # "name: reason"

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def read_cases(path):
    """Sums of one JUnit file (pytest's and GoogleTest's dialects); None when it cannot be read."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return None
    sums = Sums()
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            sums.failed.append(name)
        elif skipped is not None or case.get("result") == "skipped":
            # GoogleTest puts file and line before the reason, on a line of their own.
            reason = "" if skipped is None else (skipped.get("message") or "").strip().split("\n")[-1]
            sums.skipped.append(f"{name}: {reason or 'no reason given'}")
        elif case.get("status") != "notrun":  # notrun: DISABLED_ tests of GoogleTest
            sums.passed += 1
        else:
            sums.skipped.append(f"{name}: disabled")
    return sums


def was_skipped(program):
    """Whether a program without GoogleTest cases skipped itself (its SKIP_RETURN_CODE)."""
    skipped = program.find("skipped")
    return skipped is not None and (skipped.get("message") or "").startswith("SKIP_RETURN_CODE")


def said_last(program):
    lines = [line for line in (program.findtext("system-out") or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def read_ctest(folder):
    """ctest's programs, each replaced by its GoogleTest cases where it wrote them."""
    programs = read_cases(folder / "ctest.xml")
    if programs is None:
        return None
    cases = {path.stem: read_cases(path) for path in sorted((folder / "gtest").glob("*.xml"))}
    sums = Sums()
    root = ET.parse(folder / "ctest.xml").getroot()
    for program in root.iter("testcase"):
        name = program.get("name")
        found = cases.pop(name, None)
        failed = program.find("failure") is not None or program.get("status") == "fail"
        if found is not None:
            sums.add(found)
            if failed and not found.failed:
                sums.failed.append(f"{name} (failed outside its cases)")
        elif failed:
            sums.failed.append(f"{name} (crashed, or ran out of time)")
        elif was_skipped(program):
            sums.skipped.append(f"{name}: {said_last(program)}")
        elif program.get("status") in ("notrun", "disabled") or program.find("skipped") is not None:
            sums.failed.append(f"{name} (did not run)")
        else:
            sums.passed += 1
    return sums


def read_suite(folder):
    status = (folder / "status").read_text().strip() if (folder / "status").exists() else "did not end"
    if (folder / "pytest.xml").exists():
        sums = read_cases(folder / "pytest.xml")
    else:
        sums = read_ctest(folder)
    if sums is None:
        sums = Sums()
        sums.failed.append(f"{folder.name}: no results (status: {status})")
    elif status != "0" and not sums.failed:
        sums.failed.append(f"{folder.name}: ended with status {status}")
    elif sums.passed + len(sums.failed) + len(sums.skipped) == 0:
        sums.failed.append(f"{folder.name}: holds no tests")
    return sums


def main():
    total = Sums()
    folders = sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_dir())
    for folder in folders:
        sums = read_suite(folder)
        total.add(sums)
        print(f"{folder.name:<16} {sums.passed:>5} passed {len(sums.failed):>4} failed "
              f"{len(sums.skipped):>4} skipped")
        for name in sums.failed:
            print(f"    FAILED  {name}")
        for name in sums.skipped:
            print(f"    skipped {name}")
    if not folders:
        total.failed.append("nothing ran")
    line = f"{total.passed} passed, {len(total.failed)} failed"
    if total.skipped:
        line += f", {len(total.skipped)} skipped"
    print(f"\n{line}")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
