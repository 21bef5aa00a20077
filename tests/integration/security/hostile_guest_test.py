#!/usr/bin/python3
"""A guest that lies to every device (tests/support/guests/hostile.c) against the monitor: it must go on and answer.

  hostile_guest_test.py --mayfly BINARY --guests FOLDER [--jailer BINARY [--loader BINARY]] [--seconds N]
                        [unittest's own arguments]

Each guest has a seed of its own and many devices: disks of every kind, and network interfaces behind taps in a network
namespace of the test's own. With --jailer each runs in a jail, as a user without rights; that takes root. With --seconds,
new seeds for as long, on standard error what each came to; meant for a monitor built with sanitizers, whose reports are
failures as well. It has no filters of system calls. To run it in a jail, where only static programs start, takes the
loader (tests/integration/jailer/dynamic_monitor.c). With the presets dev and asan-ubsan built, for ten minutes:

  cd build; ../tests/integration/security/hostile_guest_test.py --mayfly asan-ubsan/tests/integration/jailed/mayfly \
    --guests dev/tests/support/guests --jailer dev/jailer/jailer --loader dev/tests/integration/dynamic_monitor \
    --seconds 600 Long

A host without a usable /dev/kvm cannot run it: exit code 77 (skipped).
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "bench")]

import private_network  # noqa: E402  (found through the lines above)
from bare_guests import HANG, Case, Connection, Running, guest, main, program  # noqa: E402

MEMORY_MIB = 128
ROUNDS = 3000  # a few seconds where the guest's code is interpreted
TAPS = ("tap0", "tap1")
# What a monitor may need beside its guest's memory, with every queue full; sanitizers need far more.
MONITOR_MIB = 64
LOG_BYTES = 4 << 20

IMAGES = ("plain", "safe", "base", "alone")
WRITTEN = ("plain", "safe")  # of these, what a guest may write to; of the others it has a copy or reads

OPTIONS = argparse.Namespace(jailer=None, loader=None, seconds=0.0)  # as the command line has them


class Here:
    """The monitor as this user, with its files in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = os.path.join(folder, "api.sock")

    def path(self, name):
        return os.path.join(self.folder, name)

    def inside(self, name):
        """What the monitor calls it."""
        return self.path(name)

    def start(self):
        return Running("--api-sock", self.socket, "--config-file", self.inside("config"))

    def check(self, case, pid, sanitized):
        """That it runs as it is meant to."""

    def leave(self, case):
        """All that is left of it is gone."""
        shutil.rmtree(self.folder)


class Jail(Here):
    """The monitor in a jail, as a user that nobody else is."""

    USER = str(300_000 + os.getpid())

    def __init__(self, folder):
        self.base = os.path.join(folder, "jails")
        self.monitor = os.path.abspath(OPTIONS.loader or program())
        name = os.path.basename(self.monitor)
        super().__init__(os.path.join(self.base, name, "guest", "root"))
        os.chmod(os.path.dirname(folder), 0o711)
        os.makedirs(self.folder, 0o755)
        self.socket = self.path(f"run/{name}.socket")
        if OPTIONS.loader:
            shutil.copy(program(), self.path("dynamic"))
            libraries = subprocess.run(["ldd", program()], stdout=subprocess.PIPE, text=True, timeout=HANG, check=True).stdout
            # Each where it is named, or beside the others where the interpreter looks.
            for library in re.findall(r"(?<=\s)/[^ ]+", libraries):
                where = library if "/ld-" in library else f"/lib/x86_64-linux-gnu/{os.path.basename(library)}"
                os.makedirs(os.path.dirname(self.path(where[1:])), 0o755, exist_ok=True)
                shutil.copy(library, self.path(where[1:]))

    def inside(self, name):
        return f"/{name}"

    def command(self, *options):
        return [os.path.abspath(OPTIONS.jailer), "--id", "guest", "--exec-file", self.monitor, "--chroot-base-dir", self.base,
                *options]

    def start(self):
        for name in WRITTEN:
            os.chown(self.path(name), int(self.USER), int(self.USER))
        return Running("--config-file", self.inside("config"),
                       command=self.command("--uid", self.USER, "--gid", self.USER, "--"))

    def check(self, case, pid, sanitized):
        case.assertTrue(os.path.samefile(f"/proc/{pid}/root", self.folder))
        threads = 0
        for thread in Path(f"/proc/{pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (thread / "status").read_text(encoding="ascii").splitlines())
            case.assertEqual(status["Uid"].split(), [self.USER] * 4)
            case.assertEqual((int(status["CapEff"], 16), status["NoNewPrivs"]), (0, "1"))
            # One is the jailer's; the sanitizers' builds have none of their own.
            case.assertGreaterEqual(int(status["Seccomp_filters"]), 1 if sanitized else 2, status["Name"])
            threads += 1
        case.assertGreater(threads, 1)

    def leave(self, case):
        done = subprocess.run(self.command("--cleanup"), stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
        case.assertEqual((done.returncode, done.stderr, os.listdir(self.base)), (0, "", []))


class HostileGuest(Case):
    @staticmethod
    def drives(place):
        def drive(name, image, **more):
            return {"drive_id": name, "path_on_host": place.inside(image), "is_root_device": False, "is_read_only": False,
                    **more}
        slow = {"bandwidth": {"size": 1 << 20, "refill_time": 100}, "ops": {"size": 200, "refill_time": 100}}
        return [drive("plain", "plain"), drive("safe", "safe", cache_type="Writeback", io_engine="Async"),
                drive("alone", "alone", is_read_only=True, io_engine="Async"),
                drive("memory", "base", overlay="memory"), drive("layer", "base", overlay=place.inside("layer")),
                drive("slow", "base", overlay="memory", rate_limiter=slow)]

    @staticmethod
    def networks():
        return [{"iface_id": f"net{index}", "host_dev_name": name, "guest_mac": f"06:00:00:00:00:0{index}"}
                for index, name in enumerate(TAPS)]

    def prepare(self, place, seed):
        for name in IMAGES:
            with open(place.path(name), "wb") as image:
                image.write(os.urandom(1 << 16))
                image.truncate(8 << 20)
        shutil.copy(guest("hostile"), place.path("kernel"))
        drives, networks = self.drives(place), self.networks()
        words = f"seed={seed} rounds={ROUNDS} devices={len(drives) + len(networks)}"
        with open(place.path("config"), "w", encoding="utf-8") as file:
            json.dump({"boot-source": {"kernel_image_path": place.inside("kernel"), "boot_args": words}, "drives": drives,
                       "network-interfaces": networks, "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
                       "logger": {"log_path": place.inside("log"), "level": "Info"}}, file)
        return {name: digest(place.path(name)) for name in IMAGES if name not in WRITTEN}

    def run_seed(self, seed, sanitized):
        folder = self.path(str(seed))
        os.mkdir(folder, 0o711)
        place = (Jail if OPTIONS.jailer else Here)(folder)
        before = self.prepare(place, seed)
        vm = place.start()
        self.addCleanup(vm.process.kill)
        answers = peak = 0
        is_checked = False
        while vm.process.poll() is None:
            try:
                with contextlib.closing(Connection(place.socket)) as api:
                    api.request("GET", "/")
                    answer = api.getresponse()
                    text = answer.read()
                    answers += answer.status == 200
                peak = max(peak, peak_kib(vm.process.pid))
                if not is_checked and answer.status == 200 and json.loads(text)["state"] == "Running":
                    place.check(self, vm.process.pid, sanitized)
                    is_checked = True
            except (OSError, http.client.HTTPException):
                pass  # not there yet, or about to end
            time.sleep(0.02)
        result = vm.end()
        self.assertEqual(result.code, 0, f"seed {seed}: {result}")
        self.assertIn(b"PASS", result.out, f"seed {seed}: the guest did not end by itself: {result}")
        self.assertNotIn("Sanitizer", result.err, f"seed {seed}")
        self.assertNotIn("runtime error", result.err, f"seed {seed}")
        self.assertGreater(answers, 0, f"seed {seed}: the API never answered")
        self.assertTrue(is_checked, f"seed {seed}: it was never seen running")
        self.assertEqual(before, {name: digest(place.path(name)) for name in before}, f"seed {seed}: a base was written")
        self.assertLess(os.path.getsize(place.path("log")), LOG_BYTES, f"seed {seed}: the guest filled the log")
        if not sanitized:
            self.assertLess(peak, (MEMORY_MIB + MONITOR_MIB) << 10, f"seed {seed}: the guest made the monitor grow")
        place.leave(self)
        return answers, peak

    def test_it_lies_and_the_monitor_goes_on(self):
        for seed in range(1, 4):
            with self.subTest(seed=seed):
                self.run_seed(seed, sanitized=False)


class Long(HostileGuest):
    """New seeds until the time is over. Only by name: takes as long as --seconds says."""

    test_it_lies_and_the_monitor_goes_on = None

    def test_for_a_while(self):
        end = time.monotonic() + OPTIONS.seconds
        seed = time.time_ns()
        while time.monotonic() < end:
            answers, peak = self.run_seed(seed, sanitized=True)
            print(f"seed {seed}: {answers} answers, at most {peak // 1024} MiB", file=sys.stderr)
            seed += 1


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def peak_kib(pid):
    """Of the process' resident memory, so far."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def load_tests(loader, tests, pattern):
    del tests, pattern
    return loader.loadTestsFromTestCase(HostileGuest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jailer")
    parser.add_argument("--loader")
    parser.add_argument("--seconds", type=float, default=0.0)
    OPTIONS, sys.argv[1:] = parser.parse_known_args()
    if OPTIONS.jailer and os.geteuid() != 0:
        print("SKIP: a jail takes root to make")
        sys.exit(77)
    try:
        private_network.enter()
        for tap in TAPS:
            private_network.make_tap(tap)
    except OSError as problem:
        print(f"SKIP: {problem}")
        sys.exit(77)
    main(__doc__)
