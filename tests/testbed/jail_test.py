#!/usr/bin/python3
"""Jailed Linux guests, in the testbed: every case of linux_test.py with its monitor in a jail, in a cgroup of version 2;
those of virtio_test.py in which a jail makes a difference; and that version's groups by themselves, which few hosts
without hardware virtualization have.

  jail_test.py --mayfly STATIC_BINARY --jailer BINARY --probe STATIC_BINARY [--only REGEX] [--list] [-v]
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import linux_test
import virtio_test
from testbed import Case

import initramfs  # found through testbed
import load_image
import root_image

SCRIPTS = Path(__file__).resolve().parent / "jail"


class Virtio(virtio_test.Suite):
    """What the monitor opens, locks, makes and writes by calls of its own, as a user without rights."""

    def fill(self, small, debian, words):
        values = {"kernel": small, "initrd": "", "cmdline": f"{words} reboot=k"}
        self.add("virtio_root", "disks", "root", values, image=root_image.build(), cost=4)
        self.add("virtio_fio", "disks", "fio", values, image=load_image.build(), cost=6)
        for engine in ("Sync", "Async"):
            self.add(f"virtio_kill_{engine.lower()}", "disks", "kill", self.kernels["small"], engine=engine, cost=4)
        self.add("virtio_overlay", "disks", "overlay", self.kernels["small"], cost=5)
        self.add("virtio_lock", "disks", "lock", self.kernels["small"])
        self.add("virtio_taps", "networks", "taps", self.kernels["small"], cost=4)


class Suite(linux_test.Suite):
    def __init__(self, jailer, probe, mayfly, scratch, hardware):
        if hardware and os.geteuid() != 0:
            print("SKIP: a jail takes root to make")
            sys.exit(77)
        super().__init__(mayfly, scratch, hardware)
        # A signal that is sent at once meets the script that makes the jail, and not the monitor.
        self.entries = [(self.jailed(case, jailer), check) for case, check in self.entries
                        if all(step.text for step in case.steps)]
        self.entries += Virtio(mayfly, scratch, hardware, jailer=jailer).entries
        self.entries.append((Case("cgroups", [initramfs.busybox(), "sh", SCRIPTS / "cgroups.sh", jailer, probe]), check_cgroups))

    @staticmethod
    def jailed(case, jailer):
        return dataclasses.replace(case, command=[initramfs.busybox(), "sh", SCRIPTS / "jailed.sh", jailer, *case.command])


def check_cgroups(test, result):
    if result.stdout.startswith("SKIP: "):
        test.skipTest(result.stdout.strip().removeprefix("SKIP: "))
    test.assertEqual((result.describe(), result.stdout), ("exit 0", "all is well\n"), result.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jailer", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    own, sys.argv[1:] = parser.parse_known_args()
    # The monitor that ships may be named for all Linux tests; in a jail it must be static, as that is.
    sys.exit(linux_test.main(__doc__, lambda *suite: Suite(own.jailer.resolve(), own.probe.resolve(), *suite)))
