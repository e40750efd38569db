#!/usr/bin/env python3
# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""The rules of tidy find what they are for, and leave alone what is allowed."""

import unittest

import tidy

LICENCE = "// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0\n"
HEADER = LICENCE + "#pragma once\n"


def rules_found(files, exceptions=""):
    return sorted({rule for _, _, rule, _ in tidy.check(files, exceptions)})


def one(path, body):
    if path.endswith(".h"):
        text = HEADER + body
    elif path.endswith((".py", ".sh")):
        text = LICENCE.replace("//", "#") + body
    else:
        text = LICENCE + body
    return {path: text}


KV = one("src/kvstore/block_key.h", "struct BlockKey {};\n")
BASE = one("src/kvstore/base/clock.h", "class Clock {};\n")
TIER = one("src/tiering/tier_stack.h", "class TierStack {};\n")


class Layering(unittest.TestCase):
    def include(self, path, target, *others, quote='"'):
        close = '"' if quote == '"' else ">"
        files = one(path, f"#include {quote}{target}{close}\n")
        for other in others:
            files.update(other)
        return rules_found(files)

    def test_calls_go_down_only(self):
        self.assertEqual(self.include("src/kvstore/index.cc", "tiering/tier_stack.h", TIER), ["layer"])
        self.assertEqual(self.include("src/gpu/copy.cc", "kvstore/block_key.h", KV), ["layer"])
        self.assertEqual(self.include("src/kvstore/base/log.cc", "kvstore/block_key.h", KV), ["layer"])
        self.assertEqual(self.include("src/tiering/x.cc", "kvstore/block_key.h", KV), [])
        self.assertEqual(self.include("src/gpu/copy.cc", "kvstore/base/clock.h", BASE), [])
        self.assertEqual(self.include("src/api/x.cc", "tiering/tier_stack.h", TIER), [])

    def test_the_client_library_sees_four_headers(self):
        self.assertEqual(self.include("src/api/client/x.cc", "kvstore/base/clock.h", BASE), ["layer"])
        reason = one("src/kvstore/base/reason.h", "enum class Reason {};\n")
        self.assertEqual(self.include("src/api/client/x.cc", "kvstore/base/reason.h", reason), [])
        self.assertEqual(self.include("src/api/client/x.cc", "absl/status/status.h"), ["foreign"])

    def test_product_code_includes_no_test_code(self):
        self.assertEqual(self.include("src/api/x.cc", "tests/testing/fake_clock.h"), ["layer"])
        self.assertEqual(self.include("src/api/x.cc", "../../bench/x.h"), ["layer"])
        self.assertEqual(self.include("src/api/x.cc", "gtest/gtest.h", quote="<"), ["foreign"])

    def test_foreign_headers_have_one_place(self):
        for target, good, bad in (
                ("cuda_runtime.h", "src/gpu/stream.cc", "src/gpu/stream.h"),
                ("nccl.h", "src/gpu/nccl_link.cu", "src/tiering/peer.cc"),
                ("liburing.h", "src/tiering/io/io_ring.cc", "src/tiering/io/io_ring.h"),
                ("grpcpp/grpcpp.h", "src/api/server/x.cc", "src/api/engine/x.cc"),
                ("terrace/v1/kv.pb.h", "src/api/ctl/x.h", "src/tiering/x.cc"),
                ("spdlog/spdlog.h", "src/kvstore/base/log.cc", "src/api/server/x.cc"),
                ("yaml-cpp/yaml.h", "src/api/server/config.cc", "src/tiering/x.cc")):
            self.assertEqual(self.include(good, target, quote="<"), [], target)
            self.assertEqual(self.include(bad, target, quote="<"), ["foreign"], target)

    def test_paths_start_at_src(self):
        self.assertEqual(self.include("src/kvstore/index.cc", "block_key.h", KV), ["include"])

    def test_folders_do_not_include_each_other(self):
        files = {}
        files.update(one("src/api/engine/a.h", '#include "api/server/b.h"\n'))
        files.update(one("src/api/server/b.h", '#include "api/ctl/c.h"\n'))
        files.update(one("src/api/ctl/c.h", ""))
        self.assertEqual(rules_found(files), [])
        files.update(one("src/api/ctl/c.h", '#include "api/engine/a.h"\n'))
        self.assertEqual(rules_found(files), ["circle"])


class OneDefinition(unittest.TestCase):
    BODY = "namespace terrace::kv {\n\nclass Budget final : public Base {\n};\n\n}\n"

    def test_a_name_is_defined_once(self):
        files = {**one("src/kvstore/budget.h", self.BODY), **one("src/kvstore/other.h", self.BODY)}
        self.assertEqual(rules_found(files), ["one_definition"])

    def test_other_namespaces_and_declarations_are_free(self):
        files = {**one("src/kvstore/budget.h", self.BODY),
                 **one("src/tiering/budget.h", self.BODY.replace("kv", "tiering")),
                 **one("src/kvstore/other.h", "namespace terrace::kv {\n\nclass Budget;\n\n}\n")}
        self.assertEqual(rules_found(files), [])


class Sizes(unittest.TestCase):
    def test_each_kind_has_its_limit(self):
        for path, limit in (("src/kvstore/a.h", 250), ("src/kvstore/a.cc", 500), ("bench/a.cc", 500),
                            ("plugins/vllm/terrace_vllm/a.py", 500), ("tests/kvstore/a_test.cc", 800)):
            start = 2 if path.endswith(".h") else 1
            self.assertEqual(rules_found(one(path, "\n" * (limit - start))), [], path)
            self.assertEqual(rules_found(one(path, "\n" * (limit - start + 1))), ["size"], path)

    def test_exceptions_are_bounded_reasoned_and_needed(self):
        long = one("src/kvstore/a.h", "\n" * 260)
        self.assertEqual(rules_found(long, "src/kvstore/a.h 300 one table"), [])
        self.assertEqual(rules_found(long, "src/kvstore/a.h 255 one table"), ["size"])
        self.assertEqual(rules_found(long, "src/kvstore/a.h 300"), ["size"])
        self.assertEqual(rules_found(KV, "src/kvstore/gone.h 300 one table"), ["size"])
        self.assertEqual(rules_found(KV, "src/kvstore/block_key.h 300 one table"), ["size"])

    def test_columns(self):
        self.assertEqual(rules_found(one("src/kvstore/a.cc", "//" + "x" * 118 + "\n")), [])
        self.assertEqual(rules_found(one("src/kvstore/a.cc", "//" + "x" * 119 + "\n")), ["columns"])


class Bans(unittest.TestCase):
    def check(self, path, line, rule):
        found = rules_found(one(path, line + "\n"))
        self.assertEqual(found, [rule] if rule else [], f"{path}: {line}")

    def test_locks(self):
        self.check("src/tiering/a.cc", "std::lock_guard<std::mutex> lock(mu_);", "mutex")
        self.check("src/tiering/a.cc", "absl::Mutex mu_;", "mutex")
        self.check("src/api/client/a.cc", "std::mutex mu_;", None)
        self.check("src/tiering/a.cc", "// not std::mutex", None)

    def test_environment_and_time(self):
        self.check("src/tiering/a.cc", 'auto* v = std::getenv("HOME");', "getenv")
        self.check("src/api/server/config_env.cc", 'auto* v = std::getenv("HOME");', None)
        self.check("src/tiering/a.cc", "auto t = std::chrono::steady_clock::now();", "clock")
        self.check("src/kvstore/base/clock.cc", "auto t = std::chrono::steady_clock::now();", None)

    def test_sleeping(self):
        self.check("tests/api/a_test.cc", "std::this_thread::sleep_for(1s);", "sleep")
        self.check("tests/api/a_test.cc", "std::this_thread::sleep_for(1ms);  // poll", None)
        self.check("tests/e2e/test_a.py", "time.sleep(1)", "sleep")
        self.check("plugins/vllm/tests/test_a.py", "time.sleep(0.01)  # poll", None)
        self.check("tests/api/a_test.cc", '"sleep(1)";', None)

    def test_naked_new(self):
        self.check("src/tiering/a.cc", "auto* p = new Frame();", "new")
        self.check("src/tiering/a.cc", "return absl::WrapUnique(new Frame());", None)
        self.check("src/tiering/a.cc", "return absl::WrapUnique(\n    new Frame());", None)
        self.check("src/tiering/a.cc", "std::unique_ptr<Frame> p(new Frame());", None)
        self.check("src/tiering/a.cc", "static const Clock* clock = new RealClock();", None)
        self.check("src/tiering/a.cc", "Pool() : slabs_(new Slab[8]) {}", None)
        self.check("src/tiering/a.cc", "new (place) Header();", None)
        self.check("src/tiering/a.cc", "// a new frame", None)
        self.check("src/tiering/a.cc", "return absl::WrapUnique(new A()); auto* p = new B();", "new")

    def test_test_hooks_in_product_code(self):
        self.check("src/tiering/a.h", "friend class TierStackTest;", "friend")
        self.check("src/tiering/a.h", "friend class TierStack;", None)
        self.check("src/tiering/a.h", "void SetClockForTest(Clock* clock);", "for_test")

    def test_waivers_name_rule_and_reason(self):
        self.check("src/tiering/a.cc", "// tidy: detach: ends with the process\nthread.detach();", None)
        self.check("src/tiering/a.cc", "thread.detach();  // tidy: detach: ends with the process", None)
        self.check("src/tiering/a.cc", "thread.detach();  // tidy: detach:", "detach")
        self.check("src/tiering/a.cc", "thread.detach();  // tidy: throw: wrong rule", "detach")

    def test_others(self):
        self.check("src/tiering/a.cc", "throw 1;", "throw")
        self.check("src/tiering/a.cc", "thread.detach();", "detach")
        self.check("src/gpu/a.cc", "cudaDeviceSynchronize();", "device_sync")
        self.check("src/gpu/a.cc", "sprintf(text, format);", "c_string")
        self.check("src/gpu/a.cc", "snprintf(text, 8, format);", None)
        self.check("src/gpu/a.h", "using namespace std;", "using")


class Texts(unittest.TestCase):
    def test_leftovers(self):
        self.assertEqual(rules_found(one("src/gpu/a.cc", "// FIXME later\n")), ["leftover"])
        self.assertEqual(rules_found(one("src/gpu/a.cc", "// a placeholder\n")), ["leftover"])
        self.assertEqual(rules_found(one("src/gpu/a.cc", 'Error("not implemented");\n')), ["leftover"])
        self.assertEqual(rules_found(one("src/gpu/a.cc", "// TODO: later\n")), ["todo"])
        self.assertEqual(rules_found(one("src/gpu/a.cc", "// TODO(#12): later\n")), [])

    def test_machine_paths_and_hosts(self):
        self.assertEqual(rules_found({"README.md": "see /home/jane/x\n"}), ["machine_path"])
        self.assertEqual(rules_found({"README.md": "see /run/terrace/engine.sock\n"}), [])
        self.assertEqual(rules_found({"docs/a.md": "curl 10.1.2.3\n"}), ["machine_host"])
        self.assertEqual(rules_found({"docs/a.md": "wiki.corp is ours\n"}), ["machine_host"])
        self.assertEqual(rules_found({"docs/a.md": "curl 127.0.0.1:9464, 1.10.0.11.2\n"}), [])

    def test_licence_and_guard(self):
        self.assertEqual(rules_found({"src/gpu/a.cc": "int a;\n"}), ["licence"])
        self.assertEqual(rules_found({"src/gpu/a.h": LICENCE + "int a;\n"}), ["guard"])
        self.assertEqual(rules_found({"scripts/a.sh": "#!/bin/sh\n"}), ["licence"])


class Blanking(unittest.TestCase):
    def test_line_numbers_stay(self):
        files = one("src/gpu/a.cc", '/* two\nlines */ const char* a = "throw";\nthrow 1;\n')
        self.assertEqual([(line, rule) for _, line, rule, _ in tidy.check(files, "")], [(4, "throw")])

    def test_digit_separators_are_no_literals(self):
        self.assertEqual(rules_found(one("src/gpu/a.cc", "int a = 1'000; throw 1; int b = 2'000;\n")),
                         ["throw"])


if __name__ == "__main__":
    unittest.main()
