#!/usr/bin/python3
"""Instruction time from the start of a monitor to its guest's first process, counted in emulation.

  boot.py [NAME=COMMAND ...] [--runs N] [--check]

Without arguments it measures mayfly, the binary that MAYFLY_PROGRAM names. Each COMMAND is a monitor's command line; in it {kernel}, {initrd}, {cmdline} and {memory_mib} are replaced. A name
without a command, "mayfly=BINARY", stands for mayfly's own way to be called. Words that name a file are taken along;
{config:FILE} is replaced by the path of FILE's copy in which the same names have been replaced.

QEMU counts the instructions of a whole emulated machine, host kernel, monitor and guest together, and its clock
advances by 2 ns each. On one guest kernel the median repeats within about 2 % on any machine, so that it can be
compared across days and hosts; it is no forecast of wall time. Time in which the machine only waits counts too. What
differs from run to run is mostly where the monitor's memory happens to lie (--fixed-layout: see there).
Beginning: the monitor's exec. End: HELLO, which the guest's first process writes to /dev/kmsg, on the monitor's
standard output.
"""

import argparse
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "testbed"))

import testbed  # noqa: E402  (found through the line above)

import initramfs  # noqa: E402  (found through testbed)
import small_kernel  # noqa: E402

MEMORY_MIB = 256
LIMIT_MS = 115  # what is promised, as the median
CMDLINE = "quiet reboot=k panic=-1 console=ttyS0"
MAYFLY = "run --kernel {kernel} --initrd {initrd} --cpus 1 --memory {memory_mib}M --cmdline {cmdline}"
# One emulated processor thread, its clock driven by instructions, never waiting for the real one.
ACCEL = "tcg,thread=single"
ICOUNT = ("-icount", "shift=1,sleep=off")


def words(template, values, inputs):
    """The command as testbed's cases want it: a Path for each word that names a file."""
    command = []
    for word in shlex.split(template):
        config = re.fullmatch(r"\{config:(.+)\}", word)
        if config:
            name = Path(config[1]).name
            # {kernel} and {initrd} may stand inside the text: there they become paths where the case runs.
            inputs[name] = [values.get(part[1:-1], part) if part[:1] == "{" else part
                            for part in re.split(r"(\{(?:kernel|initrd|cmdline|memory_mib)\})", Path(config[1]).read_text())]
            command.append(name)
        elif word[:1] == "{" and word[1:-1] in values:
            command.append(values[word[1:-1]])
        else:
            for key, value in values.items():
                if not isinstance(value, Path):
                    word = word.replace(f"{{{key}}}", value)
            command.append(Path(word).resolve() if Path(word).is_file() else word)
    return command


def make_cases(monitors, runs, kernel):
    values = {"kernel": kernel, "initrd": initramfs.build("boot-mark"), "cmdline": CMDLINE,
              "memory_mib": str(MEMORY_MIB)}
    cases = []
    for index in range(runs):
        for name, template in monitors.items():
            inputs = {}
            command = words(template if " " in template else f"{shlex.quote(template)} {MAYFLY}", values, inputs)
            if not isinstance(command[0], Path):
                raise testbed.TestbedError(f"{name}: there is no program {command[0]}")
            # The limit is in instruction time, which passes many times slower than the real one.
            cases.append(testbed.Case(f"{name}.{index}", command, timeout=10, inputs=inputs,
                                      steps=[testbed.Step(b"HELLO", "note")]))
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("monitors", nargs="*", metavar="NAME=COMMAND")
    parser.add_argument("--runs", type=int, default=5, help="runs of each monitor (default 5)")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first monitor's median is over the limit of {LIMIT_MS} ms")
    parser.add_argument("--kernel", type=Path, help="a guest kernel instead of the small one's ELF")
    parser.add_argument("--fixed-layout", action="store_true",
                        help="no address randomisation around the monitor: for a small difference between two versions "
                             "of one monitor; between different monitors it would favour one by luck")
    parser.add_argument("--parallel", type=int, default=1,
                        help="emulated machines side by side (default 1; 0: one a core); the first run in each is some 5 ms "
                             "slower, as it is its kernel's first VM and reads the files for the first time")
    options = parser.parse_args()
    if not options.monitors and os.environ.get("MAYFLY_PROGRAM"):
        options.monitors = [f"mayfly={os.environ['MAYFLY_PROGRAM']}"]
    monitors = dict(pair.split("=", 1) for pair in options.monitors if "=" in pair)
    if not monitors or len(monitors) != len(options.monitors):
        parser.error("each monitor is NAME=COMMAND, with a name of its own; without any, MAYFLY_PROGRAM is needed")
    try:
        kernel = (options.kernel or small_kernel.build() / "vmlinux").resolve()
        cases = make_cases(monitors, options.runs, kernel)
        results = testbed.run_cases(
            cases, testbed.Options(parallel=options.parallel, accel=ACCEL, qemu=ICOUNT, heartbeat=False, attempts=6,
                                   cmdline="norandmaps" if options.fixed_layout else ""),
            testbed.Tier("qemu", "instructions are counted only in emulation"))
    except (testbed.TestbedError, testbed.recipe.RecipeError, OSError) as problem:
        testbed.say(f"error: {problem}")
        return 1
    medians, failed = print_figures(monitors, options.runs, results)
    over = options.check and medians.get(next(iter(monitors)), 0) > LIMIT_MS
    if over:
        print(f"OVER THE LIMIT: more than {LIMIT_MS} ms")
    return 1 if failed or over else 0


def print_figures(monitors, runs, results):
    """({monitor: median in ms}, whether a run came to nothing)."""
    medians, failed = {}, False
    print(f"instruction time, monitor's start to the guest's first process ({MEMORY_MIB} MiB, 1 processor)")
    for name in monitors:
        taken = [results[f"{name}.{index}"] for index in range(runs)]
        figures = [result.step_seconds[0] * 1e3 for result in taken if result.step_seconds]
        if figures:
            medians[name] = statistics.median(figures)
            print(f"  {name:20} median {medians[name]:7.1f} ms   "
                  f"runs: {' '.join(f'{figure:.1f}' for figure in figures)}")
        for result in taken:
            if not result.step_seconds:
                failed = True
                print(f"  {name}: no HELLO ({result.describe()}):\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}")
    return medians, failed


if __name__ == "__main__":
    sys.exit(main())
