"""What the checks of the house share: reading the list of rooms, the project's files, saying what was found."""

import re
import sys
from pathlib import Path

SOURCE_FOLDERS = ("src", "jailer", "tests", "bench")
TOOL_FOLDERS = ("tools", "resources", "cmake", ".ci")


def read_rooms(path):
    """{folder relative to the root: (name, [names it depends on])} from CMake's list, `name folder: deps` a line."""
    rooms = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"(\S+) (\S+): ?(.*)", line)
        if not found:
            raise SystemExit(f"{path}: not a line `name folder: dependencies`: {line!r}")
        rooms[found[2]] = (found[1], found[3].split())
    return rooms


def files(root, folders, suffixes):
    """The project's files below `folders` with one of the suffixes, relative to the root, in order."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in suffixes and "fixtures" not in path.parts:
                yield path.relative_to(root)


def finish(problems, what):
    """Prints the problems; ends the program with 1 where there are any."""
    for problem in problems:
        print(problem)
    print(f"{what}: {len(problems)} problems" if problems else f"{what}: kept")
    sys.exit(1 if problems else 0)
