#!/usr/bin/env python3
"""Checks that every promise of SPECIFICATION.md and docs/threat-model.md names something that holds it and exists.

promises.py ROOT BUILD --ctest CTEST. A promise is a row of a table whose last column is "held by", and says so in code
marks: `test NAME` (a CTest case; a final * stands for any ending), `bench NAME` (a program of bench/),
`devtool NAME` (a command of tools/devtool; both may have arguments), or `ci STAGE` (a stage of .ci/run).
"""

import argparse
import fnmatch
import json
import re
import subprocess
from pathlib import Path

import house


def known_tests(root, build, ctest):
    """The cases of this build, and those that CMake adds in other builds only."""
    listed = subprocess.run([ctest, "--show-only=json-v1"], cwd=build, check=True, stdout=subprocess.PIPE).stdout
    names = {test["name"] for test in json.loads(listed)["tests"]}
    for path in (root / "tests").rglob("CMakeLists.txt"):
        for prefix, values in looped_tests(path.read_text(encoding="utf-8")):
            names |= {f"{prefix}.{value}" for value in values}
    return names


def looped_tests(cmake):
    """[(prefix, values)] of each `foreach(check VALUES)` around `add_test(NAME PREFIX.${check}`."""
    found = re.findall(r"foreach\(check ([\w ]+)\)\s*add_test\(NAME ([\w.]+)\.\$", cmake)
    return [(prefix, values.split()) for values, prefix in found]


DOCUMENTS = ("SPECIFICATION.md", "docs/threat-model.md")


def check(root, tests):
    for document in DOCUMENTS:
        if not (root / document).is_file():
            yield f"there is no {document}"
            continue
        promises = list(rows_of((root / document).read_text(encoding="utf-8")))
        for number, held_by in promises:
            yield from check_row(root, tests, f"{document}:{number}", held_by)
        if not promises:
            yield f"{document}: promises nothing"


def rows_of(text):
    """(line, last column) of each row of the tables whose last column is "held by"."""
    is_promise = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            is_promise = False
            continue
        last = line.strip("| ").split("|")[-1].strip()
        if last.lower() == "held by":
            is_promise = True
        elif is_promise and not re.fullmatch(r"\|[\s:|-]+\|", line):
            yield number, last


def check_row(root, tests, where, held_by):
    holders = re.findall(r"`(test|bench|devtool|ci) ([^`]+)`", held_by)
    if not holders:
        yield f"{where}: names no `test`, `bench`, `devtool` or `ci` that holds the promise"
    for kind, name in holders:
        if not exists(root, tests, kind, name):
            yield f"{where}: there is no {kind} {name}"


def exists(root, tests, kind, name):
    if kind == "test":
        return bool(fnmatch.filter(tests, name))
    command = name.split()[0]
    if kind == "bench":
        return any((root / "bench" / (command + end)).is_file() for end in ("", ".py", ".sh"))
    if kind == "devtool":
        return (root / "tools" / "lib" / f"{command}.sh").is_file()
    stages = root / ".ci" / "run"
    return stages.is_file() and re.search(rf"^stage {re.escape(name)} ", stages.read_text(encoding="utf-8"), re.M) is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("build", type=Path)
    parser.add_argument("--ctest", default="ctest")
    options = parser.parse_args()
    tests = known_tests(options.root, options.build, options.ctest)
    house.finish(list(check(options.root, tests)), "the promises")


if __name__ == "__main__":
    main()
