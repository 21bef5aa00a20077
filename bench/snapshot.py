#!/usr/bin/python3
"""Snapshots: how long taking and loading one holds up whoever asks, and what a restored microVM costs.

  snapshot.py [NAME=BINARY ...] [--runs N] [--directory D] [--check]

Without arguments it measures mayfly, the binary that MAYFLY_PROGRAM names; the first is taken for a mayfly, each further
BINARY must serve the dialect at --api-sock. The guest is bare metal, of 128 MiB and mostly untouched, and does nothing but
print, so that its next byte comes as soon as it runs. All take turns in one run with
bench/kvm_floor.c, a process from its start to its guest's first output by the fewest KVM calls that there can be:
compare the ratios, not the times.

  create    PUT /snapshot/create, Full, of a paused microVM, until its answer: both files are on the disk by then
  diff      the same of type Diff, after a Full one; of a monitor that tracks dirty pages
  stall     how long a live snapshot keeps the guest from running, as its log says; mayfly's only
  load      PUT /snapshot/load with resume_vm, until its answer
  restore   process start, the load, to the restored guest's next byte on standard output
  shell     the same by `mayfly restore`, without an API; mayfly's only
  memory    private memory of a restored microVM beyond the guest's own (smaps)

The files lie in D, by default a directory in memory: what the disk takes is the disk's.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import api
import start

import priority

# What is promised, as medians.
CREATE_LIMIT_MS = 15
LOAD_LIMIT_MS = 1.5
RESTORE_LIMIT = 1.9  # times the floor
SHELL_LIMIT = 1.2  # times the floor
PRIVATE_LIMIT_KIB = 1280


def put(server, path, body, method="PUT"):
    begin = time.perf_counter()
    server.ask(api.request(method, path, body))
    return (time.perf_counter() - begin) * 1e3


def serve(binary, folder, log=None):
    server = api.Server([binary, "--api-sock"], str(folder / "socket"))
    if log:
        server.ask(api.request("PUT", "/logger", {"level": "Info", "log_path": str(log)}))
    return server


def snapshot(folder, name, **more):
    return {"snapshot_path": str(folder / f"{name}.state"), "mem_file_path": str(folder / f"{name}.memory"), **more}


def take(name, binary, folder, add):
    server = serve(binary, folder)
    put(server, "/machine-config", {"vcpu_count": 1, "mem_size_mib": start.GUEST_MIB, "track_dirty_pages": True})
    put(server, "/boot-source", {"kernel_image_path": str(folder / "flood.elf")})
    put(server, "/actions", {"action_type": "InstanceStart"})
    start.await_output(server.begin, server.process)
    put(server, "/vm", {"state": "Paused"}, "PATCH")
    add("create ms", put(server, "/snapshot/create", snapshot(folder, name, snapshot_type="Full")))
    put(server, "/vm", {"state": "Resumed"}, "PATCH")
    put(server, "/vm", {"state": "Paused"}, "PATCH")
    add("diff ms", put(server, "/snapshot/create", snapshot(folder, f"{name}-diff", snapshot_type="Diff")))
    server.end()


def load(name, binary, folder, add):
    server = serve(binary, folder)
    body = {"snapshot_path": str(folder / f"{name}.state"), "resume_vm": True,
            "mem_backend": {"backend_type": "File", "backend_path": str(folder / f"{name}.memory")}}
    add("load ms", put(server, "/snapshot/load", body))
    start.await_output(server.begin, server.process)
    add("restore ms", (time.perf_counter() - server.begin) * 1e3)
    return server


def shell_ms(name, binary, folder):
    begin, process = start.start([binary, "restore", folder / f"{name}.state", folder / f"{name}.memory"])
    took = start.await_output(begin, process)
    start.end(process)
    return took


def stall_ms(name, binary, folder):
    """Of a live snapshot."""
    log = folder / "log"
    server = serve(binary, folder, log)
    put(server, "/machine-config", {"vcpu_count": 1, "mem_size_mib": start.GUEST_MIB, "track_dirty_pages": True})
    put(server, "/boot-source", {"kernel_image_path": str(folder / "flood.elf")})
    put(server, "/actions", {"action_type": "InstanceStart"})
    start.await_output(server.begin, server.process)
    put(server, "/snapshot/create", snapshot(folder, f"{name}-live", live=True))
    server.end()
    told = re.search(r"the guest stood still for (\d+) us", log.read_text())
    log.unlink()
    return int(told[1]) / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="runs of each (default 25), after one that is not counted")
    parser.add_argument("--directory", help="where the files lie, for example on a disk")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first monitor is over a limit: create {CREATE_LIMIT_MS} ms, load "
                             f"{LOAD_LIMIT_MS} ms, restore {RESTORE_LIMIT} x floor, at the shell {SHELL_LIMIT} x floor, "
                             f"{PRIVATE_LIMIT_KIB} KiB")
    options, monitors = start.parse(parser)

    figures = {}
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=options.directory or in_memory) as directory:
        folder = Path(directory)
        start.build(folder, ("flood",))
        first = next(iter(monitors))
        for run in range(options.runs + 1):
            def add_to(name):
                taken = figures if run else {}
                return lambda figure, value: taken.setdefault(figure, {}).setdefault(name, []).append(value)
            with priority.real_time():
                begin, process = start.start([folder / "kvm_floor"])
                add_to("floor")("restore ms", start.await_output(begin, process))
                start.end(process)
                for name, binary in monitors.items():
                    take(name, binary, folder, add_to(name))
                    server = load(name, binary, folder, add_to(name))
                    if run == 0:
                        time.sleep(start.TIDY_SECONDS)
                        figures.setdefault("memory private KiB", {})[name] = [start.overhead_kib(server.process.pid)[0]]
                    server.end()
                add_to(first)("shell ms", shell_ms(first, monitors[first], folder))
                add_to(first)("stall ms", stall_ms(first, monitors[first], folder))

    medians = {figure: {name: statistics.median(taken) for name, taken in values.items()} for figure, values in figures.items()}
    for figure, values in figures.items():
        line = f"{figure:20}" + "".join(f"  {name} {medians[figure][name]:8.3f} (min {min(taken):.3f})" for name, taken in values.items())
        if "floor" in values:
            line += "".join(f"  {name}/floor {medians[figure][name] / medians[figure]['floor']:.2f}" for name in monitors)
        print(line)
    return check(medians, first) if options.check else 0


def check(medians, name):
    """1 where the monitor is over a limit, with a line for each."""
    return start.report_over((
        (medians["create ms"][name] > CREATE_LIMIT_MS, f"a Full snapshot: more than {CREATE_LIMIT_MS} ms"),
        (medians["load ms"][name] > LOAD_LIMIT_MS, f"a load: more than {LOAD_LIMIT_MS} ms"),
        (medians["restore ms"][name] > RESTORE_LIMIT * medians["restore ms"]["floor"],
         f"start to the restored guest's output: more than {RESTORE_LIMIT} x floor"),
        (medians["shell ms"][name] > SHELL_LIMIT * medians["restore ms"]["floor"],
         f"the same at the shell: more than {SHELL_LIMIT} x floor"),
        (medians["memory private KiB"][name] > PRIVATE_LIMIT_KIB, f"memory: more than {PRIVATE_LIMIT_KIB} KiB"),
    ))


if __name__ == "__main__":
    sys.exit(main())
