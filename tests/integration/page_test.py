#!/usr/bin/python3
"""Runs the commands of docs/shell.md, docs/metadata.md and docs/snapshots.md, with a bare guest as their kernel.

  page_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

pages.py says how. A host without a usable /dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import shutil

from bare_guests import main
from pages import PageCase


class Commands(PageCase):
    def test_the_page_on_the_shell_does_what_it_says(self):
        self.run_at_home("shell.md", 6)

    def test_the_page_on_metadata_does_what_it_says(self):
        if not shutil.which("passt"):
            self.skipTest("passt is not installed")
        self.run_at_home("metadata.md", 5)

    def test_the_page_on_snapshots_does_what_it_says(self):
        self.run_at_home("snapshots.md", 5)


if __name__ == "__main__":
    main(__doc__)
