#!/usr/bin/env python3
"""Checks the words that must not stand alone in the source.

project_text.py ROOT: a note of unfinished work or a silenced linter says why; a cast that the compiler cannot check
and a fence carry a comment `SAFETY:` on their line, or in the three lines or the comment above. One comment is enough
for lines of casts that follow one another, and `SAFETY (of what):` holds to the end of the function or type it is in.
"""

import re
from pathlib import Path
from sys import argv

import house

CODE = {".h", ".cc", ".c", ".S", ".py", ".sh", ".cmake", ".txt", ""}
CPP = {".h", ".cc", ".c"}

# Written so that this file does not name them itself.
UNFINISHED = "TO" + "DO"
FORBIDDEN = re.compile(r"\b(FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
SILENCED = "NO" + "LINT"
SAFETY = re.compile(r"// SAFETY( \([^)]+\))?: *\w|// .*\bSAFETY: *\w")
UNSAFE = re.compile(r"\b(reinterpret_cast|const_cast)\b|\batomic_(thread|signal)_fence\b")


def check_line(line):
    for found in re.finditer(rf"\b{UNFINISHED}\b(\(\s*\w[^)]*\))?", line):
        if not found[1]:
            yield f"a {UNFINISHED} needs its reason: {UNFINISHED}(why it is not done yet)"
    for found in FORBIDDEN.finditer(line):
        yield f"{found[1]}: say {UNFINISHED}(reason), or better, do it"
    for found in re.finditer(rf"{SILENCED}(NEXTLINE|BEGIN|END)?(\([\w.,* -]+\))?(: *\w)?", line):
        if found[1] != "END" and not (found[2] and found[3]):
            yield f"a {SILENCED} names the check and its reason: {SILENCED}(check): why"


def has_safety(lines, number):
    """Whether line `number` (from 0) or what stands above it says why it is safe."""
    if any(SAFETY.search(line) for line in lines[max(0, number - 3):number + 1]):
        return True
    if number > 0 and UNSAFE.search(lines[number - 1].split("//")[0]):
        return has_safety(lines, number - 1)
    above = number - 1
    while above >= 0 and lines[above].lstrip().startswith("//"):
        if SAFETY.search(lines[above]):
            return True
        above -= 1
    while above >= 0 and not lines[above].startswith("}"):
        found = SAFETY.search(lines[above])
        if found and found[1]:
            return True
        above -= 1
    return False


def check_file(path, text):
    lines = text.splitlines()
    for number, line in enumerate(lines):
        for problem in check_line(line):
            yield f"{path}:{number + 1}: {problem}"
        code = line.split("//")[0]
        found = UNSAFE.search(code) if path.suffix in CPP else None
        if found and not has_safety(lines, number):
            yield f"{path}:{number + 1}: {found[0]} without a comment `SAFETY:`"


def check(root):
    problems = []
    for path in house.files(root, house.SOURCE_FOLDERS + house.TOOL_FOLDERS, CODE):
        if "corpus" in path.parts:
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            problems.append(f"{path}: is not UTF-8")
            continue
        problems += check_file(path, text)
    return problems


if __name__ == "__main__":
    house.finish(check(Path(argv[1])), "the project's words")
