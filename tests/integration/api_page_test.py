#!/usr/bin/python3
"""Runs the commands of docs/api.md, with a bare guest as its kernel, and holds its tables to the API's description.

  api_page_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

pages.py says how. Only the class Commands needs a usable /dev/kvm.
"""

import os
import re
import unittest

from bare_guests import guest, main, program
from pages import ROOT, PageCase, page

import yaml


class Commands(PageCase):
    def test_the_page_does_what_it_says(self):
        blocks = self.blocks("api.md", 10)
        printed = self.session(blocks, MAYFLY=program(), KERNEL=guest("spin"), INITRD=self.write("initrd", "any"),
                               TMPDIR=self.folder)
        self.expect_printed(blocks, printed)
        self.assertEqual(os.listdir(self.folder), ["initrd"])


class Tables(unittest.TestCase):
    def test_the_page_says_for_every_call_when_it_is_possible(self):
        with open(ROOT / "resources/openapi.yaml", encoding="utf-8") as file:
            paths = yaml.safe_load(file)["paths"]
        described, refused = {}, set()
        for path, item in paths.items():
            for method, operation in item.items():
                if "x-mayfly-refused" in operation:
                    refused.add(path)
                elif method != "parameters" and path != "/actions":
                    described[f"{method.upper()} {path}"] = operation["x-mayfly-when"]
        told = {}
        for calls, before, after in re.findall(r"^\| (.*`.*) \| (yes|no) \| (yes|no) \|$", page("api.md"), re.M):
            when = {("yes", "yes"): "always", ("yes", "no"): "before start", ("no", "yes"): "after start"}[before, after]
            for call in re.findall(r"`([A-Z]+ /[^`]*)`", calls):
                if call != "PUT /actions":
                    self.assertNotIn(call, told)
                    told[call] = when
        self.assertEqual(told, described)
        for path in refused:
            self.assertIn(f"{path}`", page("api.md"))


if __name__ == "__main__":
    main(__doc__, without_kvm=("Tables",))
