#!/usr/bin/python3
"""Fetches Debian's stock cloud kernel, unpacked and not installed.

Artifacts:
  bzImage          the kernel as Debian ships it
  vmlinux          the ELF inside it, with a PVH entry
  vmlinux-nopvh    the same without the PVH note: for the 64-bit boot protocol
  config           its configuration
  modules/*.ko     the modules a testbed or a guest may want, unpacked and without debug data;
  modules/order    lines "NAME: NAMES it depends on", each after those; what is built into the kernel is not there
"""

import lzma
import re
import sys
from pathlib import Path

import recipe
from kernel_image import drop_pvh_note, extract_elf
from recipe import HERE, RecipeError

MODULES = ("kvm-amd", "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "tun", "vhost_net", "virtio-rng", "null_blk")


def build():
    package = recipe.debian_dependency("linux-image-cloud-amd64", r"linux-image-\d\S*-cloud-amd64")
    version = recipe.debian_version(package)
    key = recipe.digest(package, version, HERE / "debian_kernel.py", HERE / "kernel_image.py")
    return recipe.cached("debian-kernel", f"{version.replace('~', '-')}-{key}",
                         lambda directory: unpack_kernel(directory, package, version))


def unpack_kernel(directory, package, version):
    recipe.need_tools("strip=binutils")
    work = directory / "work"
    recipe.debian_unpack(package, version, work)
    image, = work.glob("boot/vmlinuz-*")
    config, = work.glob("boot/config-*")
    image.rename(directory / "bzImage")
    config.rename(directory / "config")
    elf = extract_elf((directory / "bzImage").read_bytes())
    (directory / "vmlinux").write_bytes(elf)
    (directory / "vmlinux-nopvh").write_bytes(drop_pvh_note(elf))
    unpack_modules(work, directory / "modules")
    recipe.shutil.rmtree(work)


def unpack_modules(tree, target):
    available = {}
    for path in tree.rglob("*.ko*"):
        available[path.name.split(".ko")[0].replace("_", "-")] = path
    listing, = tree.rglob("modules.builtin")
    built_in = {Path(line).stem.replace("_", "-") for line in listing.read_text(encoding="ascii").splitlines()}
    target.mkdir()
    order = {}

    def take(name):
        name = name.replace("_", "-")
        if name in order or name in built_in:
            return
        if name not in available:
            raise RecipeError(f"the kernel package has no module {name}")
        data = available[name].read_bytes()
        if available[name].suffix == ".xz":
            data = lzma.decompress(data)
        # .modinfo is a list of "key=value" strings, each ended by a zero byte.
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        needs = [other.replace("_", "-") for other in depends[1].decode().split(",") if other] if depends else []
        for other in needs:
            take(other)
        (target / f"{name}.ko").write_bytes(data)
        recipe.run(["strip", "--strip-debug", target / f"{name}.ko"])
        order[name] = needs

    for name in MODULES:
        take(name)
    (target / "order").write_text("".join(f"{name}: {' '.join(needs)}\n" for name, needs in order.items()))


def module_closure(directory, names):
    """The modules `names` and what they depend on, in the order to load them. Built-in ones are not in the list."""
    needs = {}
    for line in (directory / "order").read_text(encoding="ascii").splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    wanted = set()

    def want(name):
        if name in needs and name not in wanted:
            wanted.add(name)
            for other in needs[name]:
                want(other)

    for name in names:
        want(name.replace("_", "-"))
    return [name for name in needs if name in wanted]


if __name__ == "__main__":
    sys.exit(recipe.main(__doc__, build))
