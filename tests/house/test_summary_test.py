#!/usr/bin/env python3
"""Shows that the summary of a test run counts, names and judges: test_summary_test.py ROOT."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(sys.argv.pop(1))
sys.path.insert(0, str(ROOT / "tools" / "lib"))

import test_summary  # noqa: E402  (found through the line above)


class Summary(unittest.TestCase):
    def run_summary(self, *cases):
        """`cases` are (name, label, status, children, output); returns the exit code and what was printed."""
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "run"
            tests = [{"name": name, "properties": [{"name": "LABELS", "value": [label]}]} for name, label, *_ in cases]
            results.with_suffix(".json").write_text(json.dumps({"tests": tests}), encoding="utf-8")
            results.with_suffix(".xml").write_text("<testsuite>" + "".join(
                f'<testcase name="{name}" status="{status}">{children}<system-out>{output}</system-out></testcase>'
                for name, _, status, children, output in cases) + "</testsuite>", encoding="utf-8")
            printed, argv = io.StringIO(), sys.argv
            sys.argv = ["test_summary.py", "--linux-tier", "qemu: no KVM", str(results)]
            try:
                with contextlib.redirect_stdout(printed):
                    return test_summary.main(), printed.getvalue()
            finally:
                sys.argv = argv

    def test_passed_tests_are_counted_by_tier(self):
        code, text = self.run_summary(("a", "unit", "run", "", ""), ("b", "unit", "run", "", ""),
                                      ("c", "linux", "run", "", ""))
        self.assertEqual(code, 0)
        self.assertRegex(text, r"unit +2 passed +0 failed")
        self.assertRegex(text, r"linux +1 passed .*\(qemu: no KVM\)")

    def test_a_failure_fails_and_is_named(self):
        code, text = self.run_summary(("a", "unit", "run", "", ""),
                                      ("b", "unit", "fail", '<failure message=""/>', ""))
        self.assertEqual(code, 1)
        self.assertRegex(text, r"Failed:\n  b")

    def test_a_skip_is_named_with_its_reason(self):
        skipped = '<skipped message="SKIP_RETURN_CODE=77"/>'
        code, text = self.run_summary(("a", "unit", "run", "", ""),
                                      ("b", "house", "notrun", skipped, "SKIP: no room\n"),
                                      ("c", "unit", "notrun", skipped, "x_test.cc:3: Skipped\nno hugepages\n"))
        self.assertEqual(code, 0)
        self.assertIn("b: no room", text)
        self.assertIn("c: no hugepages", text)

    def test_a_skip_without_a_reason_fails(self):
        code, text = self.run_summary(("a", "unit", "run", "", ""),
                                      ("b", "unit", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/>', "quiet"))
        self.assertEqual(code, 1)
        self.assertIn("GIVES NO REASON", text)

    def test_a_run_in_which_nothing_passed_fails(self):
        self.assertEqual(self.run_summary()[0], 1)


if __name__ == "__main__":
    unittest.main()
