#!/usr/bin/python3
"""Runs the commands of docs/api.md, with a bare guest as its kernel, and holds its tables to the API's description.

  api_page_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

The blocks marked sh are one shell session. A block marked json right behind one is what it prints. Only the class
Commands needs a usable /dev/kvm.
"""

import json
import os
import re
import subprocess
import unittest
from pathlib import Path

from bare_guests import HANG, Case, guest, main, program

import yaml

ROOT = Path(__file__).resolve().parents[2]
END = "--- the block's end ---"


def page():
    return (ROOT / "docs/api.md").read_text(encoding="utf-8")


class Commands(Case):
    def test_the_page_does_what_it_says(self):
        blocks = re.findall(r"^```sh\n(.*?)^```\n(?:\n^```json\n(.*?)^```)?", page(), re.M | re.S)
        self.assertGreater(len(blocks), 10)
        script = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(
            f"{commands}printf '\\n%s\\n' \"{END}\"\n" for commands, _ in blocks)
        environment = {**os.environ, "MAYFLY": program(), "KERNEL": guest("spin"), "INITRD": self.write("initrd", "any"),
                       "TMPDIR": self.folder}
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment, timeout=HANG,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        printed = done.stdout.split(END)
        self.assertEqual(len(printed), len(blocks) + 1)
        for (commands, expected), found in zip(blocks, printed):
            with self.subTest(commands=commands):
                if expected:
                    self.assertEqual(json.loads(found), json.loads(expected))
                elif "print(" not in commands:
                    self.assertEqual(found.strip(), "")
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
        for calls, before, after in re.findall(r"^\| (.*`.*) \| (yes|no) \| (yes|no) \|$", page(), re.M):
            when = {("yes", "yes"): "always", ("yes", "no"): "before start", ("no", "yes"): "after start"}[before, after]
            for call in re.findall(r"`([A-Z]+ /[^`]*)`", calls):
                if call != "PUT /actions":
                    self.assertNotIn(call, told)
                    told[call] = when
        self.assertEqual(told, described)
        for path in refused:
            self.assertIn(f"{path}`", page())


if __name__ == "__main__":
    main(__doc__, without_kvm=("Tables",))
