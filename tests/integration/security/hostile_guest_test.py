#!/usr/bin/python3
"""A guest that lies to every device (tests/support/guests/hostile.c) against the monitor: it must go on and answer.

  hostile_guest_test.py --mayfly BINARY --guests FOLDER [--seconds N] [unittest's own arguments]

Each guest has a seed of its own and many devices: disks of every kind, and network interfaces behind taps in a network
namespace of the test's own. With --seconds, new seeds for as long, on standard error what each came to; meant for a
monitor built with sanitizers (preset asan-ubsan), whose reports are failures as well. A host without a usable /dev/kvm
cannot run it: exit code 77 (skipped).
"""

import contextlib
import hashlib
import http.client
import json
import os
import sys
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "bench")]

import private_network  # noqa: E402  (found through the lines above)
from bare_guests import Case, Connection, Running, guest, main  # noqa: E402

MEMORY_MIB = 128
ROUNDS = 3000  # a few seconds where the guest's code is interpreted
TAPS = ("tap0", "tap1")
# What a monitor may need beside its guest's memory, with every queue full; sanitizers need far more.
MONITOR_MIB = 64
LOG_BYTES = 4 << 20

seconds = 0.0


class HostileGuest(Case):
    def setUp(self):
        super().setUp()
        for name in ("plain", "safe", "base", "alone"):
            with open(self.path(name), "wb") as image:
                image.write(os.urandom(1 << 16))
                image.truncate(8 << 20)

    def drives(self):
        def drive(name, image, **more):
            return {"drive_id": name, "path_on_host": self.path(image), "is_root_device": False, "is_read_only": False,
                    **more}
        slow = {"bandwidth": {"size": 1 << 20, "refill_time": 100}, "ops": {"size": 200, "refill_time": 100}}
        return [drive("plain", "plain"), drive("safe", "safe", cache_type="Writeback", io_engine="Async"),
                drive("alone", "alone", is_read_only=True, io_engine="Async"),
                drive("memory", "base", overlay="memory"), drive("layer", "base", overlay=self.path("layer")),
                drive("slow", "base", overlay="memory", rate_limiter=slow)]

    def networks(self):
        return [{"iface_id": f"net{index}", "host_dev_name": name, "guest_mac": f"06:00:00:00:00:0{index}"}
                for index, name in enumerate(TAPS)]

    def digest(self, name):
        return hashlib.sha256(Path(self.path(name)).read_bytes()).hexdigest()

    def run_seed(self, seed, sanitized):
        drives, networks = self.drives(), self.networks()
        log, socket = self.path("log"), self.path(f"{seed}.sock")
        for name in ("layer", "log"):
            Path(self.path(name)).unlink(missing_ok=True)
        words = f"seed={seed} rounds={ROUNDS} devices={len(drives) + len(networks)}"
        config = self.write("vm.json", json.dumps(
            {"boot-source": {"kernel_image_path": guest("hostile"), "boot_args": words}, "drives": drives,
             "network-interfaces": networks, "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
             "logger": {"log_path": log, "level": "Info"}}))
        before = {name: self.digest(name) for name in ("base", "alone")}
        vm = Running("--api-sock", socket, "--config-file", config)
        answers = 0
        peak = 0
        while vm.process.poll() is None:
            try:
                with contextlib.closing(Connection(socket)) as api:
                    api.request("GET", "/")
                    answers += api.getresponse().status == 200
                peak = max(peak, peak_kib(vm.process.pid))
            except (OSError, http.client.HTTPException):
                pass  # not there yet, or about to end
            time.sleep(0.05)
        result = vm.end()
        self.assertEqual(result.code, 0, f"seed {seed}: {result}")
        self.assertIn(b"PASS", result.out, f"seed {seed}: the guest did not end by itself: {result}")
        self.assertNotIn("Sanitizer", result.err, f"seed {seed}")
        self.assertNotIn("runtime error", result.err, f"seed {seed}")
        self.assertGreater(answers, 0, f"seed {seed}: the API never answered")
        self.assertEqual(before, {name: self.digest(name) for name in before}, f"seed {seed}: a base was written")
        self.assertLess(os.path.getsize(log), LOG_BYTES, f"seed {seed}: the guest filled the log")
        if not sanitized:
            self.assertLess(peak, (MEMORY_MIB + MONITOR_MIB) << 10, f"seed {seed}: the guest made the monitor grow")
        return answers, peak

    def test_it_lies_and_the_monitor_goes_on(self):
        for seed in range(1, 4):
            with self.subTest(seed=seed):
                self.run_seed(seed, sanitized=False)


class Long(HostileGuest):
    """New seeds until the time is over. Only by name: takes as long as --seconds says."""

    test_it_lies_and_the_monitor_goes_on = None

    def test_for_a_while(self):
        end = time.monotonic() + seconds
        seed = time.time_ns()
        while time.monotonic() < end:
            answers, peak = self.run_seed(seed, sanitized=True)
            print(f"seed {seed}: {answers} answers, at most {peak // 1024} MiB", file=sys.stderr)
            seed += 1


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
    if "--seconds" in sys.argv:
        at = sys.argv.index("--seconds")
        seconds = float(sys.argv[at + 1])
        del sys.argv[at:at + 2]
    try:
        private_network.enter()
        for tap in TAPS:
            private_network.make_tap(tap)
    except OSError as problem:
        print(f"SKIP: {problem}")
        sys.exit(77)
    main(__doc__)
