#!/usr/bin/env python3
"""Runs clang-tidy over source files side by side: tidy.py BUILD JOBS FILE...

BUILD holds compile_commands.json. A file that passed is not looked at again until its text, that of anything it
includes, its flags, .clang-tidy or the tool itself changes. Files that CMake does not build are left out.
"""

import concurrent.futures
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path


# What does not hold for unit tests. The path sensitive checks see little but GoogleTest's macros there and take most of
# the time; fixtures and fakes are never copied; a table of cases may be a plain array.
NOT_FOR_TESTS = ("clang-analyzer-*", "cppcoreguidelines-special-member-functions", "google-build-using-namespace",
                 "modernize-avoid-c-arrays")


def output(command, folder):
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)


def commands(build):
    """{file: (words that compile it, folder)}"""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return {str(Path(entry["file"]).resolve()): (shlex.split(entry["command"]), entry["directory"])
            for entry in entries}


def fingerprint(words, folder, tool):
    """A hash of all that decides what clang-tidy says, or None where the file does not even preprocess."""
    if Path(words[0]).name == "ccache":
        words = words[1:]
    out = words.index("-o")
    # -C: comments count, for they silence checks.
    preprocess = [word for word in words[:out] + words[out + 2:] if word not in ("-c", "-MD")]
    done = output([*preprocess, "-E", "-C"], folder)
    if done.returncode != 0:
        return None
    return hashlib.sha256(done.stdout + tool + " ".join(preprocess).encode()).hexdigest()


def check(build, passed, path, words, folder, tool):
    """(path, what clang-tidy says, or None where it is content)."""
    mark = fingerprint(words, folder, tool)
    if mark is not None and (passed / mark).exists():
        return path, None
    left_out = NOT_FOR_TESTS if path.endswith("_test.cc") else ()
    checks = ["--checks=" + ",".join("-" + name for name in left_out)] if left_out else []
    done = output(["clang-tidy", "-p", str(build), "--quiet", *checks, path], None)
    if done.returncode == 0:
        if mark is not None:
            (passed / mark).touch()
        return path, None
    return path, (done.stdout + (b"" if done.stdout else done.stderr)).decode(errors="replace")


def main():
    build, jobs, files = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    known = commands(build)
    rules = Path(".clang-tidy").read_bytes() + Path(__file__).read_bytes()
    tool = output(["clang-tidy", "--version"], None).stdout + rules
    passed = build / "tidy-passed"
    passed.mkdir(exist_ok=True)
    todo = [(str(Path(name).resolve()), name) for name in files if str(Path(name).resolve()) in known]
    failed = done = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(check, build, passed, name, *known[path], tool) for path, name in todo]
        for future in concurrent.futures.as_completed(running):
            name, said = future.result()
            done += 1
            if said is not None:
                failed += 1
                print(said, end="")
            print(f"[{done}/{len(todo)}] {name}{': FAILED' if said is not None else ''}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
