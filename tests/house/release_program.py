#!/usr/bin/env python3
"""Checks a program that ships: release_program.py hardening|size|empty_chroot PROGRAM [OPTION...].

hardening     a position-independent, fully static ELF file; read-only relocations bound before main; no stack or
              segment that is writable and executable; compiled with stack protection, FORTIFY and indirect-branch
              landing pads
size          at most so many KiB stripped (4,096)
empty_chroot  runs where there is no other file
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import house

MAXIMUM_KIB = 4096
OWN_SYMBOL = "6mayfly"  # the namespace, as it is mangled


def output(*command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                          env=dict(os.environ, LC_ALL="C"))
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(str(word) for word in command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def hardening(program, fortifies=True):
    header = output("readelf", "--wide", "--file-header", program)
    segments = output("readelf", "--wide", "--segments", program)
    dynamic = output("readelf", "--wide", "--dynamic", program)

    if not re.search(r"Type:\s+DYN", header):
        yield "not position independent: the ELF type is not DYN"
    if re.search(r"^\s+INTERP\b", segments, re.M):
        yield "not static: it asks for a dynamic loader"
    for needed in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        yield f"not static: it needs {needed}"
    if not re.search(r"^\s+GNU_RELRO\b", segments, re.M):
        yield "no RELRO segment: relocated data stays writable"
    if not re.search(r"\(FLAGS_1\).*\bNOW\b|\(BIND_NOW\)|\(FLAGS\).*BIND_NOW", dynamic):
        yield "not bound at start (no BIND_NOW): the global offset table stays writable"
    flags = re.findall(r"^\s+(\w+)\s+(?:0x\w+\s+){5}([RWE ]+?)\s+0x", segments, re.M)
    if "GNU_STACK" not in dict(flags):
        yield "nothing says that the stack is not executable"
    for name, flag in flags:
        if "W" in flag and "E" in flag:
            yield f"a segment ({name}) is both writable and executable"
    if re.search(r"\bTEXTREL\b", dynamic):
        yield "text relocations: code is written to at start"
    yield from own_code(program, fortifies)


def own_code(program, fortifies):
    """What the compiler was told shows in our own functions only: Debian's static libc is hardened in any case."""
    calls, main_code = set(), ""
    for function in output("objdump", "--disassemble", "--no-show-raw-insn", program).split("\n\n"):
        name = re.match(r"[0-9a-f]+ <(.*)>:", function)
        if name and (name[1] == "main" or OWN_SYMBOL in name[1]):
            calls.update(re.findall(r"\b(?:call|jmp)\s+[0-9a-f]+ <(\w+)", function))
            if name[1] == "main":
                main_code = function
    if not main_code:
        yield "main cannot be looked at: run this before stripping"
    elif "endbr64" not in main_code:
        yield "no landing pad at main: compiled without -fcf-protection"
    if "__stack_chk_fail" not in calls:
        yield "no stack protector: no function of ours checks its stack"
    if fortifies and not any(name.startswith("__") and name.endswith("_chk") for name in calls):
        yield "no FORTIFY: no function of ours calls a checked variant of a library function"
    # The note that turns CET on for a whole process is the linker's: it drops it where one object, such as one of
    # Debian's static libraries, lacks it. So it is told, not asked for.
    feature = re.search(r"x86 feature: (.*)", output("readelf", "--wide", "--notes", program))
    print(f"CET note of the whole program: {feature[1] if feature else 'none'}")


def size(program, maximum):
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "stripped"
        output("strip", "--strip-all", "-o", stripped, program)
        length = stripped.stat().st_size
    print(f"stripped: {length} bytes ({length / 1048576:.2f} MiB) of at most {maximum}")
    if length > maximum:
        yield f"{length} bytes stripped are more than {maximum}"


def empty_chroot(program):
    as_root = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    if as_root and subprocess.run([*as_root, "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        print("SKIP: neither root nor allowed to make a user namespace, so there is no chroot to run it in")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(program, Path(folder) / "program")
        done = subprocess.run([*as_root, "chroot", folder, "/program", "--version"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace").strip()
    print(said)
    if done.returncode != 0 or not said:
        yield f"--version in an empty chroot ended with {done.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checks = {"hardening": lambda: hardening(options.program, not options.nothing_to_fortify),
              "empty_chroot": lambda: empty_chroot(options.program),
              "size": lambda: size(options.program, options.maximum_kib * 1024)}
    parser.add_argument("check", choices=checks)
    parser.add_argument("program", type=Path)
    parser.add_argument("--maximum-kib", type=int, default=MAXIMUM_KIB)
    parser.add_argument("--nothing-to-fortify", action="store_true",
                        help="no function of it gives the C library a buffer whose length is known at run time only")
    options = parser.parse_args()
    house.finish(list(checks[options.check]()), options.check)


if __name__ == "__main__":
    main()
