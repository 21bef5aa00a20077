#!/usr/bin/python3
"""Tests of the root images as they are made from packages: sound, small, and with everything a guest starts from."""

import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True

import load_image  # noqa: E402
import recipe  # noqa: E402  (found through load_image)
import root_image  # noqa: E402


def debugfs(image, request):
    return recipe.run(["debugfs", "-R", request, image]).decode()


def inode(image, path):
    """(type, mode, owner, group) of a path; None where there is none."""
    found = re.search(r"Type: (.*?)\s+Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)", debugfs(image, f"stat {path}"), re.S)
    return found and (found[1], int(found[2], 8), int(found[3]), int(found[4]))


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.image = root_image.build()

    def check_sound(self, image):
        done = subprocess.run([shutil.which("e2fsck", path=recipe.search_path()), "-fn", image],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertEqual(done.returncode, 0, done.stdout.decode())

    def test_file_system_is_clean(self):
        self.check_sound(self.image)

    def test_guest_finds_what_it_starts_from(self):
        for path, kind, mode in (("/usr/bin/busybox", "regular", 0o755), ("/usr/sbin/init", "symlink", 0o777),
                                 ("/sbin", "symlink", 0o777), ("/usr/bin/sh", "symlink", 0o777),
                                 ("/etc/init.d/start", "regular", 0o755), ("/etc/inittab", "regular", 0o644),
                                 ("/etc/os-release", "symlink", 0o777), ("/etc/packages", "regular", 0o644),
                                 ("/dev/console", "character special", 0o600), ("/tmp", "directory", 0o1777),
                                 ("/root", "directory", 0o700), ("/proc", "directory", 0o755),
                                 ("/usr/lib64/ld-linux-x86-64.so.2", None, None)):
            found = inode(self.image, path)
            self.assertIsNotNone(found, path)
            self.assertEqual(found[2:], (0, 0), f"the owner of {path}")
            if kind:
                self.assertEqual(found[:2], (kind, mode), path)
        self.assertIn("respawn", debugfs(self.image, "cat /etc/inittab"))

    def test_nothing_is_left_of_the_making(self):
        for path in ("/var/lib/apt", "/etc/apt", "/usr/share/man", "/usr/share/locale"):
            self.assertIsNone(inode(self.image, path), path)

    def test_second_call_makes_nothing(self):
        with mock.patch("recipe.cached", side_effect=lambda name, key, build: recipe.cache_root() / name / key):
            self.assertEqual(root_image.build(), self.image)

    def test_same_input_gives_the_same_image(self):
        archive = root_image.packages_archive(sorted(root_image.BASE_PACKAGES), root_image.host_suite())
        with tempfile.TemporaryDirectory() as folder:
            root_image.make_image(Path(folder), archive, None, (), self.image.parent.name)
            self.assertEqual(recipe.digest(Path(folder) / "root.ext4"), recipe.digest(self.image))

    def test_size_is_the_asked_one_or_an_error(self):
        archive = root_image.packages_archive(sorted(root_image.BASE_PACKAGES), root_image.host_suite())
        with tempfile.TemporaryDirectory() as folder:
            root_image.make_image(Path(folder), archive, 1 << 30, (), "large")
            image = Path(folder) / "root.ext4"
            self.assertEqual(image.stat().st_size, 1 << 30)
            self.assertLess(image.stat().st_blocks * 512, 128 << 20, "free space is a hole")
            self.check_sound(image)
            with self.assertRaises(recipe.RecipeError):
                root_image.make_image(Path(folder), archive, 16 << 20, (), "small")

    def test_load_image_has_its_programs_and_stays_small(self):
        image = load_image.build()
        self.check_sound(image)
        self.assertLess(image.stat().st_size, 300 << 20)
        for program in ("bin/fio", "bin/iperf3", "bin/ping", "bin/ip", "sbin/mkfs.ext4", "sbin/fsck.ext4"):
            found = inode(image, f"/usr/{program}")
            self.assertIsNotNone(found, program)
        self.assertNotIn("busybox", debugfs(image, "stat /usr/bin/ip"), "the real one")


if __name__ == "__main__":
    unittest.main()
