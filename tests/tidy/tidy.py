#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check, over all files that git does not ignore.

Prints `path:line: [rule] what to do instead` for each finding and ends with 1 if there is one.
The rules stand in layering.py (who may include whom) and rules.py (sizes, bans, texts);
tidy_rules_test.py feeds them bad samples. Standard library only.
"""

import pathlib
import subprocess
import sys

import layering
import rules


def project_files(root):
    """Paths relative to root, '/'-separated: what git tracks or would offer to add."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(root), "-c", f"safe.directory={root}", "ls-files", "-z", "--cached",
             "--others", "--exclude-standard"],
            check=True, capture_output=True, text=True).stdout
        names = [name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked archive
        skipped = {"build", ".venv", ".git", ".cache", "__pycache__", ".pytest_cache"}
        names = [path.relative_to(root).as_posix() for path in root.rglob("*")
                 if not skipped & set(path.relative_to(root).parts)]
    return sorted(name for name in names if (root / name).is_file())


def check(files, size_exceptions_text):
    """files: {path: text}. Returns findings as (path, line, rule, advice)."""
    findings = []
    exceptions = rules.parse_size_exceptions(size_exceptions_text)
    for path, text in files.items():
        findings += layering.check_file(path, text, files)
        findings += rules.check_file(path, text, exceptions)
    findings += layering.check_circles(files)
    findings += rules.check_exceptions(exceptions, files)
    findings += rules.check_one_definition(files)
    return sorted(findings)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    files = {}
    for name in project_files(root):
        try:
            files[name] = (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and the like
    if not any(name.startswith("src/") for name in files):
        print(f"{root}: no source files found; wrong folder?")
        return 2
    findings = check(files, files.get("tests/tidy/size_exceptions.txt", ""))
    for path, line, rule, advice in findings:
        print(f"{path}:{line}: [{rule}] {advice}")
    print(f"{len(files)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
