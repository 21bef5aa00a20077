#!/usr/bin/python3
"""Linux guests with virtio disks and networks, in the testbed: with the small kernel and with Debian's own, whose drivers
are modules; their systems on a disk, verified data under load, what a killed monitor leaves, overlays, locks, errors under
way, taps, passt, drivers that go and come, the metadata service, snapshots under load.

  virtio_test.py --mayfly BINARY [--only REGEX] [--list] [-v]

Each case is a function of virtio/disks.sh, networks.sh or snapshots.sh, which runs beside the microVMs it starts, on the host or
in L1, and holds the scripts of their guests. virtio/lib.sh and virtio/guest.sh are the words of the two sides.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import linux_test
import testbed
from testbed import Case

import debian_kernel  # found through testbed
import initramfs
import load_image
import newc
import recipe
import root_image
import small_kernel

SCRIPTS = Path(__file__).resolve().parent / "virtio"
# What a guest's kernel says where its disk fails or goes away as the case wants it.
DISK_IS_GONE = [
    (r"(critical target|I/O) error, dev vda, sector .*|Buffer I/O error on dev vda, .*", "the case takes the disk away"),
    (r"virtio_blk virtio\d+: \[vda\] .*", "a disk is found: at level notice"),
]
READ_ONLY = [(r"EXT4-fs \(vda\): .*|/dev/vda: .*|I/O error, dev vda, .*", "the case writes to a read-only disk")]
# Stripped of what they are too large with.
MODULES = [(r"\w+: module verification failed: signature and/or required key missing - tainting kernel", "our modules")]
# Of systemd's packages, what a system that is only started and ended does without; see load_image.LEFT_OUT.
SYSTEMD_LEAVES_OUT = (*load_image.LEFT_OUT, "usr/share/zoneinfo", "usr/share/i18n", "usr/lib/udev/hwdb.d",
                      "usr/lib/udev/hwdb.bin", "usr/share/keymaps", "usr/share/consolefonts")
# Cloud-init asks the metadata service, and curl; of what they need, what reading it does not.
CLOUD_PACKAGES = ("cloud-init", "curl")
CLOUD_LEAVES_OUT = (*(path for path in load_image.LEFT_OUT if "python" not in path), "usr/share/i18n",
                    "usr/share/zoneinfo", "usr/lib/python3.*/test", "usr/lib/python3.*/pydoc_data",
                    "usr/lib/python3.*/lib2to3")
# It would ask questions on the console at its first start, and these are all.
SYSTEMD_WORDS = " systemd.firstboot=off systemd.unit=basic.target systemd.show_status=1"
WITHOUT_ACPI = [(r"(ACPI|APIC|MPTABLE|Intel MultiProcessor|smpboot|SMP|..MP-BIOS).*", "ACPI is off")]


class Suite:
    """The cases and what is expected of each."""

    def __init__(self, mayfly, scratch, hardware, **common):
        """`common` are more values of every case."""
        del scratch
        recipe.need_tools("mke2fs=e2fsprogs", "e2fsck=e2fsprogs", "ip=iproute2", "passt")
        small, debian = small_kernel.build() / "vmlinux", debian_kernel.build() / "vmlinux"
        words = linux_test.kernel_words(hardware)
        self._root = not hardware or os.geteuid() == 0
        self._common = {"guest_words": SCRIPTS / "guest.sh", "mayfly": mayfly,
                        "e2fsck": tool("e2fsck"), "mke2fs": tool("mke2fs"), "ip": tool("ip"), **common}
        self.kernels = {
            "small": {"kernel": small, "cmdline": f"{words} reboot=k", "initrd": guest_initramfs(None)},
            "debian": {"kernel": debian, "cmdline": f"{words} reboot=k",
                       "initrd": guest_initramfs(debian.parent / "modules")}}
        self.entries = []  # (Case, check)
        self.fill(small, debian, words)

    def fill(self, small, debian, words):
        self.systems(small, debian, words)
        self.disks()
        self.networks()

    def systems(self, small, debian, words):
        image, load, root = root_image.build(), load_image.build(), initramfs.build("root")
        for name, kernel, initrd, more in (("small", small, "", ""), ("small_without_acpi", small, "", " acpi=off"),
                                           ("debian", debian, root, "")):
            values = {"kernel": kernel, "initrd": initrd, "cmdline": f"{words} reboot=k{more}"}
            self.add(f"root_{name}", "disks", "root", values, image=image, cost=4,
                     allowed=WITHOUT_ACPI if more else ())
            if not more:
                self.add(f"fio_{name}", "disks", "fio", values, image=load, cost=6)
        self.shutdowns(small, debian, root, words)
        values = {"kernel": small, "initrd": "", "cmdline": f"{words} reboot=k"}
        self.add("iperf_between_two", "networks", "iperf", values, image=load, cost=6)
        self.add("snapshots_under_load", "snapshots", "load", values, image=load, call=call_program(), cost=8)
        self.add("snapshots_read_ahead", "snapshots", "read_ahead", self.kernels["small"], call=call_program(), cost=3)

        image = root_image.build(include=CLOUD_PACKAGES, exclude=CLOUD_LEAVES_OUT)
        for version in ("V1", "V2"):
            self.add(f"net_cloud_init_{version.lower()}", "networks", "cloud_init", values, image=image, version=version,
                     cost=6)

    def shutdowns(self, small, debian, root, words):
        """Of an init that is busybox, with a kernel that knows no keyboard and with one that does, and of systemd."""
        busybox = {"image": root_image.build(), "ready": "This is a microVM's root shell",
                   "farewell": "Requesting system poweroff"}
        systemd = {"image": root_image.build(include=("systemd-sysv",), exclude=SYSTEMD_LEAVES_OUT),
                   "ready": "Reached target .*basic.target", "farewell": "Reached target .*poweroff.target"}
        for name, kernel, initrd, more, values in (
                ("without_keyboard", small, "", "", busybox), ("busybox", debian, root, "", busybox),
                ("systemd", debian, root, SYSTEMD_WORDS, systemd)):
            values = {**values, "kernel": kernel, "initrd": initrd, "cmdline": f"{words} reboot=k{more}"}
            self.add(f"shutdown_{name}", "disks", "shutdown", values, call=call_program(), cost=5)

    def disks(self):
        for engine in ("Sync", "Async"):
            for name, kernel, allowed in (
                    ("kill", "small", ()), ("truncated", "small", DISK_IS_GONE),
                    ("rebind", "small", DISK_IS_GONE), ("reboot", "small", ())):
                self.add(f"disk_{name}_{kernel}_{engine.lower()}", "disks", name, self.kernels[kernel], engine=engine,
                         allowed=allowed, cost=4)
        for kernel, values in self.kernels.items():
            self.add(f"disk_queues_{kernel}", "disks", "queues", values, cost=5)
        self.add("disk_overlay", "disks", "overlay", self.kernels["small"], cost=5)
        for kernel, values in self.kernels.items():
            self.add(f"many_{kernel}", "disks", "many", values, disks="a b c d e f g h i j k l", nets="1 2 3 4", cost=4)
        # As many as there are interrupts: without ACPI the MP table tells of the IO-APIC's, and of the second processor.
        values = {**self.kernels["small"], "cmdline": f"{self.kernels['small']['cmdline']} acpi=off"}
        self.add("many_small_without_acpi", "disks", "many", values, disks="a b c d e f g h i j k l m n", nets="1 2 3 4",
                 allowed=WITHOUT_ACPI, cost=4)
        self.add("disk_lock", "disks", "lock", self.kernels["small"])
        self.add("disk_read_only", "disks", "read_only", self.kernels["small"], allowed=READ_ONLY)

    def networks(self):
        for kernel, values in self.kernels.items():
            self.add(f"net_taps_{kernel}", "networks", "taps", values, cost=4)
            self.add(f"net_user_{kernel}", "networks", "user", values, passt=tool("passt"), cost=4)
        for version in ("V1", "V2"):
            self.add(f"net_metadata_{version.lower()}", "networks", "metadata", self.kernels["small"], version=version,
                     passt=tool("passt"), call=call_program(), cost=3)
        # Debian's driver has two queues in net_taps_debian; four processors of its kernel start slowly here.
        self.add("net_queues", "networks", "queues", self.kernels["small"], cost=4)
        self.add("net_rebind", "networks", "rebind", self.kernels["small"], cost=4)

    def add(self, name, script, function, values, allowed=(), cost=2, **more):
        values = {**self._common, **values, **more, "cases": SCRIPTS / f"{script}.sh"}
        words = [word for key, value in values.items() for word in (key, value)]
        # Root needs no right to be root inside, and where it is, passt is somebody else.
        unshare = ["unshare", "-n"] if self._root else ["unshare", "-r", "-n"]
        command = [Path("/bin/busybox"), *unshare, "/bin/busybox", "sh", SCRIPTS / "lib.sh", function, *words]
        self.entries.append((Case(name, command, timeout=150, cost=cost), check([*MODULES, *allowed])))


def tool(name):
    return Path(shutil.which(name, path=recipe.search_path())).resolve()


def call_program():
    """A client of the control API that runs anywhere."""
    return recipe.static_program(SCRIPTS / "call.c")


def guest_initramfs(modules):
    """The busybox initramfs with the programs for file systems, and drivers from the folder `modules`."""
    base = initramfs.build("busybox")
    programs = [tool("mke2fs"), tool("e2fsck")]
    # Not by their own names: busybox's shell takes its own mke2fs before any other.
    files = dict(zip(("sbin/mkfs.ext4", "sbin/fsck.ext4"), programs))
    files |= {library[1:]: Path(library) for program in programs for library in testbed.libraries_of(program)}
    names = debian_kernel.module_closure(modules, initramfs.ROOT_MODULES) if modules else []
    files |= {f"modules/{name}.ko": modules / f"{name}.ko" for name in names}

    def write(folder):
        with open(folder / "initramfs.cpio", "wb") as out:
            out.write(base.read_bytes())
            archive = newc.Archive(out)
            for name, path in files.items():
                archive.file(name, path, 0o755)
            if names:
                archive.file("modules/load", "".join(f"{name}\n" for name in names).encode())
            archive.finish()

    key = recipe.digest(base, *names, *files.values(), Path(__file__))
    return recipe.cached("initramfs-virtio-test", key, write) / "initramfs.cpio"


def check(allowed):
    def check_case(test, result):
        linux_test.expect_end(test, result)
        logs = re.findall(r"GUEST begin complaints\n(.*?)GUEST end complaints", result.stdout.replace("\r", ""), re.S)
        for log in logs:
            complaints = linux_test.kernel_complaints(log, test.hardware, allowed)
            test.assertEqual(complaints, [], "\n".join(["the kernel complains:", *complaints]))
    return check_case


if __name__ == "__main__":
    sys.exit(linux_test.main(__doc__, Suite))
