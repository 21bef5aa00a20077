#!/usr/bin/env python3
"""Prints the line coverage of each room from gcovr's JSON summary; exits with 1 where a room is below its threshold."""

import json
import sys
from pathlib import Path

# Per cent of lines that the unit tests of each of these folders, and of each folder below, must reach.
THRESHOLDS = {"memory": 90, "boot": 90, "devices": 90}


def room_of(path):
    """The room of a file under src/: its folder, without an x86_64/ inside; devices have one room each."""
    parts = [part for part in Path(path).parts[1:-1] if part != "x86_64"]
    return "/".join(parts)


def threshold_of(room):
    return max((least for name, least in THRESHOLDS.items()
                if room == name or room.startswith(name + "/")), default=0)


def main():
    rooms = {}
    for entry in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"]:
        covered, total = rooms.get(room_of(entry["filename"]), (0, 0))
        rooms[room_of(entry["filename"])] = covered + entry["line_covered"], total + entry["line_total"]
    low = False
    for room, (covered, total) in sorted(rooms.items()):
        share = 100.0 * covered / total if total else 100.0
        least = threshold_of(room)
        low = low or share < least
        wanted = f"   at least {least} % wanted{': TOO LOW' if share < least else ''}" if least else ""
        print(f"  {room:<24}{share:6.1f} % of {total:5} lines{wanted}")
    return 1 if low or not rooms else 0


if __name__ == "__main__":
    sys.exit(main())
