#!/usr/bin/python3
"""Clones of a template: how soon one runs, how many are born a second, and what each costs.

  clone.py [--program BINARY] [--births N] [--alive N] [--directory D] [--check]

BINARY is mayfly, by default that which MAYFLY_PROGRAM names. The guest is bare metal, of 128 MiB; its first
instructions as a clone send a byte. Beside it runs bench/kvm_floor.c, a process from its start to its guest's first
byte by the fewest KVM calls that there can be.

  first     a request at the template's socket to the byte in the clone's serial file
  answer    the same to the answer, which is sent once the clone runs
  births    clones a second while one caller asks for 64 at a time, all on one core
  memory    private memory of a clone that halts (smaps_rollup), the guest's own pages among it
  alive     `first` and `memory` of the 1st, of the 100th and of the last clone while all before them live, and rest;
            the floor meanwhile; and the processor time of a clone's threads until then, with the template's for it. All
            without a control API and with one, of several templates, one after the other, as a shared machine's speed
            drifts more within one than the figures differ

The files lie in D, by default a directory in memory.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import api
import priority
import start

# What is promised, as medians.
FIRST_LIMIT = 1.0  # ms or, where the host takes longer for a VM of its own, times the floor
FIRST_LIMIT_OF_FLOOR = 1.35
BIRTHS_LIMIT = 200  # a second
PRIVATE_LIMIT_KIB = 300
GROWTH_LIMIT = 1.5  # what the last clones cost, times what the first ones do
IN_ONE_CALL = 64
SETTLED = 2  # s after which births of many at once leave the host nothing to do: grace periods, memory given back
SAMPLE = 25  # clones that stand for "the 1st", "the 100th", "the last" of a template
ROUNDS = 3  # templates whose samples are one


class Template:
    def __init__(self, binary, folder, *arguments, core=None):
        self.folder = folder
        self.path = str(folder / "template.sock")
        self.fifo = str(folder / "serial")
        if not os.path.exists(self.fifo):
            os.mkfifo(self.fifo)
        self.serial = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.kept_open = os.open(self.fifo, os.O_WRONLY)
        self.born = []
        command = [binary, "template", folder / "state", folder / "memory", "--api-sock", self.path, *arguments]
        self.process = subprocess.Popen([*(["taskset", "-c", str(core)] if core is not None else []), *command],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + start.LIMIT
        while not os.path.exists(self.path):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError("no template")
            time.sleep(0.01)
        time.sleep(0.3)  # until its pool is filled
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.path)

    def ask(self, **body):
        """Clones; and when the answer and the first byte of a guest's came, in ms."""
        text = json.dumps(body)
        request = f"POST /clone HTTP/1.1\r\nHost: mayfly\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        answer, times = b"", {}
        wanted = {self.socket: "answer"}
        if body.get("serial_out_path"):
            wanted[self.serial] = "first"
        begin = time.perf_counter()
        self.socket.sendall(request)
        while len(times) < len(wanted):
            ready = select.select(list(wanted), [], [], start.LIMIT)[0]
            now = (time.perf_counter() - begin) * 1e3
            if not ready:
                raise RuntimeError("a clone does not answer")
            if self.serial in ready and os.read(self.serial, 4096):
                times["first"] = now
            if self.socket in ready:
                answer += self.socket.recv(1 << 20)
                head, _, content = answer.partition(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n")
                               if line.lower().startswith(b"content-length")), None)
                if length is not None and len(content) >= length:
                    times["answer"] = now
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        born = [each["pid"] for each in json.loads(content)["clones"]]
        self.born += born
        return born, times

    def stop(self):
        for pid in self.born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.process.terminate()
        self.process.wait()
        self.socket.close()
        os.close(self.serial)
        os.close(self.kept_open)
        for pid in self.born:
            while os.path.exists(f"/proc/{pid}"):
                time.sleep(0.005)
        self.born = []


def snapshot(binary, folder):
    path = str(folder / "parent.sock")
    parent = subprocess.Popen([binary, "run", "--kernel", folder / "first_step.elf", "--memory", f"{start.GUEST_MIB}M",
                               "--api-sock", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    parent.stdout.readline()
    for method, where, body in (
            ("PATCH", "/vm", {"state": "Paused"}),
            ("PUT", "/snapshot/create", {"snapshot_path": str(folder / "state"), "mem_file_path": str(folder / "memory")})):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(api.request(method, where, body))
            if not client.recv(4096).startswith(b"HTTP/1.1 204"):
                raise RuntimeError(f"{method} {where}")
    parent.terminate()
    parent.wait()
    parent.stdout.close()


def private_kib(pid):
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_Clean", "Private_Dirty")))


def measure_floor(folder):
    begin, process = start.start([folder / "kvm_floor"])
    took = start.await_output(begin, process)
    process.wait()
    process.stdout.close()
    return took


def measure_latency(binary, folder, runs):
    """Medians by name; the floor takes turns."""
    figures = {}
    for has_api in (True, False):
        with priority.real_time():
            template = Template(binary, folder, *([] if has_api else ["--no-clone-api"]))
        name = "with an API" if has_api else "without"
        try:
            for _ in range(runs):
                with priority.real_time():
                    times = template.ask(serial_out_path=template.fifo)[1]
                    figures.setdefault("floor ms", []).append(measure_floor(folder))
                for what, took in times.items():
                    figures.setdefault(f"{what} ms, {name}", []).append(took)
                time.sleep(0.02)  # the pool is filled
            time.sleep(0.2)
            figures[f"private KiB, {name}"] = [private_kib(pid) for pid in template.born]
        finally:
            template.stop()
    return {name: statistics.median(values) for name, values in figures.items()}


def measure_births(binary, folder, count):
    core = max(os.sched_getaffinity(0))
    template = Template(binary, folder, "--no-clone-api", core=core)
    try:
        with priority.real_time():
            os.sched_setscheduler(template.process.pid, os.SCHED_RR, os.sched_param(1))
            begin = time.perf_counter()
            for _ in range(0, count, IN_ONE_CALL):
                template.ask(count=IN_ONE_CALL)
            took = time.perf_counter() - begin
        return len(template.born) / took
    finally:
        template.stop()


def births_near(template, folder, figures):
    """What SAMPLE births of one clone each cost, added to the figures; the floor takes turns."""
    time.sleep(SETTLED)
    before = start.cpu_ms(template.process.pid)
    for _ in range(SAMPLE):
        with priority.real_time():
            figures.setdefault("first ms", []).append(template.ask(serial_out_path=template.fifo)[1]["first"])
            figures.setdefault("floor ms", []).append(measure_floor(folder))
        time.sleep(0.02)
    of_template = (start.cpu_ms(template.process.pid) - before) / SAMPLE
    time.sleep(start.TIDY_SECONDS)
    figures.setdefault("cpu ms", []).extend(of_template + start.cpu_ms(pid) for pid in template.born[-SAMPLE:])
    figures.setdefault("private KiB", []).extend(private_kib(pid) for pid in template.born[-SAMPLE:])


def measure_alive(binary, folder, count, has_api):
    """By how many lived before, of ROUNDS templates: medians by name. And how many MiB all take."""
    figures, used = {before: {} for before in (0, 100, count - SAMPLE)}, []
    for _ in range(ROUNDS):
        before = available_mib()
        with priority.real_time():
            template = Template(binary, folder, *([] if has_api else ["--no-clone-api"]))
        try:
            for lived, of_these in figures.items():
                while len(template.born) < lived:
                    template.ask(count=min(IN_ONE_CALL, lived - len(template.born)))
                births_near(template, folder, of_these)
            alive = sum(os.path.exists(f"/proc/{pid}/smaps_rollup") for pid in template.born)
            if alive != count:
                raise RuntimeError(f"only {alive} of {count} clones live")
            used.append(before - available_mib())
        finally:
            template.stop()
    medians = {lived: {name: statistics.median(values) for name, values in of_these.items()}
               for lived, of_these in figures.items()}
    return medians, statistics.median(used)


def available_mib():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) // 1024
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("MAYFLY_PROGRAM"))
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--births", type=int, default=512)
    parser.add_argument("--alive", type=int, default=1000)
    parser.add_argument("--directory", default="/dev/shm")
    parser.add_argument("--check", action="store_true",
                        help=f"exit with 1 where the first byte takes more than {FIRST_LIMIT} ms and {FIRST_LIMIT_OF_FLOOR} x "
                             f"floor, fewer than {BIRTHS_LIMIT} are born a second, an idle clone has more than "
                             f"{PRIVATE_LIMIT_KIB} KiB of its own, or the last cost {GROWTH_LIMIT} x what the first ones do, in time, memory or processor time")
    options = parser.parse_args()
    if not options.program or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        parser.error("name a program by --program or MAYFLY_PROGRAM, on a host with a usable /dev/kvm")
    folder = Path(tempfile.mkdtemp(prefix="mayfly-clone-", dir=options.directory))
    wrong = []
    try:
        start.build(folder, guests=("first_step",))
        snapshot(options.program, folder)
        medians = measure_latency(options.program, folder, options.runs)
        for name, value in medians.items():
            print(f"{name:26} {value:8.2f}")
        for name in ("with an API", "without"):
            first = medians[f"first ms, {name}"]
            if first > max(FIRST_LIMIT, FIRST_LIMIT_OF_FLOOR * medians["floor ms"]):
                wrong.append(f"first byte, {name}: {first:.2f} ms, {first / medians['floor ms']:.2f} x floor")
            if medians[f"private KiB, {name}"] > PRIVATE_LIMIT_KIB:
                wrong.append(f"private memory, {name}: more than {PRIVATE_LIMIT_KIB} KiB")
        births = statistics.median(measure_births(options.program, folder, options.births) for _ in range(ROUNDS))
        print(f"{'births a second, one core':26} {births:8.0f}")
        if births < BIRTHS_LIMIT:
            wrong.append(f"births: fewer than {BIRTHS_LIMIT} a second")
        for has_api in (False, True):
            alive, used = measure_alive(options.program, folder, options.alive, has_api)
            name = "with an API" if has_api else "without"
            print(f"{options.alive} alive, {name}: {used:.0f} MiB in all")
            for lived, medians in alive.items():
                print(f"{f'  after {lived}':26}" + ", ".join(f"{what} {value:.2f}" for what, value in medians.items()))
            first, *_, last = alive.values()
            for what in ("first ms", "cpu ms", "private KiB"):
                if last[what] > GROWTH_LIMIT * first[what]:
                    wrong.append(f"{what}, {name}: {last[what] / first[what]:.2f} times as much for the last clones")
            if last["private KiB"] > PRIVATE_LIMIT_KIB:
                wrong.append(f"private memory of the last, {name}: more than {PRIVATE_LIMIT_KIB} KiB")
    finally:
        shutil.rmtree(folder)
    for each in wrong:
        print(f"over the limit: {each}", file=sys.stderr)
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
