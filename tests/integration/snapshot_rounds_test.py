#!/usr/bin/python3
"""Takes one microVM through many snapshots, and kills many monitors while they write one.

  snapshot_rounds_test.py --mayfly BINARY --guests FOLDER [--rounds N] [--kills N] [unittest's own arguments]

The guest, tests/support/guests/pattern.c, verifies and rewrites 4 MiB without end and counts aloud. A host without a
usable /dev/kvm cannot run it: that is said, and the exit code is 77 (skipped).
"""

import http.client
import os
import random
import select
import subprocess
import sys
import threading
import time

from bare_guests import HANG, main, program
from snapshot_test import Files, SnapshotCase, Vm

ROUNDS = 50
KILLS = 25


def taken_option(name, usual):
    """The number behind an option of this script's own."""
    if name in sys.argv:
        at = sys.argv.index(name)
        usual = int(sys.argv[at + 1])
        del sys.argv[at:at + 2]
    return usual


MARK_PAGE = 0xdf000


class PatternCase(SnapshotCase):
    def numbers_of(self, lines):
        """What a guest counted, one after the other."""
        numbers = [int(line) for line in lines]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        return numbers

    def runs_on(self, vm, count=1):
        """Until it has counted so much further."""
        end = time.monotonic() + HANG
        lines = vm.seen.count(b"\n") + count + 1  # the first may have begun before
        while vm.seen.count(b"\n") < lines:
            self.assertLess(time.monotonic(), end, f"it stands still: {vm.seen[-200:]!r}")
            if select.select([vm.process.stdout], [], [], 1)[0]:
                data = os.read(vm.process.stdout.fileno(), 65536)
                self.assertTrue(data, f"it ended: {vm.seen!r}")
                vm.seen += data
        self.assertNotIn(b"WRONG", vm.seen)

    def rest_of(self, vm):
        """All that a microVM said, which this ends."""
        vm.process.kill()
        vm.process.wait()
        said = vm.seen + vm.process.stdout.read()
        vm.kill()
        return said


class Rounds(PatternCase):
    def test_a_microvm_is_saved_and_goes_on_in_a_new_process_again_and_again(self):
        vm = Vm(self).boot("pattern", until=b"1\n", mem_size_mib=64)
        said, begin = b"", time.monotonic()
        for turn in range(ROUNDS):
            files = Files(self.folder, f"turn{turn % 2}")
            try:
                self.runs_on(vm)
                time.sleep(random.uniform(0, 0.03))
                vm.create(files)
            finally:
                said += self.rest_of(vm)
            self.assertNotIn(b"WRONG", said)
            vm = Vm(self).load(files)
        self.runs_on(vm)
        said += self.rest_of(vm)
        # As if there had been one process: no number twice, none left out, no line torn.
        numbers = self.numbers_of(said.split(b"\n")[:-1])
        self.assertEqual(numbers[0], 1)
        print(f"\n{ROUNDS} rounds in {time.monotonic() - begin:.0f} s, {numbers[-1]} pieces of 64 KiB verified", flush=True)


class Kinds(PatternCase):
    """Diff and live snapshots of a guest that writes all the time."""

    def test_ten_diffs_in_a_row_are_merged_to_the_guest_as_it_was(self):
        for loaded, tracked in ((False, True), (True, False), (True, True)):
            with self.subTest(loaded=loaded, tracked=tracked):
                base = Files(self.folder, "base")
                vm = Vm(self).boot("pattern", until=b"1\n", mem_size_mib=64, track_dirty_pages=tracked)
                vm.create(base)
                if loaded:
                    vm.kill()
                    vm = Vm(self).load(base, track_dirty_pages=tracked)
                said, diffs = self.saved_in_diffs(vm, 10, base)
                merged = Files(self.folder, "merged")
                subprocess.run([program(), "merge", base.memory, *(diff.memory for diff in (diffs if tracked else diffs[-1:])), "--output",
                                merged.memory],
                               check=True, timeout=HANG)
                os.replace(diffs[-1].state, merged.state)
                copy = Vm(self).load(merged)
                self.runs_on(copy, 5)
                # The first line of what is loaded may have begun before.
                self.numbers_of((said + self.rest_of(copy)).split(b"\n")[1:-1])

    def saved_in_diffs(self, vm, count, base):
        """What a microVM said up to the last of so many diffs, and they."""
        diffs = [Files(self.folder, f"diff{turn}") for turn in range(count)]
        try:
            for diff in diffs:
                vm.resume()
                self.runs_on(vm)
                vm.pause()
                vm.do("PUT", "/snapshot/create", diff.create(snapshot_type="Diff"))
                self.assertLess(os.stat(diff.memory).st_blocks, os.stat(base.memory).st_blocks + 16 * 2048)
        finally:
            said = self.rest_of(vm)
        return said, diffs

    def test_a_merged_diff_is_memory_to_the_byte_whatever_is_known_of_what_was_written(self):
        """Of a guest whose pages become zeros and back, and of what KVM itself writes at a load."""
        for loaded, more in ((False, {}), (False, {"track_dirty_pages": True}), (True, {}), (True, {"track_dirty_pages": True}),
                             (True, {"huge_pages": "Transparent"})):
            with self.subTest(loaded=loaded, **more):
                base, diff, whole, merged = (Files(self.folder, name) for name in ("base", "diff", "whole", "merged"))
                vm = Vm(self).boot("flips", mem_size_mib=64, **({} if loaded else more))
                try:
                    vm.create(base)
                    if loaded:
                        vm.kill()
                        vm = Vm(self)
                        vm.do("PUT", "/snapshot/load", {**base.load(**more), "resume_vm": False})
                    for _ in range(4):
                        vm.do("PUT", "/snapshot/create", diff.create(snapshot_type="Diff"))
                        vm.do("PUT", "/snapshot/create", whole.create())
                        subprocess.run([program(), "merge", base.memory, diff.memory, "--output", merged.memory],
                                       check=True, timeout=HANG)
                        self.assertEqual(self.pages_of(merged), self.pages_of(whole))
                        self.load_only_if_whole(diff)
                        if more.get("track_dirty_pages"):  # otherwise a diff is to what was loaded, or to nothing
                            os.replace(whole.memory, base.memory)
                        vm.resume()
                        time.sleep(0.02)
                        vm.pause()
                finally:
                    vm.kill()

    def test_a_working_set_in_huge_pages_of_its_own_is_the_guest_to_the_byte(self):
        base, diff, whole, merged = (Files(self.folder, name) for name in ("base", "diff", "whole", "merged"))
        where = {"working_set_path": self.path("set")}
        original = Vm(self).boot("pattern", until=b"\n64\n", mem_size_mib=64)  # none of its 4 MiB is a hole any more
        original.create(base)
        original.kill()
        first = Vm(self).load(base, record_working_set=True)
        self.runs_on(first, 64)  # all of its 4 MiB
        first.do("PUT", "/snapshot/working-set", where)
        first.kill()
        copy = Vm(self)
        try:
            copy.do("PUT", "/snapshot/load", {**base.load(huge_pages="Transparent", **where), "resume_vm": False})
            self.assertGreaterEqual(copy.anonymous_kib(), 4096)  # before it runs
            copy.resume()
            self.runs_on(copy, 3)
            copy.pause()
            copy.do("PUT", "/snapshot/create", diff.create(snapshot_type="Diff"))
            copy.do("PUT", "/snapshot/create", whole.create())
            subprocess.run([program(), "merge", base.memory, diff.memory, "--output", merged.memory], check=True, timeout=HANG)
            self.assertEqual(self.pages_of(merged), self.pages_of(whole))
            copy.resume()
            self.runs_on(copy, 3)
        finally:
            copy.kill()
        again = Vm(self).load(whole)
        self.runs_on(again, 64)
        again.kill()

    def load_only_if_whole(self, diff):
        vm = Vm(self)
        try:
            with open(diff.memory, "rb") as file:
                file.seek(MARK_PAGE + 0x210)
                if any(file.read(16)):
                    vm.refused("mayfly merge", "PUT", "/snapshot/load", diff.load())
        finally:
            vm.kill()

    def test_a_diff_goes_onto_what_it_was_taken_after_only(self):
        vm = Vm(self).boot("flips", mem_size_mib=64, track_dirty_pages=True)
        base, one, two, merged = (Files(self.folder, name) for name in ("base", "one", "two", "merged"))
        try:
            vm.create(base)
            for diff in (one, two):
                vm.do("PUT", "/snapshot/create", diff.create(snapshot_type="Diff"))
        finally:
            vm.kill()
        for order, good in (((one, two), True), ((two,), False), ((two, one), False)):
            done = subprocess.run([program(), "merge", base.memory, *(diff.memory for diff in order), "--output", merged.memory],
                                  stderr=subprocess.PIPE, timeout=HANG)
            self.assertEqual(done.returncode == 0, good, done.stderr)
            self.assertEqual(b"another snapshot" in done.stderr, not good)
        with open(one.memory, "rb") as file, open(one.memory + ".filled", "wb") as filled:
            filled.write(file.read())
        for wrong, why in ((one.memory + ".filled", b"has changed its holes"), (base.memory, b"is no diff")):
            done = subprocess.run([program(), "merge", base.memory, wrong, "--output", merged.memory], stderr=subprocess.PIPE, timeout=HANG)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(why, done.stderr)
        os.replace(two.state, merged.state)
        subprocess.run([program(), "merge", base.memory, one.memory, two.memory, "--output", merged.memory], check=True)
        copy = Vm(self).load(merged)
        copy.kill()

    @staticmethod
    def pages_of(files):
        """All but the one with the mark, which is each snapshot's own."""
        with open(files.memory, "rb") as file:
            memory = file.read()
        return {at: memory[at:at + 4096] for at in range(0, len(memory), 4096) if at != MARK_PAGE and any(memory[at:at + 4096])}

    def test_live_ones_are_whole_and_the_guest_runs_on(self):
        for loaded in (False, True):
            with self.subTest(loaded=loaded):
                vm = Vm(self).boot("pattern", until=b"1\n", mem_size_mib=64, track_dirty_pages=not loaded)
                if loaded:
                    base = Files(self.folder, "base")
                    vm.create(base)
                    vm.kill()
                    vm = Vm(self).load(base, track_dirty_pages=True)
                said = b""
                try:
                    for _ in range(5):
                        vm.do("PUT", "/snapshot/create", self.files.create(live=True))
                        self.assertEqual(vm.get("/")["state"], "Running")
                        copy = Vm(self).load(self.files)
                        self.runs_on(copy, 2)
                        self.numbers_of(self.rest_of(copy).split(b"\n")[1:-1])
                        self.runs_on(vm)
                finally:
                    said = self.rest_of(vm)
                # The first line of what is loaded may have begun before.
                self.numbers_of(said.split(b"\n")[1:-1])

    def test_a_live_one_of_a_guest_whose_writes_are_not_tracked_is_refused(self):
        vm = Vm(self).boot("pattern", until=b"1\n", mem_size_mib=64)
        self.addCleanup(vm.kill)
        vm.refused("needs track_dirty_pages", "PUT", "/snapshot/create", self.files.create(live=True))
        self.runs_on(vm)


class Kills(PatternCase):
    """kill -9 while a snapshot takes the place of another."""

    def test_what_is_there_after_a_kill_is_the_former_snapshot_or_the_new_one_or_is_refused(self):
        vm = Vm(self).boot("pattern", until=b"1\n", mem_size_mib=64)
        former = Files(self.folder, "former")
        begin = time.monotonic()
        vm.create(self.files)
        whole = time.monotonic() - begin
        found = {"former": 0, "new": 0, "torn": 0}
        for _ in range(KILLS):
            self.link(self.files, former)
            vm.resume()
            vm.seen = b""
            self.runs_on(vm)
            vm.pause()
            self.kill_while_it_saves(vm, random.uniform(0, whole * 1.2))
            vm, what = self.look_at(former, self.numbers_of(self.rest_of(vm).split(b"\n")[1:-1])[-1])
            found[what] += 1
            left = {name for name in os.listdir(self.folder) if not name.startswith("api")}
            self.assertLessEqual(left, {"vm.mem", "vm.state", "former.mem", "former.state", ".vm.mem.partial", ".vm.state.partial"})
        vm.kill()
        print(f"\n{KILLS} kills within {whole * 1.2 * 1000:.0f} ms: {found}", flush=True)

    def link(self, files, former):
        for one, other in ((files.state, former.state), (files.memory, former.memory)):
            if os.path.exists(other):
                os.remove(other)
            os.link(one, other)

    def kill_while_it_saves(self, vm, seconds):
        killer = threading.Timer(seconds, vm.process.kill)
        killer.start()
        try:
            vm.call("PUT", "/snapshot/create", self.files.create())
        except (OSError, http.client.HTTPException):
            pass  # it was killed
        killer.join()

    def look_at(self, former, last):
        """A microVM that goes on from what is there, paused, and which of the two it is."""
        same = [os.path.samefile(one, other) for one, other in
                ((self.files.state, former.state), (self.files.memory, former.memory))]
        vm = Vm(self)
        if same[0] != same[1]:
            vm.refused(("another snapshot", self.files.memory), "PUT", "/snapshot/load", self.files.load())
            self.link(former, self.files)
        vm.load(self.files)
        self.runs_on(vm, 2)
        vm.pause()
        first = self.numbers_of(vm.seen.split(b"\n")[1:-1])[0]
        if same == [False, False]:
            self.assertGreater(first, last)
        return vm, "torn" if same[0] != same[1] else "former" if same[0] else "new"


if __name__ == "__main__":
    ROUNDS, KILLS = taken_option("--rounds", ROUNDS), taken_option("--kills", KILLS)
    main(__doc__)
