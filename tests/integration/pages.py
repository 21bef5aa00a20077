"""What the tests that run a page's commands share.

The blocks of a page that are marked sh are one shell session, in a folder of its own. A block marked json or text right
behind one is what it prints: as JSON the same value, as text the same words, with any number where `mayfly ps` has
those of processes.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from bare_guests import HANG, Case, guest, program

ROOT = Path(__file__).resolve().parents[2]
END = "--- the block's end ---"

# Processes of its own: the commands of a page see no microVM but the page's, and none outlives it.
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def words_of(text):
    """The words of each line. In the second place, where `mayfly ps` has processes, any number is the same."""
    lines = [line.split() for line in text.strip().splitlines()]
    return [[*line[:1], *(re.sub(r"^\d+$", "PID", word) for word in line[1:2]), *line[2:]] for line in lines]


class PageCase(Case):
    def blocks(self, name, at_least):
        """(commands, kind of what is expected, what is expected)"""
        blocks = re.findall(r"^```sh\n(.*?)^```\n(?:\n^```(json|text)\n(.*?)^```)?", page(name), re.M | re.S)
        self.assertGreaterEqual(len(blocks), at_least)
        return blocks

    def session(self, blocks, command=("bash",), **environment):
        """Runs the blocks and returns what each printed."""
        script = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(
            f"{commands}printf '\\n%s\\n' \"{END}\"\n" for commands, _, _ in blocks)
        done = subprocess.run([*command, "-euo", "pipefail", "-c", script], env={**os.environ, **environment}, timeout=HANG,
                              cwd=environment.get("HOME", ROOT), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        printed = done.stdout.split(END)
        self.assertEqual(len(printed), len(blocks) + 1)
        return printed

    def expect_printed(self, blocks, printed):
        for (commands, kind, expected), found in zip(blocks, printed):
            with self.subTest(commands=commands):
                if kind == "json":
                    self.assertEqual(json.loads(found), json.loads(expected))
                elif kind == "text":
                    self.assertEqual(words_of(found), words_of(expected))
                else:
                    self.assertEqual(found.strip(), "")

    def run_at_home(self, name, at_least):
        """As somebody who has `mayfly` on the PATH, and vmlinux and initramfs.cpio in the folder."""
        if subprocess.run([*ALONE, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0:
            self.skipTest("this user can make no namespace of processes")
        os.mkdir(self.path("bin"))
        os.symlink(program(), self.path("bin/mayfly"))
        shutil.copy(guest("spin"), self.path("vmlinux"))
        self.write("initramfs.cpio", "any")
        blocks = [(commands, kind, expected.replace("/home/me", self.folder)) for commands, kind, expected
                  in self.blocks(name, at_least)]
        self.expect_printed(blocks, self.session(blocks, (*ALONE, "bash"), HOME=self.folder,
                                                 PATH=self.path("bin") + ":" + os.environ["PATH"]))
