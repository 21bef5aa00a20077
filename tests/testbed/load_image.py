#!/usr/bin/python3
"""Makes the root image whose guest puts load on its disks and its network: fio, iperf3, ping, ip, mkfs and fsck."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources" / "guest"))

import recipe  # noqa: E402  (found through the line above)
import root_image  # noqa: E402

PACKAGES = ("e2fsprogs", "fio", "iperf3", "iproute2", "iputils-ping")
# Fio's package brings programs that draw diagrams, and with them the interpreters they are written in; the rest is
# what no program of these opens. L1 holds an image in memory, and its processor copies it there.
LEFT_OUT = ("usr/share/perl*", "usr/lib/*/perl*", "usr/bin/perl*", "usr/bin/*perl*", "usr/lib/*/libperl*",
            "usr/lib/python3*", "usr/share/python3*", "usr/bin/python3*", "usr/bin/pdb3*",
            "usr/lib/*/gconv", "usr/lib/*/libicui18n*", "usr/lib/*/libicuio*", "usr/lib/*/libicutest*", "usr/lib/*/libicutu*",
            "usr/lib/*/libmvec*", "usr/lib/*/libsqlite3*", "usr/lib/*/libdb-5*", "usr/share/doc/libboost*")


def build():
    """The path of the image."""
    return root_image.build(include=PACKAGES, exclude=LEFT_OUT)


if __name__ == "__main__":
    sys.exit(recipe.main(__doc__, build))
