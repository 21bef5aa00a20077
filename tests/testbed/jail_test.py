#!/usr/bin/python3
"""Jailed Linux guests, in the testbed: every case of linux_test.py with its monitor in a jail, in a cgroup of version 2;
and that version's groups by themselves, which few hosts without hardware virtualization have.

  jail_test.py --mayfly STATIC_BINARY --jailer BINARY --probe STATIC_BINARY [--only REGEX] [--list] [-v]
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import linux_test
from testbed import Case

import initramfs  # found through testbed

SCRIPTS = Path(__file__).resolve().parent / "jail"


class Suite(linux_test.Suite):
    def __init__(self, jailer, probe, mayfly, scratch, hardware):
        if hardware and os.geteuid() != 0:
            print("SKIP: a jail takes root to make")
            sys.exit(77)
        super().__init__(mayfly, scratch, hardware)
        # A signal that is sent at once meets the script that makes the jail, and not the monitor.
        self.entries = [(self.jailed(case, jailer), check) for case, check in self.entries
                        if all(step.text for step in case.steps)]
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
