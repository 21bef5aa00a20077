#!/usr/bin/python3
"""The block and the network device alone, without a guest: reads beside fio's, frames a second, system calls.

  devices.py [--rounds N] [--seconds S] [--folder DIR] [--check]

bench/device_load.cc, the program that MAYFLY_DEVICE_LOAD names, plays a driver in the devices' own process, all on one
thread: no KVM, no exits, no event loop. All sides are on one core, in turns, because a shared machine's speed drifts,
and at real-time priority where the host lets them. Compare the ratios.

  reads     random, of 4 KiB, from a file of 256 MiB in memory, 32 at a time. Beside our engine Sync stands fio's psync,
            beside Async its io_uring, with as many requests at a time, handed over 32 at once and each answer taken
            when it is there; once as it is, once forced to use the kernel's threads (fio's force_async): the better
            of the two counts. fio takes no time of single requests (gtod_reduce).
  frames    of 64 bytes, out of the driver (tx) and to it (rx), in batches of 64; the other end is memory
  tap       the same, sent into a tap: by the device; by nothing but a writev() each; by an io_uring, 64 at a time
  calls     system calls, counted by strace in a run of their own: what a longer run has beyond a shorter one
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import priority
import private_network

BLOCK, BLOCKS = 4096, 65536
DEPTH = 32
# What is promised, as medians.
READS_LIMIT = 0.8  # of fio's
FRAMES_LIMIT = 1.5e6
CALLS_LIMIT = 1  # a batch, handed over by the engine Async
# Beside the engine's: waiting for the io_uring is the event loop's part.
WAIT = "poll"


def make_image(path):
    """Each block begins with its number: device_load looks at it."""
    with open(path, "wb") as image:
        for number in range(BLOCKS):
            image.write(struct.pack("<Q", number).ljust(BLOCK, b"\xa5"))


def load(program, core, *words, before=()):
    with priority.real_time():
        done = subprocess.run([*before, "taskset", "-c", str(core), program, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def fio(core, image, seconds, *words):
    with priority.real_time():
        done = subprocess.run(
            ["fio", "--name=reads", f"--filename={image}", "--rw=randread", f"--bs={BLOCK}", f"--size={BLOCK * BLOCKS}",
             "--time_based", f"--runtime={seconds}", f"--cpus_allowed={core}", "--thread", "--norandommap", "--readonly",
             "--invalidate=0", "--gtod_reduce=1", "--output-format=json", *words], stdout=subprocess.PIPE, check=True)
    # A warning may come before it.
    return json.loads(done.stdout[done.stdout.index(b"{"):])["jobs"][0]["read"]["iops"]


class Sides:
    """Rates and CPU times of what takes turns."""

    def __init__(self):
        self.rates, self.cpu = {}, {}

    def add(self, name, rate):
        self.rates.setdefault(name, []).append(rate)

    def add_load(self, name, run):
        self.add(name, run["operations"] / run["seconds"])
        self.cpu.setdefault(name, []).append(tuple(run[key] / run["operations"] * 1e9
                                                   for key in ("user_seconds", "system_seconds")))

    def median(self, name):
        return statistics.median(self.rates[name])

    def show(self, name):
        text = f"{name:28} {self.median(name) / 1e3:9.0f} K/s (best {max(self.rates[name]) / 1e3:.0f})"
        if name in self.cpu:
            user, system = (statistics.median(part) for part in zip(*self.cpu[name]))
            text += f"   CPU a piece: {user:.0f} ns in the program, {system:.0f} ns in the kernel"
        print(text)


def measure(options, program, core, image, taps):
    sides = Sides()
    seconds, words = options.seconds, f"{options.seconds}s"
    uring = ["--ioengine=io_uring", f"--iodepth={DEPTH}", f"--iodepth_batch={DEPTH}", "--iodepth_batch_complete_min=1",
             f"--iodepth_batch_complete_max={DEPTH}", "--registerfiles"]
    for _ in range(options.rounds):
        sides.add_load("reads Sync", load(program, core, "block", image, "Sync", str(DEPTH), words))
        sides.add("reads fio psync", fio(core, image, seconds, "--ioengine=psync"))
        sides.add_load("reads Async", load(program, core, "block", image, "Async", str(DEPTH), words))
        sides.add("reads fio io_uring", fio(core, image, seconds, *uring))
        sides.add("reads fio io_uring, forced", fio(core, image, seconds, *uring, "--force_async=1"))
        for way in ("tx", "rx"):
            sides.add_load(f"frames {way}", load(program, core, "net", way, words))
        for way, tap in taps.items():
            sides.add_load(f"tap tx, {way}", load(program, core, "tap", tap, way, words))
    for name in sides.rates:
        sides.show(name)
    return sides


def count_calls(program, core, folder, *words):
    """({system call: how many more the longer run has}, operations and batches that it has more)."""
    runs = []
    for operations in (20000, 60000):
        summary = folder / "calls"
        run = load(program, core, *words, str(operations),
                   before=("strace", "-f", "-c", "-U", "calls,name", "-o", summary))
        rows = [line.split() for line in summary.read_text().splitlines()]
        runs.append((run, {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit()}))
    (short, fewer), (long, more) = runs
    calls = {name: more[name] - fewer.get(name, 0) for name in more if name != "total"}
    return ({name: count for name, count in calls.items() if count > 0},
            long["operations"] - short["operations"], long["batches"] - short["batches"])


def show_calls(program, core, folder, image, taps):
    """System calls of the engine Async a batch; those of its waits are shown and not counted."""
    async_calls = 0
    for title, words in (("reads Sync", ("block", image, "Sync", str(DEPTH))),
                         ("reads Async", ("block", image, "Async", str(DEPTH))),
                         ("frames tx", ("net", "tx")), ("frames rx", ("net", "rx")),
                         *((f"tap tx, {way}", ("tap", tap, way)) for way, tap in taps.items() if way == "device")):
        calls, operations, batches = count_calls(program, core, folder, *words)
        each = lambda count: f"{count / operations:.3f} a piece, {count / batches:.2f} a batch"
        print(f"calls: {title:21} " + ("; ".join(f"{name} {each(count)}" for name, count in sorted(calls.items()))
                                       or "none") + f" (batches of {operations / batches:.0f})")
        if title == "reads Async":
            async_calls = sum(count for name, count in calls.items() if name != WAIT) / batches
    return async_calls


def check(sides, async_calls):
    """1 where something misses its limit, with a line for each."""
    peers = {"reads Sync": sides.median("reads fio psync"),
             "reads Async": max(sides.median("reads fio io_uring"), sides.median("reads fio io_uring, forced"))}
    missed = []
    for name, peer in peers.items():
        ratio = sides.median(name) / peer
        print(f"{name}: {ratio:.2f} of fio's")
        if ratio < READS_LIMIT:
            missed.append(f"{name}: less than {READS_LIMIT} of fio's")
    missed += [f"{name}: less than {FRAMES_LIMIT / 1e6} M/s" for name in ("frames tx", "frames rx")
               if sides.median(name) < FRAMES_LIMIT]
    if async_calls is not None and async_calls > CALLS_LIMIT:
        missed.append(f"reads Async: {async_calls:.2f} system calls a batch, more than {CALLS_LIMIT}")
    for text in missed:
        print(f"OVER THE LIMIT: {text}")
    return 1 if missed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each side has its turn (default 7)")
    parser.add_argument("--seconds", type=int, default=1, help="how long a turn is (default 1)")
    parser.add_argument("--folder", type=Path, default="/dev/shm",
                        help="where the file lies (default /dev/shm, a tmpfs); elsewhere it is read from the page cache")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where reads are below {READS_LIMIT} x fio's, frames below "
                             f"{FRAMES_LIMIT / 1e6} M/s, or Async takes more than {CALLS_LIMIT} system call a batch")
    options = parser.parse_args()
    program = os.environ.get("MAYFLY_DEVICE_LOAD")
    if not program:
        parser.error("MAYFLY_DEVICE_LOAD is needed: tools/devtool bench devices sets it")
    core = max(os.sched_getaffinity(0))
    taps = {}
    try:
        private_network.enter()
        for number, way in enumerate(("device", "write", "uring")):
            private_network.make_tap(f"tap{number}")
            taps[way] = f"tap{number}"
    except OSError as problem:
        print(f"no figures of a tap: {problem}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        image = str(Path(name) / "image")
        make_image(image)
        sides = measure(options, program, core, image, taps)
        async_calls = show_calls(program, core, Path(name), image, taps)
    result = check(sides, async_calls)
    return result if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
