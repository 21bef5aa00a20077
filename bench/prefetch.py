#!/usr/bin/python3
"""Working sets that are read ahead of a Linux guest: how long it takes to touch 64 MiB after a restore.

  prefetch.py [--rounds N] [--check]

Measures the monitor that MAYFLY_PROGRAM names, or --program. A guest (the small kernel, 1 processor,
bench/prefetch_guest.c as its first process) fills memory (--fill) and is saved to a disk. Then it goes on from there, in
turns

  plain     its memory is the mapped file, and nothing else is done
  prefetch  the same with the working set that was recorded in a first run (`working_set_path`)
  warm      plain, with all of the memory file in the page cache: what prefetch could reach at best

the first two with nothing of the snapshot in the page cache, and touches 64 MiB as it is told to on its serial port:

  scattered in stretches of one to six pages all over the memory, a third of the pages for writing
  ordered   one after the other, for reading: what the kernel's own read-ahead is made for

Every page's contents are compared with what was written to it. `call` is the time of PUT /snapshot/load, `all` from the
begin of that call to the guest's answer, `guest` what touching took by the guest's clock; `minor` and `major` page faults
and `cpu`, without the time in the guest, are those of the monitor's process meanwhile, `reads` what the disks were asked
for. Figures are medians, and so are the ratios, of `all` in each round: the whole way's, so that nothing is won by reading
before the call is answered. What the faults lose to the disk is what the time is longer than a warm one.

All this is done on the host, where it has hardware virtualization. Elsewhere it is done in a machine that QEMU emulates
(the testbed's, of one processor), whose clock counts 2 ns an instruction while the processor works, and real time while it
waits for its disk, which is a file of the host's: so a processor that is emulated slowly does not make the disk look fast.
What the processor has to do for a page, with prefetch and without, weighs more there than on most hardware.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "testbed"))

import testbed  # noqa: E402  (found through the line above)

import newc  # noqa: E402  (found through testbed)
import recipe  # noqa: E402
import small_kernel  # noqa: E402

# One emulated processor thread, whose clock counts instructions while it works, and real time while it waits for the disk.
ACCEL = "tcg,thread=single"
ICOUNT = ("-icount", "shift=1,sleep=on")
PATIENCE = 5  # the host may be busy, and the machine's clock is not its
OTHER_MIB = 96  # of the guest, which it does not fill
TOUCHED_MIB = 64
WAYS = ("plain", "prefetch", "warm")
PATTERNS = {"s": "scattered", "o": "ordered"}
FIELDS = ("call", "all", "guest", "minor", "major", "cpu", "reads")  # as prefetch_host.c says them
MILLISECONDS = ("call", "all", "guest", "cpu")
# What is promised of the pattern that a guest's working set has.
CHECKED = "s"
RATIO_LIMIT = 0.5


def compiled(name):
    """The program bench/NAME.c, static, compiled once."""
    source = ROOT / "bench" / f"{name}.c"

    def build(folder):
        recipe.need_tools("cc=gcc")
        recipe.run(["cc", "-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-o", folder / name, source])

    return recipe.cached(name.replace("_", "-"), recipe.digest(source), build) / name


def guest_initramfs():
    program = compiled("prefetch_guest")

    def write(folder):
        with open(folder / "initramfs.cpio", "wb") as out:
            archive = newc.Archive(out)
            archive.folder("dev")
            archive.character_device("dev/console", 5, 1)
            archive.file("init", program, 0o755)
            archive.finish()

    return recipe.cached("initramfs-prefetch", recipe.digest(program, Path(__file__)), write) / "initramfs.cpio"


def measure(options, tier, home):
    """What prefetch_host.c says, of files in `home` or on a disk whose image lies there."""
    words = f"quiet reboot=k panic=-1 console=ttyS0 FILL_MIB={options.fill} MIB={TOUCHED_MIB}"
    disk, qemu, place = home / "disk.raw", (), str(home)
    if tier.name == "qemu":
        recipe.need_tools("mke2fs=e2fsprogs")
        with open(disk, "wb") as out:
            out.truncate((2 * options.fill + 512) << 20)
        recipe.run(["mke2fs", "-q", "-F", "-t", "ext4", disk])
        place = "/dev/vdb"
        qemu = (*ICOUNT, "-drive", f"file={disk},format=raw,if=none,id=files,cache={options.cache}",
                "-device", "virtio-blk-pci,drive=files")
    command = [compiled("prefetch_host"), str(options.rounds), place, Path(options.program).resolve(),
               small_kernel.build() / "vmlinux", guest_initramfs(), words, str(options.fill + OTHER_MIB)]
    case = testbed.Case("prefetch", command, timeout=300)
    return testbed.run_cases([case], testbed.Options(parallel=1, accel=ACCEL, qemu=qemu, heartbeat=False,
                                                     patience=PATIENCE), tier)["prefetch"]


def parse(text):
    """{(way, letter): [figures of each round]}"""
    results = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 + len(FIELDS) and words[0] == "load":
            _, way, letter, _, *values = words
            figures = dict(zip(FIELDS, map(int, values)))
            for field in MILLISECONDS:
                figures[field] /= 1e6
            results.setdefault((way, letter), []).append(figures)
    return results


def ratio(results, letter):
    """Of the whole time, with prefetch to without."""
    pairs = zip(results["prefetch", letter], results["plain", letter])
    return statistics.median(prefetch["all"] / plain["all"] for prefetch, plain in pairs)


def lost_ratio(results, letter):
    """Of the time that is lost because the memory is not in the page cache."""
    turns = zip(*(results[way, letter] for way in ("prefetch", "plain", "warm")))
    return statistics.median((prefetch["all"] - warm["all"]) / max(plain["all"] - warm["all"], 1e-9)
                             for prefetch, plain, warm in turns)


def print_figures(results):
    print(f"{'':22}" + "".join(f"{field + (' ms' if field in MILLISECONDS else ''):>11}" for field in FIELDS))
    for letter, name in PATTERNS.items():
        for way in WAYS:
            medians = (statistics.median(each[field] for each in results[way, letter]) for field in FIELDS)
            print(f"{name + ' ' + way:22}" + "".join(f"{value:11.1f}" for value in medians))
        print(f"{name}: prefetch/plain {ratio(results, letter):.2f}, of what they lose to the disk {lost_ratio(results, letter):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("MAYFLY_PROGRAM"), help="the monitor")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default 5)")
    parser.add_argument("--fill", type=int, default=160, metavar="MIB", help="what the guest fills (default 160)")
    parser.add_argument("--directory", default="/var/tmp",
                        help="where the files lie, or the image of the emulated machine's disk: on a disk (default: /var/tmp)")
    parser.add_argument("--cache", default="none", choices=("none", "writeback"),
                        help="the emulated disk reads from the host's (none, the default), or from its page cache")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep there what prefetch_host.c said: every single result")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where prefetch leaves more than {RATIO_LIMIT} of what the {PATTERNS[CHECKED]} pages lose to "
                             "the disk")
    options = parser.parse_args()
    if not options.program:
        parser.error("which monitor? --program, or MAYFLY_PROGRAM")
    try:
        with tempfile.TemporaryDirectory(prefix="mayfly-prefetch-", dir=options.directory) as home:
            done = measure(options, testbed.detect_tier(), Path(home))
    except (testbed.TestbedError, recipe.RecipeError, OSError, subprocess.SubprocessError) as problem:
        testbed.say(f"error: {problem}")
        return 1
    if options.keep:
        options.keep.write_text(done.stdout)
    results = parse(done.stdout)
    if done.describe() != "exit 0" or any((way, letter) not in results for way in WAYS for letter in PATTERNS):
        testbed.say(f"error: not all was measured ({done.describe()}):\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
        return 1
    print_figures(results)
    if options.check and lost_ratio(results, CHECKED) > RATIO_LIMIT:
        print(f"MISSED: {PATTERNS[CHECKED]}: {lost_ratio(results, CHECKED):.2f} of what is lost without, promised: {RATIO_LIMIT}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
