"""Writes initramfs archives (cpio "newc", the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

Own writer, because a device node such as /dev/console can then be in the archive without root, and because one
input gives one output: owner 0:0, time 0, entries in the order they were added.
"""

import stat


class Archive:
    """An archive being written to the binary file `out`. Parent folders are added by themselves."""

    def __init__(self, out):
        self._out = out
        self._folders = {""}
        self._inode = 0

    def folder(self, path, mode=0o755):
        parent = path.rpartition("/")[0]
        if parent not in self._folders:
            self.folder(parent)
        if path not in self._folders:
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | mode)

    def file(self, path, data, mode=0o644):
        """`data`: bytes, or a Path whose content is taken."""
        self._entry(path, stat.S_IFREG | mode, data if isinstance(data, bytes) else data.read_bytes())

    def link(self, path, target):
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path, major, minor, mode=0o600):
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self):
        self._entry("TRAILER!!!", 0)

    def _entry(self, path, mode, data=b"", device=(0, 0)):
        parent = path.rpartition("/")[0]
        if parent not in self._folders:
            self.folder(parent)
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._out.write(head + bytes(-len(head) % 4))
        self._out.write(data)
        self._out.write(bytes(-len(data) % 4))
