#!/usr/bin/python3
"""Makes an initramfs (uncompressed cpio) for a guest.

  busybox     a shell, or the jobs of the kernel command line's mayfly.job=ONE,TWO,... (see init/init.sh)
  boot-mark   a first process that says HELLO in the kernel's log and reboots: for timing boots
  root        for Debian's kernel: loads its disk and network drivers and goes on with the file system that the
              kernel command line's root= names
  large       as busybox, and 50 MB of data with their checksum, for the job `checksum`
"""

import hashlib
import random
import shutil
import sys
from pathlib import Path

import debian_kernel
import newc
import recipe
from recipe import HERE, RecipeError

VARIANTS = ("busybox", "boot-mark", "root", "large")
ROOT_MODULES = ("virtio-mmio", "virtio-blk", "virtio-net", "virtio-rng")
LARGE_SIZE = 50_000_000


def build(variant):
    """The path of the archive."""
    sources = sorted((HERE / "init").iterdir())
    program = busybox()
    modules = debian_kernel.build() / "modules" if variant == "root" else None  # named by what is in it
    key = recipe.digest(variant, program, str(modules), *sources, HERE / "initramfs.py", HERE / "newc.py")
    return recipe.cached(f"initramfs-{variant}", key,
                         lambda folder: write(folder, variant, program, modules)) / "initramfs.cpio"


def busybox():
    """The host's busybox, which has to be a static one."""
    path = shutil.which("busybox", path=recipe.search_path())
    # A dynamic program names its interpreter near its start.
    if not path or b"/ld-linux" in Path(path).read_bytes()[:4096]:
        raise RecipeError("a static busybox is needed; install it with: apt-get install busybox-static")
    return Path(path)


def write(folder, variant, program, modules):
    with open(folder / "initramfs.cpio", "wb") as out:
        archive = newc.Archive(out)
        archive.character_device("dev/console", 5, 1)
        if variant == "boot-mark":
            recipe.need_tools("cc=gcc")
            compiled = folder / "boot_mark"
            recipe.run(["cc", "-O2", "-static", "-s", "-o", compiled, HERE / "init" / "boot_mark.c"])
            archive.character_device("dev/kmsg", 1, 11)
            archive.file("init", compiled, 0o755)
            compiled.unlink()
        elif variant == "root":
            archive.file("init", HERE / "init" / "root.sh", 0o755)
            archive.file("bin/busybox", program, 0o755)
            names = debian_kernel.module_closure(modules, ROOT_MODULES)
            archive.file("modules/load", "".join(f"{name}\n" for name in names).encode())
            for name in names:
                archive.file(f"modules/{name}.ko", modules / f"{name}.ko")
        else:
            archive.file("init", HERE / "init" / "init.sh", 0o755)
            archive.file("bin/busybox", program, 0o755)
            archive.file("etc/shell", HERE / "init" / "shell.sh")
        if variant == "large":
            payload = random.Random(LARGE_SIZE).randbytes(LARGE_SIZE)
            archive.file("payload", payload)
            # Against accident, not malice; and quick where the guest's processor is emulated.
            archive.file("payload.md5", f"{hashlib.md5(payload).hexdigest()}  payload\n".encode())
        archive.finish()


if __name__ == "__main__":
    sys.exit(recipe.main(__doc__, build, variant=VARIANTS))
