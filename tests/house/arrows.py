#!/usr/bin/env python3
"""Checks that no room knows more than it may.

arrows.py ROOT ROOMS: ROOMS is the list that CMake writes, `name folder: dependencies` a line. Every dependency must
point down the house's order and be included by a file of the room, every #include must be of a room that it
depends on, and some libraries are confined to the rooms that exist to hide them.
"""

import re
from pathlib import Path
from sys import argv

import house

# The house's order, the lowest first. A room may depend on rooms of lower lines only; `devices/*` is every device
# that no other line names. A room that no line names is an error: its place has to be decided.
ORDER = (
    ("src/base",),
    ("src/memory", "src/event", "src/json", "src/seccomp"),
    ("src/seccomp/compiler", "src/seccomp/policy"),
    ("src/kvm", "src/boot", "src/devices/bus", "src/rate_limiter"),
    ("src/devices/power",),  # how a device says that the guest wants to end, as well as the device that does
    ("src/devices/virtio/queue",),
    ("src/devices/virtio/transport",),
    ("src/devices/*",),
    ("src/mmds",),  # a service on the cable of a network device
    ("src/snapshot",),
    ("src/vmm",),
    ("src/api/http",),
    ("src/api",),
    ("src/mayfly",),
)

# A program of its own beside the house: knows base and nothing else.
BASE_ONLY = ("jailer",)

# Headers from outside the project that only the named folders may include.
CONFINED = (
    (r"(linux|asm)/kvm\.h", ("src/kvm", "src/snapshot", "src/vmm", "src/seccomp/compiler"),
     "KVM's own types"),
    (r"seccomp\.h", ("src/seccomp/compiler",), "libseccomp"),
    (r"nlohmann/.*", ("src/json", "src/api", "src/mmds", "src/seccomp/compiler"),
     "JSON"),  # what the host writes for a guest is JSON by nature; the compiler is a program of its own
    (r"(httplib\.h|llhttp\.h|picohttpparser\.h|http_parser\.h|boost/beast.*)", ("src/api/http",), "HTTP"),
    (r"CLI/.*", ("src/mayfly", "jailer"), "the command line's parser"),
    (r"(shared_)?mutex|condition_variable", ("src/base/mutex.h",), "locks that clang does not check (base/mutex.h has some)"),
)

# Folders of what is of one processor's architecture. Their headers are for files in such folders, for tests, and for the
# one door of a room's common sources: its arch.h.
ARCHITECTURES = {"x86_64"}
ARCHITECTURE_DOOR = "arch.h"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def level(folder):
    """The line of the order that a room stands in, or None."""
    for number, line in enumerate(ORDER):
        if folder in line:
            return number
    for number, line in enumerate(ORDER):
        if any(entry.endswith("/*") and folder.startswith(entry[:-1]) for entry in line):
            return number
    return None


def room_of(path, rooms):
    """The folder of the innermost room that the file belongs to, or None."""
    for parent in Path(path).parents:
        if parent.as_posix() in rooms:
            return parent.as_posix()
    return None


def check_order(rooms):
    by_name = {name: folder for folder, (name, _) in rooms.items()}
    for folder, (name, dependencies) in rooms.items():
        if folder in BASE_ONLY:
            for dependency in set(dependencies) - {"base"}:
                yield f"{folder}: depends on {dependency}; it may know base only"
            continue
        own = level(folder)
        if own is None:
            yield f"{folder}: has no place in the house's order; give it one in tests/house/arrows.py"
            continue
        for dependency in dependencies:
            if dependency not in by_name:
                yield f"{folder}: depends on {dependency}, which is no room"
                continue
            other = level(by_name[dependency])
            if other is not None and other >= own:
                yield f"{folder}: depends on {dependency}, which does not stand below {name} in the house's order"


def check_includes(root, rooms):
    for path in house.files(root, ("src", "jailer"), {".h", ".cc", ".c"}):
        folder = room_of(path, rooms)
        if folder is None:
            yield f"{path}: belongs to no room"
            continue
        text = (root / path).read_text(encoding="utf-8")
        for found in INCLUDE.finditer(text):
            where = f"{path}:{text.count(chr(10), 0, found.start(2)) + 1}"
            yield from check_include(root, rooms, where, path, rooms[folder], found[1], found[2])


def included_rooms(root, path, rooms, seen):
    """Names of the rooms that a file includes headers of, itself or through what tests/ has for unit tests."""
    for _, included in INCLUDE.findall((root / path).read_text(encoding="utf-8")):
        support = Path("tests") / included
        if (root / support).is_file():
            if support not in seen:
                seen.add(support)
                yield from included_rooms(root, support, rooms, seen)
            continue
        folder = room_of(Path("src") / included, rooms)
        if folder is not None:
            yield rooms[folder][0]


def check_needs(root, rooms):
    used = {folder: set() for folder in rooms}
    for path in house.files(root, ("src", "jailer"), {".h", ".cc", ".c"}):
        folder = room_of(path, rooms)
        if folder is not None:
            used[folder].update(included_rooms(root, path, rooms, set()))
    for folder, (name, dependencies) in rooms.items():
        for dependency in dependencies:
            if dependency not in used[folder]:
                yield f"{folder}: depends on {dependency}, of which no file of {name} includes a header"


def check_include(root, rooms, where, path, room, bracket, included):
    name, dependencies = room
    for pattern, allowed, what in CONFINED:
        if re.fullmatch(pattern, included) and not any(path.as_posix().startswith(place) for place in allowed):
            yield f"{where}: <{included}>: {what} may be known in {', '.join(allowed)} only"
    if bracket != '"':
        return
    common = not ARCHITECTURES & set(path.parts) and not path.stem.endswith("_test") and path.name != ARCHITECTURE_DOOR
    if common and ARCHITECTURES & set(Path(included).parts):
        yield f'{where}: "{included}": of one architecture; common sources get it through their room\'s arch.h'
    if (root / "tests" / included).is_file():
        if not path.stem.endswith("_test"):
            yield f'{where}: "{included}": only unit tests may use what tests/ has for them'
        return
    other = room_of(Path("src") / included, rooms)
    if other is None and path.parts[0] == "jailer" and (root / "jailer" / included).is_file():
        return
    if other is None or not (root / "src" / included).is_file():
        yield f'{where}: "{included}" is no file of a room, spelled from src/ on'
    elif rooms[other][0] not in (name, *dependencies):
        yield f'{where}: "{included}": {name} does not depend on {rooms[other][0]}'


def check(root, rooms):
    return [*check_order(rooms), *check_needs(root, rooms), *check_includes(root, rooms)]


if __name__ == "__main__":
    house.finish(check(Path(argv[1]), house.read_rooms(argv[2])), "the house's arrows")
