#!/usr/bin/env python3
"""Checks that every room has a README.md of a page at most: readmes.py ROOT ROOMS."""

from pathlib import Path
from sys import argv

import house

PAGE = 80  # lines


def check(root, rooms):
    for folder in rooms:
        readme = root / folder / "README.md"
        if not readme.is_file():
            yield f"{folder}: no README.md: what it is for, what it refuses to do, how to test it alone"
            continue
        length = len(readme.read_text(encoding="utf-8").splitlines())
        if length > PAGE:
            yield f"{folder}/README.md: {length} lines are more than a page ({PAGE})"


if __name__ == "__main__":
    house.finish(list(check(Path(argv[1]), house.read_rooms(argv[2]))), "a README in every room")
