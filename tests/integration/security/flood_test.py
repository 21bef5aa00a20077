#!/usr/bin/python3
"""A guest that floods all that it can write to (tests/support/guests/flood_devices.S): neither does the disk fill nor does
the control API stop to answer.

  flood_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

A host without a usable /dev/kvm cannot run it: exit code 77 (skipped).
"""

import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from api_test import ApiCase, Exposition  # noqa: E402  (found through the line above)
from bare_guests import HANG, main  # noqa: E402

EXITS = 100_000  # of the vCPU, before anything is measured: some hundred rounds of the guest
SERIAL_BYTES = 10_000
# A place that logs says ten lines in five seconds; this guest meets eight of them. Without a limit they say thousands.
LOG_LINES = 1500
FLUSHES = 20


class Flood(ApiCase):
    def start_flooding(self, **logger):
        """Starts the guest with all outputs in files."""
        self.start()
        self.do("PUT", "/logger", {"log_path": self.path("log"), **logger})
        self.do("PUT", "/metrics", {"metrics_path": self.path("metrics")})
        self.do("PUT", "/serial", {"serial_out_path": self.path("serial"),
                                   "rate_limiter": {"size": SERIAL_BYTES, "refill_time": 3600_000}})
        for name in ("running", "broken"):
            self.do("PUT", f"/drives/{name}", {"drive_id": name, "path_on_host": self.image(name), "is_root_device": False})
        self.boot("flood_devices", mem_size_mib=64)

    def counts(self):
        self.api.request("GET", "/metrics")
        answer = self.api.getresponse()
        self.assertEqual(answer.status, 200)
        return Exposition(answer.read().decode())

    def exits(self, counts):
        return sum(counts.value(f"mayfly_vcpu_exit_{kind}_total") for kind in ("io_in", "io_out", "mmio_read", "mmio_write"))

    def until_flooded(self, call):
        """Does the calls over and over, until the guest has done much meanwhile."""
        end = time.monotonic() + HANG
        start = self.exits(self.counts())
        while self.exits(self.counts()) < start + EXITS:
            self.assertLess(time.monotonic(), end, "the guest does not flood")
            call()

    def lines(self, name):
        return Path(self.path(name)).read_text(encoding="utf-8").splitlines()

    def test_files_stay_small_and_every_call_is_answered(self):
        for level in ("Info", "Trace"):
            with self.subTest(level=level):
                self.start_flooding(level=level)
                inputs = {name: os.stat(self.path(name)) for name in ("running", "broken")}
                calls = 0

                def call():
                    nonlocal calls
                    self.assertEqual(self.get("/")["state"], "Running")
                    self.do("PATCH", "/drives/running", {"drive_id": "running", "path_on_host": self.path("running")})
                    self.do("PATCH", "/vm", {"state": "Paused"})
                    self.do("PATCH", "/vm", {"state": "Resumed"})
                    if calls < FLUSHES:
                        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
                    calls += 1

                self.until_flooded(call)
                self.assertGreater(calls, 0)
                counts = self.counts()
                # Each kind did arrive.
                for name, labels in (("mayfly_block_queue_event_total", {"drive": "running"}),
                                     ("mayfly_block_cfg_fails_total", {"drive": "broken"}),
                                     ("mayfly_vmm_unknown_port_accesses_total", {}),
                                     ("mayfly_vmm_unknown_mmio_accesses_total", {})):
                    self.assertGreater(counts.value(name, **labels), 0, name)
                self.assertGreater(counts.value("mayfly_uart_rate_limiter_dropped_bytes_total"), 0)
                self.vm.process.send_signal(signal.SIGTERM)
                self.expect(self.vm.end(), 0, b"")

                log = self.lines("log")
                self.assertTrue(any("needs a reset" in line for line in log), log[:50])
                self.assertLess(len(log), LOG_LINES)
                self.assertLess(max(map(len, log)), 1000)
                # What an hour refills, and a second more.
                self.assertIn(os.path.getsize(self.path("serial")), range(SERIAL_BYTES, SERIAL_BYTES + 1000))
                metrics = self.lines("metrics")
                # One at the start and at the end, and perhaps some of a minute.
                self.assertLess(len(metrics), FLUSHES + 10)
                self.assertLess(max(map(len, metrics)), 1 << 16)
                for line in metrics:
                    json.loads(line)
                for name, before in inputs.items():
                    self.assertEqual(os.stat(self.path(name)).st_size, before.st_size)
                self.assertLessEqual(set(os.listdir(self.folder)),
                                     {"api.sock", "log", "metrics", "serial", "running", "broken"})
                for name in ("log", "metrics", "serial"):
                    os.unlink(self.path(name))


def load_tests(loader, tests, pattern):
    del tests, pattern
    return loader.loadTestsFromTestCase(Flood)


if __name__ == "__main__":
    main(__doc__)
