#!/usr/bin/python3
"""Disk and network of a Linux guest beside other monitors: throughput, and the monitor's CPU time for it.

  peers.py [NAME=MONITOR ...] [--rounds N] [--check]

Without arguments: mayfly, the binary that MAYFLY_PROGRAM names, and Debian's qemu. Each further side is NAME=MONITOR,
where the NAME begins with mayfly, qemu or firecracker, which says how it is called: firecracker=PATH,
qemu-other=PATH, mayfly-before=PATH. The ratios that are shown and checked are those of the first mayfly.

All sides run in one machine (the testbed: on hosts without hardware virtualization one that QEMU emulates), in turns,
with the same guest kernel (the small one), the same guest program (bench/peers_guest.c), 1 processor, 256 MiB, a raw
disk of 256 MiB in tmpfs whose cache is the host's, and a tap. The loads, each as long as --milliseconds says:

  read4k          4 KiB random reads past the guest's cache (O_DIRECT), one thread: requests a second
  read1m, write1m sequential reads and writes of 1 MiB, past it as well: MB a second
  tcp_out, tcp_in one TCP stream out of and into the guest: Mbit a second
  ping            UDP packets of 64 bytes, each answered before the next is sent: packets a second

cpu is what the monitor's process took: user and system time of all its threads, without the time that its vCPUs were in
the guest; that is, all that this process costs the host, exits that the kernel handles alone included. The time of the
network's other end is not in it, but what the host's network stack does when a monitor writes a frame is. The unit is
microseconds a request or packet, for TCP a MiB, since what is a packet there is each monitor's choice.

Figures are medians of the rounds, a ratio is the median of the ratios of each round.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import linux_guest  # noqa: E402  (found through the line above)

import recipe  # noqa: E402  (found through linux_guest)
import small_kernel  # noqa: E402
import testbed  # noqa: E402

MEMORY_MIB = 256
DISK = "/dev/shm/mayfly-peers.raw"
DISK_MIB = 256
# load -> (unit of the figure, figure of a result, unit of the CPU time, how many of these a result has)
LOADS = {
    "read4k": ("/s", lambda load: load["count"] / load["seconds"], "request", lambda load: load["count"]),
    "read1m": ("MB/s", lambda load: load["bytes"] / 1e6 / load["seconds"], "request", lambda load: load["count"]),
    "write1m": ("MB/s", lambda load: load["bytes"] / 1e6 / load["seconds"], "request", lambda load: load["count"]),
    "tcp_out": ("Mbit/s", lambda load: load["bytes"] * 8e-6 / load["seconds"], "MiB", lambda load: load["bytes"] / 2**20),
    "tcp_in": ("Mbit/s", lambda load: load["bytes"] * 8e-6 / load["seconds"], "MiB", lambda load: load["bytes"] / 2**20),
    "ping": ("/s", lambda load: 2 * load["count"] / load["seconds"], "packet", lambda load: 2 * load["count"]),
}
# What is promised of the first side, against the better of the others.
SPEED_LIMIT = 1.2
CPU_LIMIT = 0.7


# --- the sides ---------------------------------------------------------------------------------------------------

def cmdline(milliseconds):
    return f"quiet reboot=k panic=-1 console=ttyS0 MILLISECONDS={milliseconds}"


def mayfly(program, kernel, initrd, words, inputs):
    del inputs
    return [program, "run", "--kernel", kernel, "--initrd", initrd, "--cpus", "1", "--memory", f"{MEMORY_MIB}M",
            "--cmdline", words, "--disk", DISK, "--net", "tap=tap0"]


def qemu(program, kernel, initrd, words, inputs):
    del inputs
    firmware = next((path for path in (Path("/usr/share/qemu/qboot.rom"), Path("/usr/share/seabios/bios-microvm.bin"))
                     if path.exists()), None)
    if firmware is None:
        raise testbed.TestbedError("qemu has no qboot.rom: is qemu-system-data installed?")
    return [program, "-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off", "-bios", firmware,
            "-enable-kvm", "-cpu", "host", "-smp", "1", "-m", f"{MEMORY_MIB}M", "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "stdio", "-no-reboot", "-global", "virtio-mmio.force-legacy=false",
            "-kernel", kernel, "-initrd", initrd, "-append", words.replace("reboot=k", "reboot=t"),
            "-drive", f"id=disk,file={DISK},format=raw,if=none", "-device", "virtio-blk-device,drive=disk",
            "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-device,netdev=net"]


def firecracker(program, kernel, initrd, words, inputs):
    marks = {"@kernel": kernel, "@initrd": initrd}
    text = json.dumps({
        "boot-source": {"kernel_image_path": "@kernel", "initrd_path": "@initrd",
                        "boot_args": f"{words} i8042.noaux i8042.nomux i8042.dumbkbd pci=off"},
        "drives": [{"drive_id": "disk", "path_on_host": DISK, "is_root_device": False, "is_read_only": False}],
        "network-interfaces": [{"iface_id": "net", "host_dev_name": "tap0"}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB}})
    inputs["firecracker.json"] = [marks.get(part, part) for part in re.split("(@kernel|@initrd)", text)]
    return [program, "--no-api", "--no-seccomp", "--config-file", "firecracker.json"]


KINDS = {"mayfly": mayfly, "qemu": qemu, "firecracker": firecracker}


def kind_of(name):
    return next((call for prefix, call in KINDS.items() if name.startswith(prefix)), None)


def default_sides():
    sides = {}
    if os.environ.get("MAYFLY_PROGRAM"):
        sides["mayfly"] = os.environ["MAYFLY_PROGRAM"]
    # Debian has one that can only do -M microvm, with few libraries; Debian 12's other one has all that QEMU can do.
    found = shutil.which("qemu-system-x86_64-microvm") or shutil.which("qemu-system-x86_64")
    if found:
        sides["qemu"] = found
    return sides


# --- one run -----------------------------------------------------------------------------------------------------

def make_case(sides, options):
    kernel = (options.kernel or small_kernel.build() / "vmlinux").resolve()
    initrd, inputs = linux_guest.initramfs("peers"), {}
    words = []
    for name, program in sides.items():
        path = Path(program).resolve()
        if not path.is_file():
            raise testbed.TestbedError(f"{name}: there is no program {program}")
        words += ["--", name, *kind_of(name)(path, kernel, initrd, cmdline(options.milliseconds), inputs)]
    inputs["sides"] = [part for word in words for part in (word, "\n")]
    command = [linux_guest.compiled("peers_host"), str(options.rounds), DISK, str(DISK_MIB), "sides"]
    # A guest that hangs is given up by peers_host itself.
    seconds = options.rounds * len(sides) * (15 + 6 * (options.milliseconds / 1000 + 2)) + 60
    return testbed.Case("peers", command, timeout=seconds, inputs=inputs)


def parse(text):
    """{(side, load): [result of each round]}"""
    results = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 8 and words[0] == "load":
            _, side, _, load, count, took, size, cpu, *more = words
            results.setdefault((side, load), []).append(
                {"count": int(count), "seconds": int(took) / 1e9, "bytes": int(size), "cpu": int(cpu) / 1e9,
                 **{key: int(value) for key, value in (word.split("=") for word in more)}})
    return results


# --- what came out -----------------------------------------------------------------------------------------------

def figures(results, side, load, what):
    _, speed, _, units = LOADS[load]
    one = speed if what == "speed" else lambda result: result["cpu"] * 1e6 / max(units(result), 1)
    return [one(result) for result in results[side, load]]


def ratio(results, first, other, load, what):
    pairs = zip(figures(results, first, load, what), figures(results, other, load, what))
    return statistics.median(mine / max(theirs, 1e-9) for mine, theirs in pairs)


def print_figures(results, sides, counters):
    first, *others = sides
    head = "".join(f"{name:>18}" for name in sides) + "".join(f"{f'{first}/{name}':>20}" for name in others)
    print(f"{'':22}{head}")
    for load, (unit, _, cpu_unit, _) in LOADS.items():
        for what, title in (("speed", f"{load} {unit}"), ("cpu", "  cpu us a " + cpu_unit)):
            values = [figures(results, side, load, what) for side in sides]
            row = "".join(f"{statistics.median(taken):18.1f}" for taken in values)
            row += "".join(f"{ratio(results, first, other, load, what):20.2f}" for other in others)
            print(f"{title:22}{row}")
        if counters:
            for side in sides:
                taken = results[side, load]
                units = sum(LOADS[load][3](result) for result in taken)
                named = [key for key in taken[0] if key not in ("count", "seconds", "bytes", "cpu")]
                print(f"    {side} a {cpu_unit}: " + ", ".join(
                    f"{sum(result[key] for result in taken) / max(units, 1):.2f} {key}" for key in named))


def check(results, sides):
    """The limits that the first side misses, as lines."""
    first, *others = sides
    missed = []
    for load in LOADS:
        speed = min(ratio(results, first, other, load, "speed") for other in others)
        cpu = max(ratio(results, first, other, load, "cpu") for other in others)
        if speed < SPEED_LIMIT:
            missed.append(f"{load}: {speed:.2f} times the better, promised: {SPEED_LIMIT}")
        if cpu > CPU_LIMIT:
            missed.append(f"{load}: {cpu:.2f} times the CPU time of the better, promised: {CPU_LIMIT}")
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", metavar="NAME=MONITOR")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--milliseconds", type=int, default=2000, help="how long each load lasts (default 2000)")
    parser.add_argument("--kernel", type=Path, help="a guest kernel instead of the small one's ELF")
    parser.add_argument("--counters", action="store_true",
                        help="KVM's counters for each request, packet or MiB: exits of all kinds (exits), those for the "
                             "monitor's MMIO and ports, halts, interrupts")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep there what peers_host.c said: every single result")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first side has less than {SPEED_LIMIT} times the speed of the best "
                             f"other one, or takes more than {CPU_LIMIT} times the CPU time of the one that takes least")
    options = parser.parse_args()
    pairs = [pair.split("=", 1) for pair in options.sides]
    if any(len(pair) != 2 or kind_of(pair[0]) is None for pair in pairs):
        parser.error("each side is NAME=MONITOR, and its name begins with mayfly, qemu or firecracker")
    # Those of mayfly first: the first is the one whose ratios are wanted.
    sides = {**default_sides(), **dict(pairs)}
    sides = dict(sorted(sides.items(), key=lambda side: not side[0].startswith("mayfly")))
    if len(sides) < 2:
        parser.error("two sides at least are needed: install qemu-system-x86, or name another one")
    try:
        done = testbed.run_cases([make_case(sides, options)], testbed.Options(parallel=1))["peers"]
    except (testbed.TestbedError, recipe.RecipeError, OSError) as problem:
        testbed.say(f"error: {problem}")
        return 1
    if options.keep:
        options.keep.write_text(done.stdout)
    results = parse(done.stdout)
    if linux_guest.missing(done, results, ((side, load) for side in sides for load in LOADS)):
        return 1
    print_figures(results, list(sides), options.counters)
    missed = check(results, list(sides)) if options.check else []
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
