#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""`cmake --install` into an empty folder: everything is there, the programs start, and a C program finds
libterrace through pkg-config alone."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BUILD_DIR, CMAKE, C_COMPILER = sys.argv[1:4]

PROGRAM = r"""
#include <stdio.h>
#include <terrace.h>
int main(void) {
  terrace_options options = {sizeof(options)};
  options.socket_path = "/nonexistent/engine.sock";
  terrace_client* client = NULL;
  const terrace_status status = terrace_connect(&options, &client);
  printf("%s %s\n", terrace_version(), terrace_status_name(status));
  terrace_close(client);
  return 0;
}
"""


def run(*command, **arguments):
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **arguments)
    if result.returncode != 0:
        raise AssertionError(f"{command}: {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="terrace-install-")
        cls.prefix = pathlib.Path(cls.folder.name) / "prefix"
        run(CMAKE, "--install", BUILD_DIR, "--prefix", str(cls.prefix))
        cls.library = next(cls.prefix.glob("lib/**/libterrace.so")).parent

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_everything_is_in_its_place(self):
        for name in ("bin/terraced", "bin/terracectl", "include/terrace.h", "etc/terrace/terraced.yaml",
                     "lib/systemd/system/terraced.service", "lib/sysusers.d/terrace.conf",
                     "share/terrace/proto/terrace/v1/kv.proto", "share/doc/terrace/README.md",
                     "share/doc/terrace/LICENSE"):
            self.assertTrue((self.prefix / name).is_file(), name)
        self.assertTrue((self.library / "pkgconfig" / "terrace.pc").is_file())
        left = [path for path in self.prefix.rglob("*") if path.name == "__pycache__" or path.suffix == ".a"]
        self.assertEqual(left, [])

    def test_installed_programs_start(self):
        version = run(str(self.prefix / "bin/terraced"), "--version")
        self.assertIn("0.1.0", version)
        self.assertIn("0.1.0", run(str(self.prefix / "bin/terracectl"), "--version"))

    def test_installed_configuration_is_accepted(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE_")}
        run(str(self.prefix / "bin/terraced"), "config", "check", "--config",
            str(self.prefix / "etc/terrace/terraced.yaml"), env=environment)

    def test_a_c_program_is_built_through_pkg_config(self):
        source = pathlib.Path(self.folder.name) / "program.c"
        binary = source.with_suffix("")
        source.write_text(PROGRAM)
        environment = dict(os.environ, PKG_CONFIG_PATH=str(self.library / "pkgconfig"))
        # The .pc file names the prefix of the configuration; this installation lies elsewhere.
        flags = run("pkg-config", f"--define-variable=prefix={self.prefix}", "--cflags", "--libs", "terrace",
                    env=environment).split()
        run(C_COMPILER, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
            "-Wno-missing-field-initializers", str(source), "-o", str(binary), *flags)
        output = run(str(binary), env=dict(os.environ, LD_LIBRARY_PATH=str(self.library)))
        self.assertEqual(output, "0.1.0 UNAVAILABLE\n")

    def test_the_library_exports_its_c_api_only(self):
        symbols = run("nm", "-D", "--defined-only", "--format=posix", str(self.library / "libterrace.so"))
        names = [line.split()[0].split("@")[0] for line in symbols.splitlines()]
        self.assertIn("terrace_connect", names)
        self.assertEqual([name for name in names if not name.startswith("terrace_")], [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
