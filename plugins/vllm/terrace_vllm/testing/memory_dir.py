# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""A directory in memory for a daemon's host tier, which its test removes again, whatever happens."""

import os
import re
import shutil
import tempfile

ROOT = "/dev/shm"
PREFIX = "terrace-test-"


class MemoryDirectory:
    """One directory of this process. Those of processes that ended before they could are removed, too."""

    def __init__(self) -> None:
        for name in os.listdir(ROOT):
            owner = re.match(PREFIX + r"(\d+)-", name)
            if owner and not os.path.exists(f"/proc/{owner[1]}"):
                shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
        self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=ROOT)

    def files(self) -> "list[str]":
        return [os.path.join(folder, name) for folder, _, names in os.walk(self.path) for name in names]

    def used_bytes(self) -> int:
        """What the files take of the file system."""
        return sum(os.stat(path).st_blocks * 512 for path in self.files())

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
