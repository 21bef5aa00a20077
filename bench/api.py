#!/usr/bin/python3
"""The control API beside the floor under every one: first answer, a set-up call, the start of a guest, memory.

  api.py [NAME=BINARY ...] [--runs N] [--check]

Without arguments it measures mayfly, the binary that MAYFLY_PROGRAM names; each further BINARY must serve the dialect
at --api-sock. All take turns in one run, because a shared machine's speed drifts: compare the ratios, not the times.

  answer    process start to the answer to a first GET /, wall time; beside bench/api_floor.c, a process that does nothing
            but answer on a UNIX socket
  set-up    a PUT /machine-config on a connection that is open already, the mean of 100; beside the same bytes sent to
            api_floor.c: two processes that wake each other, and no work
  start     the call InstanceStart until its answer, a bare guest of 128 MiB; beside bench/kvm_floor.c, a process from
            its start to its guest's first output, the fewest KVM calls that there can be
  memory    private memory beyond the guest's own (smaps) with --api-sock, after some calls, less that with --no-api,
            both started by the same configuration file
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import start

import priority

LIMIT = start.LIMIT
CALLS = 100
# What is promised, as medians of ratios to the floor taken in turns with it, but for memory.
ANSWER_LIMIT = 2.2
SET_UP_LIMIT = 3.5
START_LIMIT = 1.2
MEMORY_LIMIT_KIB = 200


def build(folder):
    start.build(folder)
    subprocess.run(["cc", "-O2", "-static", start.ROOT / "bench/api_floor.c", "-o", folder / "api_floor"], check=True)


def request(method, path, body=None):
    text = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text


MACHINE = request("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": start.GUEST_MIB})


class Server:
    """A process that serves at a socket of its own, with one connection to it."""

    def __init__(self, command, path):
        self.path = path
        self.begin = time.perf_counter()
        self.process = subprocess.Popen([*command, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.perf_counter() > self.begin + LIMIT:
                    raise RuntimeError(f"{command[0]}: nothing at its socket") from None

    def ask(self, data, status=b"204"):
        self.socket.sendall(data)
        answer = self.socket.recv(65536)
        if answer.split(b" ", 2)[1] != status:
            raise RuntimeError(f"{self.process.args[0]}: {answer!r}")

    def end(self):
        self.socket.close()
        start.end(self.process)
        if os.path.exists(self.path):
            os.unlink(self.path)


def calls(server, add, status):
    """The figures of answer and set-up, of a server that has just been started."""
    server.ask(request("GET", "/"), status)
    add("answer ms", (time.perf_counter() - server.begin) * 1e3)
    server.ask(MACHINE)
    begin = time.perf_counter()
    for _ in range(CALLS):
        server.ask(MACHINE)
    add("set-up call us", (time.perf_counter() - begin) / CALLS * 1e6)


def measure(name, binary, folder, figures):
    add = lambda figure, value: figures.setdefault(figure, {}).setdefault(name, []).append(value)
    server = Server([binary, "--api-sock"], str(folder / "socket"))
    calls(server, add, b"200")
    server.ask(request("PUT", "/boot-source", {"kernel_image_path": str(folder / "spin.elf")}))
    begin = time.perf_counter()
    server.ask(request("PUT", "/actions", {"action_type": "InstanceStart"}))
    add("start ms", (time.perf_counter() - begin) * 1e3)
    start.await_output(begin, server.process)
    server.end()


def measure_floors(folder, figures):
    add = lambda figure, value: figures.setdefault(figure, {}).setdefault("floor", []).append(value)
    server = Server([folder / "api_floor"], str(folder / "socket"))
    calls(server, add, b"204")
    server.end()
    begin, process = start.start([folder / "kvm_floor"])
    add("start ms", start.await_output(begin, process))
    start.end(process)


def private_kib(binary, folder, with_api):
    """Of a microVM that a configuration file has started."""
    arguments = start.configuration(folder, "spin")[1:]
    if not with_api:
        begin, process = start.start([binary, "--no-api", *arguments])
        start.await_output(begin, process)
        time.sleep(start.TIDY_SECONDS)
        private = start.overhead_kib(process.pid)[0]
        start.end(process)
        return private
    server = Server([binary, *arguments, "--api-sock"], str(folder / "socket"))
    start.await_output(server.begin, server.process)
    for _ in range(CALLS):
        server.ask(request("GET", "/"), b"200")
        server.ask(request("GET", "/vm/config"), b"200")
    time.sleep(start.TIDY_SECONDS)
    private = start.overhead_kib(server.process.pid)[0]
    server.end()
    return private


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs of each (default 50), after one that is not counted")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first monitor is over a limit: answer {ANSWER_LIMIT} x floor, set-up "
                             f"{SET_UP_LIMIT} x floor, start {START_LIMIT} x floor, {MEMORY_LIMIT_KIB} KiB added by the API")
    options, monitors = start.parse(parser)

    figures, added = {}, {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        build(folder)
        for run in range(options.runs + 1):
            counted = figures if run else {}
            with priority.real_time():
                measure_floors(folder, counted)
                for monitor, binary in monitors.items():
                    measure(monitor, binary, folder, counted)
        for monitor, binary in monitors.items():
            pairs = [[private_kib(binary, folder, with_api) for with_api in (False, True)] for _ in range(5)]
            added[monitor] = [statistics.median(column) for column in zip(*pairs)]

    medians = {figure: {name: statistics.median(taken) for name, taken in values.items()} for figure, values in figures.items()}
    for figure, values in figures.items():
        print(f"{figure:16}" + "".join(f"  {name} {medians[figure][name]:8.3f} (min {min(taken):.3f})" for name, taken in values.items())
              + "".join(f"  {name}/floor {medians[figure][name] / medians[figure]['floor']:.2f}" for name in monitors))
    for monitor, (without, with_api) in added.items():
        print(f"{'memory KiB':16}  {monitor} {with_api:.0f}, without API {without:.0f}: the API adds {with_api - without:.0f}")
    return check(medians, added, next(iter(monitors))) if options.check else 0


def check(medians, added, name):
    """1 where the monitor is over a limit, with a line for each."""
    ratio = lambda figure: medians[figure][name] / medians[figure]["floor"]
    without, with_api = added[name]
    return start.report_over((
        (ratio("answer ms") > ANSWER_LIMIT, f"first answer: more than {ANSWER_LIMIT} x floor"),
        (ratio("set-up call us") > SET_UP_LIMIT, f"a set-up call: more than {SET_UP_LIMIT} x floor"),
        (ratio("start ms") > START_LIMIT, f"InstanceStart: more than {START_LIMIT} x floor"),
        (with_api - without > MEMORY_LIMIT_KIB, f"memory: the API adds more than {MEMORY_LIMIT_KIB} KiB"),
    ))


if __name__ == "__main__":
    sys.exit(main())
