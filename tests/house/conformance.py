#!/usr/bin/env python3
"""Checks that what virtio demands of a device is held by tests that exist.

conformance.py ROOT BUILD --ctest CTEST. A row of a table of docs/virtio-conformance.md begins with a section's number
and ends with what holds it: `test NAME` in code marks, each a case of the test suite (a * stands for anything), or
"untested: " and a reason, which is printed and no problem.
"""

import argparse
import fnmatch
import re
from pathlib import Path

import house
import promises

PAGE = "docs/virtio-conformance.md"


def rows(root):
    """(where, section, demand, held by) of each row."""
    for number, line in enumerate((root / PAGE).read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and not re.fullmatch(r"\|[\s:|-]+\|", line) and cells[0] != "section":
            yield f"{PAGE}:{number}", cells


def check(root, tests):
    if not (root / PAGE).is_file():
        yield f"there is no {PAGE}"
        return
    count = 0
    for where, cells in rows(root):
        count += 1
        if len(cells) != 3 or not re.fullmatch(r"\d+(\.\d+)+", cells[0]) or "MUST" not in cells[1]:
            yield f"{where}: is no row of a section, what a device MUST, and what holds it"
            continue
        named = re.findall(r"`test ([^`]+)`", cells[2])
        if not named and not re.match(r"untested: \S", cells[2]):
            yield f"{where}: names no `test` and does not say why it is untested"
        for name in named:
            if not fnmatch.filter(tests, name):
                yield f"{where}: there is no test {name}"
    if count == 0:
        yield f"{PAGE}: demands nothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("build", type=Path)
    parser.add_argument("--ctest", default="ctest")
    options = parser.parse_args()
    problems = list(check(options.root, promises.known_tests(options.root, options.build, options.ctest)))
    for where, cells in rows(options.root):
        if len(cells) == 3 and cells[2].startswith("untested"):
            print(f"{where}: {cells[0]}: {cells[2]}")
    house.finish(problems, "what virtio demands")


if __name__ == "__main__":
    main()
