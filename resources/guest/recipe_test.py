#!/usr/bin/python3
"""Tests of what the recipes are made of: the cache, the archive writer, the kernel image tools."""

import gzip
import io
import os
import struct
import sys
import tarfile
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True

import debian_kernel  # noqa: E402
import kernel_image  # noqa: E402
import newc  # noqa: E402
import recipe  # noqa: E402
import root_image  # noqa: E402


class CacheTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for patch in (mock.patch.dict(os.environ, MAYFLY_CACHE_DIR=folder.name), mock.patch("recipe.say")):
            patch.start()
            self.addCleanup(patch.stop)

    def test_second_call_builds_nothing(self):
        built = []
        for _ in range(2):
            path = recipe.cached("thing", "key", lambda directory: (directory / "file").touch() or built.append(1))
        self.assertEqual((len(built), (path / "file").exists()), (1, True))

    def test_failed_build_leaves_nothing(self):
        def build(directory):
            (directory / "half").touch()
            raise recipe.RecipeError("no")

        with self.assertRaises(recipe.RecipeError):
            recipe.cached("thing", "key", build)
        self.assertEqual([path.name for path in (self.root / "thing").iterdir()], ["key.lock"])

    def test_leftovers_of_a_killed_build_do_not_get_in(self):
        leftover = self.root / "thing" / ".key.partial"
        leftover.mkdir(parents=True)
        (leftover / "half").touch()
        path = recipe.cached("thing", "key", lambda directory: (directory / "whole").touch())
        self.assertEqual([file.name for file in path.iterdir()], ["whole"])

    def test_two_at_once_build_once(self):
        built = []
        other_waits = threading.Event()
        recipe.say.side_effect = lambda text: "waiting" in text and other_waits.set()
        other = threading.Thread(target=recipe.cached, args=("thing", "key", built.append))

        def build(directory):
            built.append(directory)
            other.start()
            self.assertTrue(other_waits.wait(30))

        recipe.cached("thing", "key", build)
        other.join()
        self.assertEqual(len(built), 1)

    def test_digest_depends_on_every_input(self):
        file = self.root / "input"
        file.write_bytes(b"one")
        first = recipe.digest("a", file)
        file.write_bytes(b"two")
        self.assertEqual(len({first, recipe.digest("a", file), recipe.digest("b", file), recipe.digest("ab", "")}), 4)


def read_archive(data):
    """(path, mode, content, device) of each entry, read by the kernel's description of the format."""
    entries, position = [], 0
    while True:
        assert data[position:position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * index:position + 14 + 8 * index], 16) for index in range(13)]
        assert fields[2:4] == [0, 0], "owned by root"
        name_end = position + 110 + fields[11]
        name = data[position + 110:name_end - 1].decode()
        content = (name_end + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries.append((name, fields[1], data[content:content + fields[6]], tuple(fields[9:11])))
        position = (content + fields[6] + 3) & ~3


class ArchiveTest(unittest.TestCase):
    def test_archive_reads_back_as_it_was_written(self):
        out = io.BytesIO()
        archive = newc.Archive(out)
        archive.file("deep/er/file", b"texts", 0o640)
        archive.link("link", "deep")
        archive.character_device("dev/console", 5, 1)
        archive.finish()
        self.assertEqual(read_archive(out.getvalue()), [
            ("deep", 0o40755, b"", (0, 0)), ("deep/er", 0o40755, b"", (0, 0)), ("deep/er/file", 0o100640, b"texts", (0, 0)),
            ("link", 0o120777, b"deep", (0, 0)), ("dev", 0o40755, b"", (0, 0)), ("dev/console", 0o20600, b"", (5, 1))])

    def test_same_input_gives_the_same_archive(self):
        def write():
            out = io.BytesIO()
            archive = newc.Archive(out)
            archive.file("file", b"abc")
            archive.finish()
            return out.getvalue()

        self.assertEqual(write(), write())


def elf_with_note(name=b"Xen\0", kind=18, count=1):
    note = (struct.pack("<III", len(name), 4, kind) + name + b"\0\0\0\1") * count
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4) + note


def bzimage(payload):
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


class KernelImageTest(unittest.TestCase):
    def test_note_is_renamed_and_nothing_else_changed(self):
        before = elf_with_note()
        after = kernel_image.drop_pvh_note(before)
        self.assertEqual(len(after), len(before))
        self.assertNotIn(struct.pack("<II", 4, 18) + b"Xen\0", after)
        with self.assertRaises(recipe.RecipeError):
            kernel_image.drop_pvh_note(after)

    def test_note_of_another_owner_or_kind_is_no_pvh_note(self):
        for elf in (elf_with_note(name=b"GNU\0"), elf_with_note(kind=17), elf_with_note(count=2)):
            with self.assertRaises(recipe.RecipeError):
                kernel_image.drop_pvh_note(elf)

    def test_elf_is_taken_out_of_a_bzimage_without_its_relocations(self):
        elf = elf_with_note()
        self.assertEqual(kernel_image.extract_elf(bzimage(gzip.compress(elf + b"relocations"))), elf)

    def test_other_files_are_refused(self):
        for image in (b"", b"\0" * 4096, bzimage(b"unknown compression"), bzimage(gzip.compress(b"no elf"))):
            with self.assertRaises(recipe.RecipeError):
                kernel_image.extract_elf(image)


class RootTreeTest(unittest.TestCase):
    """What of the packages gets into a root image, and where."""

    def take(self, entries, exclude=()):
        """`entries`: (path, data, or a link's target after -> or =>, which is a hard one)."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for path, content in entries:
                info = tarfile.TarInfo(path)
                info.mtime = 1e9
                info.uid = 42
                if content is None:
                    info.type = tarfile.DIRTYPE
                elif content[:2] in ("->", "=>"):
                    info.type, info.linkname = tarfile.SYMTYPE if content[0] == "-" else tarfile.LNKTYPE, content[2:]
                else:
                    info.size = len(content)
                archive.addfile(info, io.BytesIO((content or "").encode()))
        tree = root_image.Tree()
        with tarfile.open(fileobj=io.BytesIO(data.getvalue())) as archive:
            tree.take(archive, exclude)
        return tree

    def read_back(self, tree):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as out:
            tree.write(out)
        return tarfile.open(fileobj=io.BytesIO(data.getvalue()))

    def test_packages_of_both_layouts_end_below_usr(self):
        tree = self.take([("./bin", None), ("./bin/old", "a"), ("./usr/bin/new", "b"), ("./lib64/loader", "c")])
        self.assertLessEqual({"usr/bin/old", "usr/bin/new", "usr/lib64/loader"}, set(tree.entries))
        for name in ("bin", "lib64"):
            self.assertEqual((tree.entries[name][0].type, tree.entries[name][0].linkname), (tarfile.SYMTYPE, f"usr/{name}"))
        self.assertTrue(tree.has_program("old"))
        self.assertFalse(tree.has_program("other"))

    def test_links_lead_where_they_led(self):
        tree = self.take([("./lib/x/liba.so", "->../../usr/lib/x/liba.so.1"), ("./bin/near", "->old"),
                          ("./usr/bin/up", "->../lib/thing"), ("./sbin/same", "=>./sbin/tool"), ("./sbin/tool", "t")])
        targets = {path: tree.entries[f"usr/{path}"][0].linkname for path in ("lib/x/liba.so", "bin/near", "bin/up", "sbin/same")}
        self.assertEqual(targets, {"lib/x/liba.so": "/usr/lib/x/liba.so.1", "bin/near": "old", "bin/up": "../lib/thing",
                                   "sbin/same": "usr/sbin/tool"})
        with self.read_back(tree) as archive:
            names = archive.getnames()
        self.assertLess(names.index("usr/sbin/tool"), names.index("usr/sbin/same"), "a hard link follows its target")

    def test_documentation_goes_and_copyright_stays(self):
        tree = self.take([("./usr/share/man/man1/a.1", ""), ("./usr/share/doc/a/changelog", ""), ("./dev/null", ""),
                          ("./usr/share/doc/a/copyright", ""), ("./usr/share/mankind", ""), ("./etc/apt/sources.list", "")])
        kept = {path for path in tree.entries if path.startswith(("usr/share/", "etc/apt", "dev/"))}
        self.assertEqual(kept, {"usr/share/doc/a/copyright", "usr/share/mankind"})

    def test_excluded_paths_stay_out_with_what_is_below(self):
        tree = self.take([("./usr/lib/python3.11", None), ("./usr/lib/python3.11/os.py", ""), ("./usr/lib/other", "")],
                         ["usr/lib/python3*"])
        self.assertEqual([path for path in tree.entries if path.startswith("usr/lib/")], ["usr/lib/other"])

    def test_one_input_gives_one_archive_whenever_it_came(self):
        with self.read_back(self.take([("./etc/b", "1"), ("./etc/a", "2")])) as archive:
            members = archive.getmembers()
        self.assertEqual({member.mtime for member in members}, {root_image.EPOCH})
        self.assertEqual([member.name for member in members], sorted(member.name for member in members))

    def test_programs_of_packages_go_before_busybox(self):
        tree = self.take([("./bin/busybox", "")])
        with self.read_back(self.take([("./bin/busybox", ""), ("./bin/ip", "real")])) as archive:
            root_image.fill(tree, archive, (), ["init", "ip", "ls"], ["a_1_all.deb"])
        self.assertEqual(tree.entries["usr/bin/ip"][1], b"real")
        self.assertEqual(tree.entries["usr/bin/ls"][0].linkname, "/usr/bin/busybox")
        self.assertEqual(tree.entries["usr/sbin/init"][0].linkname, "/usr/bin/busybox")
        self.assertEqual(tree.entries["etc/packages"][1], b"a_1_all\n")
        self.assertEqual(tree.entries["etc/init.d/start"][0].mode, 0o755)


class RootImageOptionsTest(unittest.TestCase):
    def test_sizes_are_mib_or_have_a_suffix(self):
        self.assertEqual([root_image.parse_size(text) >> 20 for text in ("64", "64M", "2g")], [64, 64, 2048])
        for text in ("0", "-1", "1.5G", "64K", "9999999999G", "99999999999", ""):
            with self.assertRaises(recipe.RecipeError, msg=text):
                root_image.parse_size(text)

    def test_names_that_could_be_options_or_commands_are_refused(self):
        self.assertEqual(root_image.parse_names("a-b,c+1 d.e", root_image.PACKAGE_NAME, ""), ["a-b", "c+1", "d.e"])
        for text in ("-o", "a;b", "$(x)", "A", "a/b", "a'"):
            with self.assertRaises(recipe.RecipeError, msg=text):
                root_image.parse_names(text, root_image.PACKAGE_NAME, "")

    def test_copy_is_whole_or_not_there(self):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "source", Path(folder) / "deep" / "target"
            source.write_bytes(b"new")
            target.parent.mkdir()
            target.write_bytes(b"old")
            with open(target, "rb") as in_use:
                root_image.copy(source, target)
                self.assertEqual((in_use.read(), target.read_bytes()), (b"old", b"new"))
            with self.assertRaises(recipe.RecipeError):
                root_image.copy(Path(folder) / "nothing", target)
            self.assertEqual(([file.name for file in target.parent.iterdir()], target.read_bytes()), (["target"], b"new"))
            os.mkfifo(Path(folder) / "fifo")
            for other in (Path(folder), Path(folder) / "fifo"):
                with self.assertRaises(recipe.RecipeError):
                    root_image.copy(source, other)


class ModuleClosureTest(unittest.TestCase):
    def test_modules_come_after_what_they_need_and_no_others(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "order").write_text("bypass: \nkvm: bypass\nother: \nkvm-amd: kvm\n", encoding="ascii")
            self.assertEqual(debian_kernel.module_closure(Path(folder), ["kvm_amd", "built-in"]), ["bypass", "kvm", "kvm-amd"])


if __name__ == "__main__":
    unittest.main()
