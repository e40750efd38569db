# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Reads Prometheus text and the tables of docs/metrics.md, for comparing the two."""

import re
import sys

# Values of these labels are not a closed list: names that a person configured, or what was built.
OPEN_LABELS = {"tenant", "device", "version", "commit", "cuda", "le"}


class Family:
    def __init__(self, name, kind, text):
        self.name, self.kind, self.text = name, kind, text
        self.labels = {}  # name -> set of values
        self.series = {}  # (sample name, labels) -> value


def parse(text):
    """Families by name. Raises ValueError where the text breaks the format's rules."""
    families, current = {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            current = families.setdefault(name, Family(name, None, words))
            if current.series:
                raise ValueError(f"{name} stands twice")
        elif line.startswith("# TYPE "):
            _, _, name, current.kind = line.split(" ")
            if name != current.name:
                raise ValueError(f"TYPE {name} under HELP {current.name}")
        elif line:
            match = re.fullmatch(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)', line)
            if not match:
                raise ValueError(f"not a sample: {line}")
            sample, labels, value = match.groups()
            base = re.sub(r"_(bucket|sum|count)$", "", sample) if current.kind == "histogram" else sample
            if base != current.name:
                raise ValueError(f"{sample} under {current.name}")
            pairs = tuple(re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"', labels or ""))
            if (sample, pairs) in current.series:
                raise ValueError(f"{line} stands twice")
            current.series[sample, pairs] = float(value)
            for name, label in pairs:
                current.labels.setdefault(name, set()).add(label)
    return families


def documented(markdown):
    """The document's two tables: metric -> (type, label names), (metric, label) -> values."""
    metrics, values = {}, {}
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        name = re.fullmatch(r"`((?:terrace|process)_\w+)`", cells[0])
        if not name:
            continue
        words = [re.findall(r"`([^`]+)`", cell) for cell in cells]
        if cells[1] in ("counter", "gauge", "histogram"):
            metrics[name[1]] = (cells[1], set(words[2]))
        else:
            values[name[1], words[1][0]] = set(words[2])
    return metrics, values


def exported(families):
    """The same two tables of a scrape."""
    metrics, values = {}, {}
    for family in families.values():
        names = set(family.labels) - {"le"}
        metrics[family.name] = (family.kind, names)
        for label in names - OPEN_LABELS:
            values[family.name, label] = family.labels[label]
    return metrics, values


def markdown(families):
    """The two tables as they belong into docs/metrics.md."""
    metrics, values = exported(families)
    lines = ["| metric | type | labels | what it is |", "|---|---|---|---|"]
    for name, (kind, _) in metrics.items():
        labels = ", ".join(f"`{label}`" for label in families[name].labels if label != "le") or "-"
        lines.append(f"| `{name}` | {kind} | {labels} | {families[name].text} |")
    lines += ["", "| metric | label | values |", "|---|---|---|"]
    for (name, label), texts in values.items():
        lines.append(f"| `{name}` | `{label}` | {', '.join(f'`{text}`' for text in sorted(texts))} |")
    return "\n".join(lines)


if __name__ == "__main__":  # curl -s 127.0.0.1:9464/metrics | python3 tests/python/exposition.py
    print(markdown(parse(sys.stdin.read())))
