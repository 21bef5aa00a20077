#!/usr/bin/python3
"""Start-up beside the floor under every monitor: time to a guest's first output, whole life, memory, binary size.

  start.py [NAME=BINARY ...] [--runs N] [--check]

Without arguments it measures mayfly, the binary that MAYFLY_PROGRAM names; each further BINARY must take the dialect's
--no-api and --config-file. The guests are bare metal: what is timed is the monitor. The floor is bench/kvm_floor.c, the
fewest KVM calls that reach a guest's first port write. All take turns in one run, because a shared machine's speed
drifts: compare the ratios, not the times.

  output    process start to the guest's first byte on standard output, wall time
  cpu       CPU time of all threads at that moment
  life      process start, guest's power-off or reset, process gone
  memory    private memory beyond the guest's own while it runs (smaps), and the whole proportional set size of it
  binary    size of the program
"""

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUEST_MIB = 128
LIMIT = 30  # seconds, after which a start has failed
# The steady state is what counts: a quarter of a second after the start, so that a guest's boot is over, a monitor may
# give back what only its start needed.
TIDY_SECONDS = 0.35
# What is promised, as medians.
OUTPUT_LIMIT = 1.5  # times the floor
PRIVATE_LIMIT_KIB = 1024
BINARY_LIMIT_KIB = 3584


def build(folder):
    """The guests and the floor, as files in `folder`."""
    for guest in ("spin", "reset_i8042"):
        source, elf = ROOT / "tests/support/guests" / f"{guest}.S", folder / f"{guest}.elf"
        subprocess.run(["cc", "-nostdlib", "-static", "-no-pie", "-Wl,-N", "-Wl,-Ttext=0x1000000",
                        "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments", source, "-o", elf],
                       check=True)
    subprocess.run(["cc", "-O2", "-static", ROOT / "bench/kvm_floor.c", "-o", folder / "kvm_floor"], check=True)


def configuration(folder, guest):
    path = folder / f"{guest}.json"
    path.write_text(json.dumps({
        "boot-source": {"kernel_image_path": str(folder / f"{guest}.elf"),
                        "boot_args": "console=ttyS0 reboot=k panic=1"},
        "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": GUEST_MIB},
        "logger": {"level": "Error", "log_path": "/dev/null"}}))
    return ["--no-api", "--config-file", str(path)]


def cpu_ms(pid):
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            pass  # a thread that has just ended
    return total / 1e6


def overhead_kib(pid):
    """(private, proportional) KiB of all mappings but guest memory, which is the one of at least half its size."""
    private = proportional = 0
    counted = True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if mapping:
            counted = int(mapping[2], 16) - int(mapping[1], 16) < GUEST_MIB << 19
        elif counted:
            key, value = line.split()[:2]
            if key in ("Private_Dirty:", "Private_Clean:"):
                private += int(value)
            elif key == "Pss:":
                proportional += int(value)
    return private, proportional


def start(command):
    return time.perf_counter(), subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                 stderr=subprocess.DEVNULL)


def await_output(begin, process):
    ready = select.select([process.stdout], [], [], LIMIT)[0]
    now = time.perf_counter()
    if not ready or not os.read(process.stdout.fileno(), 1):
        raise RuntimeError(f"{process.args[0]}: no output from the guest")
    return (now - begin) * 1e3


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def measure(name, binary, folder, figures):
    add = lambda figure, value: figures.setdefault(figure, {}).setdefault(name, []).append(value)
    begin, process = start([binary, *configuration(folder, "spin")])
    add("output ms", await_output(begin, process))
    add("cpu ms", cpu_ms(process.pid))
    time.sleep(TIDY_SECONDS)
    private, proportional = overhead_kib(process.pid)
    add("memory private KiB", private)
    add("memory pss KiB", proportional)
    end(process)
    begin, process = start([binary, *configuration(folder, "reset_i8042")])
    code = process.wait(LIMIT)
    add("life ms", (time.perf_counter() - begin) * 1e3)
    process.stdout.close()
    if code != 0:
        raise RuntimeError(f"{binary}: exit code {code} from a guest that resets")


def measure_floor(folder, figures):
    add = lambda figure, value: figures.setdefault(figure, {}).setdefault("floor", []).append(value)
    begin, process = start([folder / "kvm_floor"])
    add("output ms", await_output(begin, process))
    process.wait(LIMIT)
    add("life ms", (time.perf_counter() - begin) * 1e3)
    process.stdout.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("monitors", nargs="*", metavar="NAME=BINARY")
    parser.add_argument("--runs", type=int, default=30, help="runs of each (default 30), after one that is not counted")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first monitor is over a limit: output {OUTPUT_LIMIT} x floor, "
                             f"{PRIVATE_LIMIT_KIB} KiB private memory, {BINARY_LIMIT_KIB} KiB of program")
    options = parser.parse_args()
    if not options.monitors and os.environ.get("MAYFLY_PROGRAM"):
        options.monitors = [f"mayfly={os.environ['MAYFLY_PROGRAM']}"]
    monitors = dict(pair.split("=", 1) for pair in options.monitors if "=" in pair)
    if not monitors or len(monitors) != len(options.monitors) or "floor" in monitors:
        parser.error("each monitor is NAME=BINARY, with a name of its own; without any, MAYFLY_PROGRAM is needed")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        parser.error("/dev/kvm is not there or not accessible to this user")

    figures = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        build(folder)
        for run in range(options.runs + 1):
            counted = figures if run else {}
            measure_floor(folder, counted)
            for monitor, binary in monitors.items():
                measure(monitor, binary, folder, counted)

    first = next(iter(monitors))
    for figure, values in figures.items():
        medians = {name: statistics.median(taken) for name, taken in values.items()}
        print(f"{figure:20}" + "".join(f"  {name} {medians[name]:8.2f} (min {min(values[name]):.2f})" for name in medians)
              + "".join(f"  {first}/{name} {medians[first] / medians[name]:.2f} "
                        f"(min/min {min(values[first]) / min(values[name]):.2f})"
                        for name in medians if name != first))
    for monitor, binary in monitors.items():
        print(f"{'binary KiB':20}  {monitor} {os.path.getsize(binary) / 1024:8.0f}")
    return check(figures, first, monitors[first]) if options.check else 0


def check(figures, name, binary):
    """1 where the monitor is over a limit, with a line for each."""
    median = lambda figure, of: statistics.median(figures[figure][of])
    over = [text for is_over, text in (
        (median("output ms", name) > OUTPUT_LIMIT * median("output ms", "floor"), f"output: more than {OUTPUT_LIMIT} x floor"),
        (median("memory private KiB", name) > PRIVATE_LIMIT_KIB, f"memory: more than {PRIVATE_LIMIT_KIB} KiB private"),
        (os.path.getsize(binary) > BINARY_LIMIT_KIB << 10, f"program: more than {BINARY_LIMIT_KIB} KiB"),
    ) if is_over]
    for text in over:
        print(f"OVER THE LIMIT: {text}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
