#!/usr/bin/python3
"""Runs the commands of docs/jail.md, with a bare guest as its kernel.

  jail_page_test.py --mayfly STATIC_BINARY --guests FOLDER --jailer BINARY [unittest's own arguments]

The blocks marked sh are one shell session, as root.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from bare_guests import HANG, Case, guest, main, program

ROOT = Path(__file__).resolve().parents[2]
JAILER = ""


class Commands(Case):
    def test_the_page_does_what_it_says(self):
        blocks = re.findall(r"^```sh\n(.*?)^```\n", (ROOT / "docs/jail.md").read_text(encoding="utf-8"), re.M | re.S)
        self.assertGreater(len(blocks), 8)
        name, user = f"page{os.getpid()}", "200123"
        # Whatever happens, nothing stays: neither the microVM nor the namespace.
        script = (f"trap 'kill -9 $PID 2>/dev/null || true; ip netns delete {name} 2>/dev/null || true' EXIT; PID=\n" +
                  "".join(blocks))
        environment = {**os.environ, "MAYFLY": program(), "JAILER": JAILER, "KERNEL": guest("spin"),
                       "INITRD": self.write("initrd", "any"), "JAILS": self.path("jails"), "ID": name, "USER_ID": user}
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment, timeout=HANG,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        self.assertEqual(done.stderr, "")
        for text in (f"Uid:\t{user}\t{user}\t{user}\t{user}\n", f"CapEff:\t{'0' * 16}\n", f"CapBnd:\t{'0' * 16}\n",
                     "NoNewPrivs:\t1\n", "\nvm.json\n", "/root/console\n"):
            self.assertIn(text, done.stdout)
        self.assertEqual(sorted(os.listdir(self.folder)), ["initrd", "jails"])
        self.assertEqual(os.listdir(self.path("jails")), [])
        self.assertFalse(os.path.exists(f"/run/netns/{name}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jailer", required=True)
    options, sys.argv[1:] = parser.parse_known_args()
    JAILER = os.path.abspath(options.jailer)
    if os.geteuid() != 0:
        print("SKIP: a jail takes root to make")
        sys.exit(77)
    main(__doc__)
