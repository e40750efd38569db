# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""What the documents name exists, and what an operator meets is in the documents."""

import re
import subprocess

import pytest

from running import BIN, CLEAN, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OPERATOR = "".join((ROOT / "docs" / name).read_text() for name in ("operations.md", "gpu.md"))


def terraced(*arguments):
    done = subprocess.run([BIN / "terraced", *arguments], capture_output=True, text=True, timeout=60, env=CLEAN)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_warning_is_explained():
    said = set()
    for path in (ROOT / "src").rglob("*.cc"):
        said |= set(re.findall(r'Log\([^;"]*LogLevel::k(?:Warning|Error)[^;"]*"(\w+)"', path.read_text()))
    assert len(said) > 40, "it finds them"
    assert {event for event in said if f"`{event}`" not in OPERATOR} == set()


def test_every_reason_is_explained():
    names = re.search(r"kReasonNames = \{(.*?)\}", (ROOT / "src/kvstore/base/reason.h").read_text(), re.DOTALL)[1]
    reasons = set(re.findall(r'"(\w+)"', names)) - {"none"}
    assert len(reasons) > 20
    assert {reason for reason in reasons if f"`{reason}`" not in OPERATOR} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings}
            assert heading in slugs, link


def test_every_label_of_tests_is_explained():
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("CMakeLists.txt"))
    labels = set(re.findall(r"\bLABELS (\w+)", text)) | {"unit"}
    assert {"gpu", "contract"} < labels
    testing = (ROOT / "docs/testing.md").read_text()
    assert {label for label in labels if f"| `{label}` |" not in testing} == set()


def test_every_option_that_is_named_exists():
    options = set(re.findall(r"^\| `([\w.]+)` \|", terraced("config", "defaults", "--format", "markdown"), re.MULTILINE))
    sections = "|".join(sorted({option.partition(".")[0] for option in options if "." in option}))
    assert "host" in sections
    for page in PAGES:
        named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)\b[^`]*`", page.read_text()))
        assert {name for name in named - options if not re.search(r"\.(sock|h|health|reflection)$", name)} == set(), page
