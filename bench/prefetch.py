#!/usr/bin/python3
"""Working sets that are read ahead of a Linux guest: how long it takes to touch 64 MiB after a restore.

  prefetch.py [--rounds N] [--check]

Measures the monitor that MAYFLY_PROGRAM names, or --program. A guest (the small kernel, 1 processor,
bench/prefetch_guest.c as its first process) fills memory (--fill) and is saved to a disk. Then it goes on from there, in
turns

  plain     its memory is the mapped file, and nothing else is done
  prefetch  the same with the working set that was recorded in a first run (`working_set_path`)
  huge      the same, with what the set is dense in read into huge pages of the guest's own (`huge_pages`)
  warm      plain, with all of the memory file in the page cache

all but the last with nothing of the snapshot in the page cache, and touches 64 MiB as it is told to on its serial port:

  scattered in stretches of one to six pages all over the memory, a third of the pages for writing
  ordered   one after the other, for reading: what the kernel's own read-ahead is made for

Every page's contents are compared with what was written to it. Then the guest touches the very same once more, with all
of it there and mapped, and not a fault: that is `mapped`, the work itself. What is above it is the faults' time:

  faults = all - mapped,     faults' ratio = faults of prefetch, or of huge / faults of plain

`call` is the time of PUT /snapshot/load, and `all` that from the begin of the call to the guest's answer, so that nothing
is won by reading before the call is answered; `guest` is what touching took by the guest's clock. `minor` and `major` page
faults and `cpu`, without the time in the guest, are those of the monitor's process meanwhile, `reads` what the disks were
asked for, `private` the memory that is the monitor's alone at the end. Figures are medians; ratios are medians of those of
each round.

All this is done on the host, where it has hardware virtualization, with files in --directory. Elsewhere it is done in a
machine that QEMU emulates (the testbed's, of one processor), whose clock counts instructions, 2 ns each, and while nobody
has any to execute goes on to the next timer's time. Its disk is a modelled one, therefore (null_blk, in memory): each
request is done --disk-us after it was made, up to 64 of them at once, at whatever size. So figures repeat and do not
depend on this host, but they are of a host with one processor: what is read ahead takes the guest's own time, and nothing
but waiting can be done beside it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import linux_guest  # noqa: E402  (found through the line above)

import debian_kernel  # noqa: E402  (found through linux_guest)
import recipe  # noqa: E402
import small_kernel  # noqa: E402
import testbed  # noqa: E402

# One emulated processor thread, whose clock counts instructions.
ACCEL = "tcg,thread=single"
ICOUNT = ("-icount", "shift=1,sleep=off")
PATIENCE = 2  # the host may be busy, and the machine's clock is not its
# QEMU (7.2 and 10.0) that counts instructions may deliver an interrupt that KVM injects a second time, with interrupts
# off: its guest's guest then waits for a lock that it holds itself, for ever. A case is short.
ATTEMPTS = 8
OTHER_MIB = 96  # of the guest, which it does not fill
TOUCHED_MIB = 64
WAYS = ("plain", "prefetch", "huge", "warm")
PATTERNS = {"s": "scattered", "o": "ordered"}
FIELDS = ("call", "all", "guest", "mapped", "minor", "major", "cpu", "reads", "private")  # as prefetch_host.c says them
NANOSECONDS = ("call", "all", "guest", "mapped", "cpu")
# Of the faults' time, where one processor serves the guest and what is read ahead: less is to be had beside it alone,
# or in huge pages.
RATIO_LIMITS = {("prefetch", "s"): 0.75, ("prefetch", "o"): 1.1, ("huge", "s"): 0.5, ("huge", "o"): 0.5}
# What prefetch may take of private memory beyond what the guest whose run was recorded took.
PRIVATE_LIMIT_KIB = 1024


def disk_words(options):
    """What prefetch_host.c makes a disk of."""
    modules = debian_kernel.build() / "modules"
    recipe.need_tools("mke2fs=e2fsprogs")
    parameters = {"null-blk": f"memory_backed=1 bs=4096 gb=1 irqmode=2 completion_nsec={options.disk_us * 1000}"}
    words = [Path(recipe.shutil.which("mke2fs", path=os.environ["PATH"] + ":/usr/sbin:/sbin"))]
    for name in debian_kernel.module_closure(modules, ("null-blk",)):
        words += [modules / f"{name}.ko", parameters.get(name, "")]
    return words


def measure(options, tier, home):
    """What prefetch_host.c says in each round, of files in `home` or on the emulated machine's modelled disk."""
    words = f"quiet reboot=k panic=-1 console=ttyS0 FILL_MIB={options.fill} MIB={TOUCHED_MIB}"
    emulated = tier.name == "qemu"
    host = linux_guest.compiled("prefetch_host")
    rest = ["/dev/nullb0" if emulated else str(home), Path(options.program).resolve(), small_kernel.build() / "vmlinux",
            linux_guest.initramfs("prefetch"), words, str(options.fill + OTHER_MIB),
            *(disk_words(options) if emulated else ())]
    cases = [testbed.Case(f"prefetch-{turn}-{PATTERNS[letter]}", [host, f"{turn}:{letter}", *rest], timeout=120)
             for turn in range(options.rounds) for letter in PATTERNS]
    # Where instructions are counted it does not matter what else the host does.
    how = testbed.Options(parallel=options.parallel if emulated else 1, accel=ACCEL, qemu=ICOUNT, patience=PATIENCE,
                          attempts=ATTEMPTS)
    return list(testbed.run_cases(cases, how, tier).values())


def parse(text):
    """{(way, letter): [figures of each round]}"""
    results = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 + len(FIELDS) and words[0] == "load":
            _, way, letter, *values = words
            figures = dict(zip(FIELDS, map(int, values)))
            for field in NANOSECONDS:
                figures[field] /= 1e6
            figures["faults"] = figures["all"] - figures["mapped"]
            results.setdefault((way, letter), []).append(figures)
    return results


def ratio(results, letter, field, way):
    pairs = zip(results[way, letter], results["plain", letter])
    return statistics.median(one[field] / max(plain[field], 1e-9) for one, plain in pairs)


def median(results, way, letter, field):
    return statistics.median(figures[field] for figures in results[way, letter])


def print_figures(results):
    fields = (*FIELDS[:4], "faults", *FIELDS[4:])
    units = {**{field: " ms" for field in (*NANOSECONDS, "faults")}, "private": " KiB"}
    print(f"{'':20}" + "".join(f"{field + units.get(field, ''):>12}" for field in fields))
    for letter, name in PATTERNS.items():
        for way in ("record", *WAYS):
            print(f"{name + ' ' + way:20}" + "".join(f"{median(results, way, letter, field):12.1f}" for field in fields))
        for way in WAYS[1:]:
            print(f"{name}: {way}/plain {ratio(results, letter, 'faults', way):.2f} of the faults' time, "
                  f"{ratio(results, letter, 'all', way):.2f} of all")


def check(results):
    """The limits that are missed, as lines."""
    for (way, letter), limit in RATIO_LIMITS.items():
        if (found := ratio(results, letter, "faults", way)) > limit:
            yield f"{PATTERNS[letter]}: {way} takes {found:.2f} of the faults' time, promised: {limit}"
    for letter, name in PATTERNS.items():
        more = median(results, "prefetch", letter, "private") - median(results, "record", letter, "private")
        if more > PRIVATE_LIMIT_KIB:
            yield f"{name}: {more:.0f} KiB more of its own than without, promised: {PRIVATE_LIMIT_KIB}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("MAYFLY_PROGRAM"), help="the monitor")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default 3)")
    parser.add_argument("--parallel", type=int, default=0, metavar="N",
                        help="emulated machines at a time (default: one a processor)")
    parser.add_argument("--fill", type=int, default=160, metavar="MIB", help="what the guest fills (default 160)")
    parser.add_argument("--directory", default="/var/tmp",
                        help="where the files lie, on a disk, where nothing is emulated (default: /var/tmp)")
    parser.add_argument("--disk-us", type=int, default=100, metavar="US",
                        help="what a request takes of the emulated machine's disk (default 100, as of a fast disk)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep there what prefetch_host.c said: every single result")
    parser.add_argument("--check", action="store_true",
                        help="exit with 1 where more of the faults' time is left than "
                             + ", ".join(f"{limit} ({way}, {PATTERNS[letter]})" for (way, letter), limit in RATIO_LIMITS.items())
                             + f", or prefetch takes more than {PRIVATE_LIMIT_KIB} KiB of memory of its own above that of the run that "
                             "was recorded")
    options = parser.parse_args()
    if not options.program:
        parser.error("which monitor? --program, or MAYFLY_PROGRAM")
    try:
        with tempfile.TemporaryDirectory(prefix="mayfly-prefetch-", dir=options.directory) as home:
            rounds = measure(options, testbed.detect_tier(), Path(home))
    except (testbed.TestbedError, recipe.RecipeError, OSError, subprocess.SubprocessError) as problem:
        testbed.say(f"error: {problem}")
        return 1
    if options.keep:
        options.keep.write_text("".join(done.stdout for done in rounds))
    results = parse("".join(done.stdout for done in rounds))
    wanted = [(way, letter) for way in ("record", *WAYS) for letter in PATTERNS]
    if any(linux_guest.missing(done, results, wanted) for done in rounds):
        return 1
    print_figures(results)
    missed = list(check(results)) if options.check else []
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
