#!/usr/bin/python3
"""Tests of the testbed without a virtual machine: cases are run on the host by the program that runs them in L1."""

import io
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True

import testbed  # noqa: E402
from testbed import Case, Step, Tier  # noqa: E402

HOST = Tier("hardware", "these cases need no virtual machine")


def shell(script, **options):
    case = Case("case", ["/bin/sh", "-c", script], **options)
    return testbed.run_cases([case], tier=HOST)["case"]


def is_running(process):
    """Neither gone nor dead and waiting for notice to be taken of it."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False


class CommandLineTest(unittest.TestCase):
    def test_help_is_printed_before_and_behind_every_verb_and_nothing_is_run(self):
        for words in (["--help"], ["attach", "--help"], ["attach", "-h"], ["run", "--help"], ["status", "--help"]):
            with self.subTest(words=words), mock.patch.object(sys, "argv", ["testbed.py", *words]), \
                    mock.patch("sys.stdout", io.StringIO()) as printed, \
                    mock.patch.object(testbed, "detect_tier", side_effect=AssertionError("it looks for a host")):
                try:
                    status = testbed.main()
                except SystemExit as end:
                    status = end.code
                self.assertEqual(status, 0)
                self.assertIn("testbed.py attach COMMAND...", printed.getvalue())

    def test_help_of_the_command_that_is_run_is_its_own(self):
        with mock.patch.object(sys, "argv", ["testbed.py", "attach", "mayfly", "--help"]), \
                mock.patch.object(testbed, "detect_tier", return_value=HOST), \
                mock.patch.object(testbed, "attach", return_value=7) as attached:
            self.assertEqual(testbed.main(), 7)
        attached.assert_called_once_with(["mayfly", "--help"], HOST)


class RunCaseTest(unittest.TestCase):
    def test_exit_code_and_both_outputs_are_returned(self):
        result = shell("echo out; echo err >&2; exit 3")
        self.assertEqual((result.describe(), result.stdout, result.stderr), ("exit 3", "out\n", "err\n"))

    def test_death_by_signal_is_told_from_an_exit(self):
        self.assertEqual(shell("kill -9 $$").describe(), "signal 9")

    def test_command_that_is_not_there_exits_with_127(self):
        result = testbed.run_cases([Case("case", ["/nowhere/program"])], tier=HOST)["case"]
        self.assertEqual(result.describe(), "exit 127")
        self.assertIn("/nowhere/program", result.stderr)

    def test_overrunning_case_is_killed_with_its_children(self):
        result = shell("sleep 1000 & echo $!; sleep 1000", timeout=0.3)
        self.assertEqual(result.describe(), "timeout")
        child = int(result.stdout)
        deadline = time.monotonic() + 30
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertFalse(is_running(child))

    def test_signal_step_waits_for_its_text(self):
        result = shell("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done",
                       steps=[Step(b"ready", "signal", 15), Step(b"caught", "note")])
        self.assertEqual((result.describe(), len(result.step_seconds)), ("exit 5", 2))

    def test_steps_are_taken_in_turn(self):
        result = shell("echo two one two; read -r x; echo $x", steps=[Step(b"one", "write", b"reply\n"),
                                                                        Step(b"two", "note"), Step(b"two", "note")])
        self.assertEqual(result.stdout, "two one two\nreply\n")
        self.assertEqual(len(result.step_seconds), 2, "the second text came once only after the first")

    def test_text_in_pieces_is_found(self):
        result = shell("printf he; sleep 0.05; printf llo", steps=[Step(b"hello", "note")])
        self.assertEqual(len(result.step_seconds), 1)

    def test_closing_stdin_ends_a_reader(self):
        result = shell("echo on; cat; echo done", steps=[Step(b"on", "write", b"text"), Step(b"text", "close")])
        self.assertEqual(result.stdout, "on\ntextdone\n")

    def test_changed_terminal_is_noticed(self):
        self.assertEqual(shell("stty raw", terminal=True).terminal, "changed")

    def test_restored_terminal_is_noticed(self):
        self.assertEqual(shell("old=$(stty -g); stty raw; stty $old", terminal=True).terminal, "restored")

    def test_files_go_in_and_out(self):
        result = shell("cat in > out", inputs={"in": ["path ", Path("/etc/hostname")]})
        self.assertEqual(result.files["out"], b"path /etc/hostname")

    def test_endless_output_is_cut_and_the_case_goes_on(self):
        result = shell("head -c 50000000 /dev/zero; exit 4")
        self.assertEqual(result.describe(), "exit 4")
        self.assertLess(len(result.files["stdout"]), 40 << 20)

    def test_two_cases_of_one_name_are_refused(self):
        with self.assertRaises(testbed.TestbedError):
            testbed.run_cases([Case("same", ["/bin/true"]), Case("same", ["/bin/true"])], tier=HOST)


class TierTest(unittest.TestCase):
    def test_environment_overrules(self):
        for name in ("hardware", "qemu"):
            with mock.patch.dict(os.environ, MAYFLY_TESTBED=name):
                self.assertEqual(testbed.detect_tier().name, name)

    def test_unknown_tier_is_an_error(self):
        with mock.patch.dict(os.environ, MAYFLY_TESTBED="fast"), self.assertRaises(testbed.TestbedError):
            testbed.detect_tier()

    def test_host_without_kvm_gets_qemu(self):
        with mock.patch.dict(os.environ), mock.patch("os.path.exists", return_value=False):
            os.environ.pop("MAYFLY_TESTBED", None)
            self.assertEqual(testbed.detect_tier().name, "qemu")


class ClockTest(unittest.TestCase):
    def test_rate_of_the_counter_is_that_of_another_measurement(self):
        first, second = testbed.tsc_khz.__wrapped__(), testbed.tsc_khz.__wrapped__()
        if first is None:
            self.skipTest("this host has no counter, or no code may be made here")
        self.assertLess(abs(first - second), first / 1000)

    def test_kernel_is_told_the_rate_of_the_hosts_counter_where_it_sees_that(self):
        with mock.patch("testbed.tsc_khz", return_value=2_600_000):
            self.assertEqual(testbed.clock_words("tcg,thread=single", []), "tsc_early_khz=2600000")
            self.assertEqual(testbed.clock_words("tcg", ["-icount", "shift=1"]), "")
            self.assertEqual(testbed.clock_words("kvm", []), "")
        with mock.patch("testbed.tsc_khz", return_value=None):
            self.assertEqual(testbed.clock_words("tcg", []), "")


if __name__ == "__main__":
    unittest.main()
