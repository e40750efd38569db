# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Sizes, bans with the replacement named, and texts that must or must not stand in a file."""

import re

CPP = (".h", ".cc", ".cu")
NEEDS_LICENCE = CPP + (".c", ".py", ".sh", ".proto")
LICENCE = "Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0"
LINE_COLUMNS = 120  # clang-format aims at 100; this is the hard stop

# rule, pattern, where it is looked for, where it is allowed all the same, advice.
# Searched in code: comments and the insides of literals are blanked before. One line is let off by the
# comment `tidy: rule: reason` on it or above it.
_NOWHERE = r"^$"
BANS = [(rule, re.compile(pattern), re.compile(where), re.compile(except_), advice)
        for rule, pattern, where, except_, advice in (
    ("mutex", r"\bstd::(mutex|shared_mutex|recursive_mutex|timed_mutex|lock_guard|unique_lock|"
     r"scoped_lock|shared_lock|condition_variable)\b|\babsl::(Mutex|MutexLock|CondVar)\b",
     r"^src/", r"^src/kvstore/base/mutex\.h$|^src/api/client/",
     "use Mutex, MutexLock, CondVar of kvstore/base/mutex.h"),
    ("getenv", r"\b(secure_)?getenv\s*\(", r"^src/", r"^src/api/(server/config|client/|ctl/)",
     "settings come from the configuration"),
    ("clock", r"\b(system_clock|steady_clock|high_resolution_clock)::now\b|\bclock_gettime\s*\(|"
     r"\bgettimeofday\s*\(|\babsl::Now\b", r"^src/(kvstore|gpu|tiering)/",
     r"^src/kvstore/base/(clock|log)\.cc$", "time comes from Clock (kvstore/base/clock.h)"),
    ("sleep", r"\b(sleep_for|sleep_until|usleep|nanosleep|SleepFor)\s*\(|(?<![\w.])sleep\s*\(|"
     r"\btime\.sleep\s*\(", r"^tests/|^plugins/.*/tests/", _NOWHERE,
     "no sleeping for luck; the pause of a loop with a deadline is marked `poll` on its line, a random "
     "moment `tidy: sleep: reason`"),
    ("new", r"\bnew\b(?!\s*\()", r"^src/.*\.(h|cc)$", r"^src/api/client/",
     "std::make_unique; absl::WrapUnique(new ...) for private constructors"),
    ("friend", r"\bfriend\b[^;]*Test\b|\bFRIEND_TEST\b", r"^src/", _NOWHERE,
     "a friend for a test means a missing seam"),
    ("for_test", r"\b\w*(ForTest|ForTesting|for_test|for_testing)\b", r"^src/.*\.(h|cc|cu)$", _NOWHERE,
     "a test replaces a seam, it never reaches inside"),
    ("throw", r"\bthrow\b", r"^src/.*\.(h|cc|cu)$", _NOWHERE, "return absl::Status"),
    ("detach", r"\.detach\s*\(\s*\)", r"^src/.*\.(h|cc)$", _NOWHERE, "threads are owned and joined"),
    ("device_sync", r"\bcudaDeviceSynchronize\b", r"^src/", _NOWHERE, "wait for an event of the stream"),
    ("c_string", r"\b(strcpy|strcat|sprintf|vsprintf|gets|strtok)\s*\(", r"\.(h|cc|c|cu)$", _NOWHERE,
     "use a call that knows the size"),
    ("using", r"^\s*using\s+namespace\b", r"\.h$", _NOWHERE, "no using directives in headers"),
)]

# Searched in the whole text, comments included.
WORDS = [(rule, re.compile(pattern), re.compile(where), advice)
         for rule, pattern, where, advice in (
    ("leftover", r"\b(FIXME|XXX|HACK)\b|(?i:\bplaceholder\b|\bnot implemented\b)",
     r"^(src|plugins|bench)/.*\.(h|cc|cu|py|proto)$", "finish it or leave it out"),
    ("todo", r"\bTODO\b(?!\([^)]+\))", r"^(src|plugins|bench|tests)/", "TODO(name or issue)"),
    ("machine_path", r"(?<![\w.])/(work|home|root|Users)/\w", r".", "no path of one machine"),
    ("machine_host", r"(?<![\d.])(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d+\.\d+(?![\d.])|"
     r"\b[a-z0-9-]+\.(internal|corp|lan|intra)\b", r".", "no host of one network"),
)]


def blank_comments_and_strings(path, text):
    """The text with comments and insides of literals replaced by spaces; lines keep their numbers."""
    def blank(match):
        piece = match.group(0)
        if piece[0] in "\"'":
            return piece[0] + re.sub(r"[^\n]", " ", piece[1:-1]) + piece[-1]
        return re.sub(r"[^\n]", " ", piece)

    if path.endswith((".py", ".sh")):
        pattern = (r'"""[\s\S]*?"""' r"|'''[\s\S]*?'''" r'|"(?:\\.|[^"\\\n])*"'
                   r"|'(?:\\.|[^'\\\n])*'" r"|#[^\n]*")
    elif path.endswith(CPP + (".c", ".proto")):
        pattern = (r'R"(\w*)\([\s\S]*?\)\1"' r'|"(?:\\.|[^"\\\n])*"'
                   r"|(?<!\w)'(?:\\.|[^'\\\n])+'" r"|//[^\n]*|/\*[\s\S]*?\*/")
    else:
        return text
    return re.sub(pattern, blank, text)


def size_limit(path):
    if path.startswith("src/") and path.endswith(".h"):
        return 250, "header"
    if path.endswith(CPP + (".c", ".py")):
        if path.startswith("tests/") or "/tests/" in path:
            return 800, "test"
        return 500, "source"
    if path.endswith(".sh"):
        return 300, "script"
    return None, ""


def parse_size_exceptions(text):
    """{path: (limit, reason)} from lines `path limit reason`; a line without a reason counts as 0."""
    exceptions = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            fields = line.split(maxsplit=2)
            exceptions[fields[0]] = (int(fields[1]) if len(fields) == 3 else 0, line)
    return exceptions


def check_exceptions(exceptions, files):
    place = "tests/tidy/size_exceptions.txt"
    findings = []
    for path, (limit, line) in exceptions.items():
        if path not in files:
            findings.append((place, 1, "size", f"names a file that is gone: {path}"))
        elif limit == 0:
            findings.append((place, 1, "size", f"needs path, limit and reason: {line}"))
        elif len(files[path].splitlines()) <= (size_limit(path)[0] or 0):
            findings.append((place, 1, "size", f"needs no exception any more: {path}"))
    return findings


def check_one_definition(files):
    """Two classes of one name in one namespace: the linker keeps either's inline functions, and says nothing."""
    seen, findings = {}, []
    for path, text in sorted(files.items()):
        if not (path.startswith("src/") and path.endswith(".h")):
            continue
        code = blank_comments_and_strings(path, text)
        namespace = re.search(r"^namespace ([\w:]+) {", code, re.M)
        for found in re.finditer(r"^(?:class|struct)(?: (?:ABSL_\w+|alignas\(\w+\)))* (\w+)(?!\w|::)(?: final)?"
                                 r"(?: *:[^;{]*)? *{", code, re.M):
            name = (namespace[1] if namespace else "", found[1])
            if name in seen:
                line = code.count("\n", 0, found.start()) + 1
                findings.append((path, line, "one_definition", f"{found[1]} is also defined in {seen[name]}"))
            seen.setdefault(name, path)
    return findings


def _allowed_new(line, previous):
    """Every `new` goes straight into a smart pointer, a member's constructor or an immortal static."""
    offset = len(previous.rstrip()) + 1
    joined = previous.rstrip() + " " + line
    allowed = re.compile(r"(WrapUnique\s*(<[^;]*>)?\s*\(|unique_ptr<[^;]*[({]|\w_\(|\bstatic\b[^;]*=\s*\*?)$")
    return all(allowed.search(joined[:match.start()].rstrip())
               for match in re.finditer(r"\bnew\b(?!\s*\()", joined) if match.start() >= offset)


def _waived(rule, lines, number):
    """`tidy: rule: reason` in a comment on the line or the one above it."""
    waiver = re.compile(r"(//|#).*\btidy: " + rule + r": \w+")
    return any(waiver.search(line) for line in lines[max(0, number - 2):number])


def check_file(path, text, exceptions):
    if path.startswith("tests/tidy/"):
        return []  # these files name what they look for
    findings = []
    lines = text.splitlines()

    limit, kind = size_limit(path)
    if limit is not None:
        limit = max(limit, exceptions.get(path, (0, ""))[0])
        if len(lines) > limit:
            findings.append((path, limit, "size", f"{len(lines)} lines; a {kind} has at most {limit}"))
    if path.endswith(NEEDS_LICENCE) and not any(LICENCE in line for line in lines[:3]):
        if not (path.endswith("__init__.py") and not text.strip()):
            findings.append((path, 1, "licence", f"first comment: {LICENCE}"))
    if path.endswith(".h") and not re.search(r"^#pragma once$|^#ifndef \w+_H_$", text, re.M):
        findings.append((path, 1, "guard", "#pragma once"))
    if path.endswith(CPP):
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_COLUMNS and "http" not in line and not line.startswith("#include"):
                findings.append((path, number, "columns", f"{len(line)} columns, at most {LINE_COLUMNS}"))

    code = blank_comments_and_strings(path, text).splitlines()
    for rule, pattern, where, except_, advice in BANS:
        if not where.search(path) or except_.search(path):
            continue
        for number, line in enumerate(code, 1):
            if not pattern.search(line):
                continue
            if _waived(rule, lines, number):
                continue
            if rule == "sleep" and re.search(r"(//|#).*\bpoll\b", lines[number - 1]):
                continue
            if rule == "new":
                previous = code[number - 2] if number > 1 else ""
                if line.lstrip().startswith("#") or "operator new" in line:
                    continue
                if _allowed_new(line, previous):
                    continue
            findings.append((path, number, rule, advice))
    for rule, pattern, where, advice in WORDS:
        if where.search(path):
            for number, line in enumerate(lines, 1):
                if pattern.search(line):
                    findings.append((path, number, rule, advice))
    return findings
