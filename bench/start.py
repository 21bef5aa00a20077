#!/usr/bin/python3
"""Start-up beside the floor under every monitor: time to a guest's first output, whole life, memory, binary size.

  start.py [NAME=BINARY ...] [--runs N] [--jailed] [--check]

Without arguments it measures mayfly, the binary that MAYFLY_PROGRAM names; each further BINARY must take the dialect's
--no-api and --config-file. The guests are bare metal: what is timed is the monitor. The floor is bench/kvm_floor.c, the
fewest KVM calls that reach a guest's first port write. All take turns in one run, because a shared machine's speed
drifts: compare the ratios, not the times.

  output    process start to the guest's first byte on standard output, wall time
  cpu       CPU time of all threads at that moment
  life      process start, guest's power-off or reset, process gone
  memory    private memory beyond the guest's own while it runs (smaps), and the whole proportional set size of it
  binary    size of the program, stripped

What devices add is measured apart: the first monitor without any, and with a disk (a file in memory) and a network
interface (a tap, in a network namespace of this benchmark's own) that its guest does not use; 5 starts a run of each,
in turns and, where the host allows that, at real-time priority. The figure is the difference of the medians.

With --jailed, as root, so is what a jail adds: the first monitor, stripped, bare and started by the jailer that
MAYFLY_JAILER names, with the folder of its jails in /var/tmp; the floor takes turns with both. The last figure is that
of a jail with two cgroups.
"""

import argparse
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import priority
import private_network

ROOT = Path(__file__).resolve().parents[1]
GUEST_MIB = 128
LIMIT = 30  # seconds, after which a start has failed
# The steady state is what counts: a quarter of a second after the start, so that a guest's boot is over, a monitor may
# give back what only its start needed.
TIDY_SECONDS = 0.35
# What is promised, as medians.
OUTPUT_LIMIT = 1.5  # times the floor
PRIVATE_LIMIT_KIB = 1024
BINARY_LIMIT_KIB = 4096
DEVICES_LIMIT_MS = 0.5  # to the first output
JAIL_LIMIT = 1.43  # times the floor: 3 ms where that takes 2.1
JAIL_USER = "64000"
JAIL_GROUPS = ("--cgroup", "pids.max=100", "--cgroup", "memory.limit_in_bytes=1G")
TAP = "tap0"
DISK_MIB = 64
STARTS_A_RUN = 5


def build(folder, guests=("spin", "reset_i8042")):
    """The guests and the floor, as files in `folder`."""
    for guest in guests:
        source, elf = ROOT / "tests/support/guests" / f"{guest}.S", folder / f"{guest}.elf"
        subprocess.run(["cc", "-nostdlib", "-static", "-no-pie", "-Wl,-N", "-Wl,-Ttext=0x1000000",
                        "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments", source, "-o", elf],
                       check=True)
    subprocess.run(["cc", "-O2", "-static", ROOT / "bench/kvm_floor.c", "-o", folder / "kvm_floor"], check=True)


def configuration(folder, guest, devices=False):
    path = folder / f"{guest}.json"
    content = {
        "boot-source": {"kernel_image_path": str(folder / f"{guest}.elf"),
                        "boot_args": "console=ttyS0 reboot=k panic=1"},
        "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": GUEST_MIB},
        "logger": {"level": "Error", "log_path": "/dev/null"}}
    if devices:
        content["drives"] = [{"drive_id": "disk", "path_on_host": str(folder / "disk"), "is_root_device": False,
                              "is_read_only": False}]
        content["network-interfaces"] = [{"iface_id": "net", "host_dev_name": TAP}]
    path.write_text(json.dumps(content))
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


def measure_devices(binary, folder, pairs):
    """What a disk and a network interface add to the time until a guest's first output, and to the CPU time, in ms."""
    private_network.enter()
    private_network.make_tap(TAP)
    with open(folder / "disk", "wb") as disk:
        disk.truncate(DISK_MIB << 20)
    times, cpu = {False: [], True: []}, {False: [], True: []}
    with priority.real_time():
        for pair in range(pairs + 1):
            for devices in (False, True) if pair % 2 else (True, False):
                begin, process = start([binary, *configuration(folder, "spin", devices)])
                took, used = await_output(begin, process), cpu_ms(process.pid)
                end(process)
                if pair:
                    times[devices].append(took)
                    cpu[devices].append(used)
    return [statistics.median(taken[True]) - statistics.median(taken[False]) for taken in (times, cpu)]


def jail_command(jailer, program, base, number, *options):
    return [jailer, "--id", f"bench{number}", "--exec-file", program, "--uid", JAIL_USER, "--gid", JAIL_USER,
            "--chroot-base-dir", base, *options, "--", "--no-api", "--config-file", "/spin.json"]


def measure_jail(binary, folder, pairs, *options):
    """What a jail adds to the time until a guest's first output, in ms, as measure_devices(); and the floor meanwhile."""
    jailer = os.environ["MAYFLY_JAILER"]
    program = folder / "mayfly"
    subprocess.run(["strip", "--strip-all", "-o", program, binary], check=True)
    bare = [program, *configuration(folder, "spin")]
    times, floor = {False: [], True: []}, []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base, priority.real_time():
        for pair in range(pairs + 1):
            root = Path(base) / "mayfly" / f"bench{pair}" / "root"
            root.mkdir(parents=True)
            shutil.copy(folder / "spin.elf", root)
            # There is no /dev/null in a jail.
            (root / "spin.json").write_text(
                (folder / "spin.json").read_text().replace(str(folder), "").replace("/dev/null", "/log"))
            jailed = jail_command(jailer, program, base, pair, *options)
            for is_jailed in (False, True) if pair % 2 else (True, False):
                begin, process = start(jailed if is_jailed else bare)
                times[is_jailed].append(await_output(begin, process))
                end(process)
            begin, process = start([folder / "kvm_floor"])
            floor.append(await_output(begin, process))
            end(process)
            subprocess.run([jailer, "--cleanup", *jailed[1:5], "--chroot-base-dir", base], check=True)
    return statistics.median(times[True]) - statistics.median(times[False]), statistics.median(floor)


def parse(parser):
    """The options, and the monitors that they or the environment name: {name: binary}. Adds the arguments for these."""
    parser.add_argument("monitors", nargs="*", metavar="NAME=BINARY")
    options = parser.parse_args()
    if not options.monitors and os.environ.get("MAYFLY_PROGRAM"):
        options.monitors = [f"mayfly={os.environ['MAYFLY_PROGRAM']}"]
    monitors = dict(pair.split("=", 1) for pair in options.monitors if "=" in pair)
    if not monitors or len(monitors) != len(options.monitors) or "floor" in monitors:
        parser.error("each monitor is NAME=BINARY, with a name of its own; without any, MAYFLY_PROGRAM is needed")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        parser.error("/dev/kvm is not there or not accessible to this user")
    return options, monitors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="runs of each (default 30), after one that is not counted")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first monitor is over a limit: output {OUTPUT_LIMIT} x floor, "
                             f"{PRIVATE_LIMIT_KIB} KiB private memory, {BINARY_LIMIT_KIB} KiB of program, "
                             f"{DEVICES_LIMIT_MS} ms added by a disk and a network interface, {JAIL_LIMIT} x floor by a jail")
    parser.add_argument("--jailed", action="store_true", help="measure what a jail adds, too; takes root")
    options, monitors = parse(parser)
    if options.jailed and (os.geteuid() != 0 or not os.environ.get("MAYFLY_JAILER")):
        parser.error("--jailed takes root, and MAYFLY_JAILER to name the jailer")
    first = next(iter(monitors))

    figures = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        build(folder)
        for run in range(options.runs + 1):
            counted = figures if run else {}
            measure_floor(folder, counted)
            for monitor, binary in monitors.items():
                measure(monitor, binary, folder, counted)
        jail = measure_jail(monitors[first], folder, STARTS_A_RUN * options.runs) if options.jailed else None
        grouped = measure_jail(monitors[first], folder, options.runs, *JAIL_GROUPS) if options.jailed else None
        try:
            added = measure_devices(monitors[first], folder, STARTS_A_RUN * options.runs)
        except OSError as problem:
            print(f"nothing with devices: {problem}", file=sys.stderr)
            added = None

    for figure, values in figures.items():
        medians = {name: statistics.median(taken) for name, taken in values.items()}
        print(f"{figure:20}" + "".join(f"  {name} {medians[name]:8.2f} (min {min(values[name]):.2f})" for name in medians)
              + "".join(f"  {first}/{name} {medians[first] / medians[name]:.2f} "
                        f"(min/min {min(values[first]) / min(values[name]):.2f})"
                        for name in medians if name != first))
    for monitor, binary in monitors.items():
        print(f"{'binary KiB':20}  {monitor} {stripped_size(binary) / 1024:8.0f}")
    if added:
        print(f"{'devices add ms':20}  {first} {added[0]:8.2f}  (cpu {added[1]:.2f})")
    if options.jailed:
        print(f"{'a jail adds ms':20}  {first} {jail[0]:8.2f}  ({jail[0] / jail[1]:.2f} x floor; with two cgroups {grouped[0]:.2f})")
    return check(figures, first, monitors[first], added, jail) if options.check else 0


def stripped_size(binary):
    """Bytes of the program without its symbols."""
    with tempfile.TemporaryDirectory() as folder:
        stripped = os.path.join(folder, "stripped")
        subprocess.run(["strip", "--strip-all", "-o", stripped, binary], check=True)
        return os.path.getsize(stripped)


def check(figures, name, binary, added, jail):
    """1 where the monitor is over a limit, or one was not measured, with a line for each."""
    median = lambda figure, of: statistics.median(figures[figure][of])
    return report_over((
        (median("output ms", name) > OUTPUT_LIMIT * median("output ms", "floor"), f"output: more than {OUTPUT_LIMIT} x floor"),
        (median("memory private KiB", name) > PRIVATE_LIMIT_KIB, f"memory: more than {PRIVATE_LIMIT_KIB} KiB private"),
        (stripped_size(binary) > BINARY_LIMIT_KIB << 10, f"program: more than {BINARY_LIMIT_KIB} KiB"),
        (added is None, "devices: not measured"),
        (jail is not None and jail[0] > JAIL_LIMIT * jail[1], f"jail: adds more than {JAIL_LIMIT} x floor"),
        (added is not None and added[0] > DEVICES_LIMIT_MS, f"devices: add more than {DEVICES_LIMIT_MS} ms"),
    ))


def report_over(limits):
    """1 where one of the pairs (whether it is over, what it is) is over its limit, with a line for each."""
    over = [text for is_over, text in limits if is_over]
    for text in over:
        print(f"OVER THE LIMIT: {text}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
