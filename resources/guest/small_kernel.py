#!/usr/bin/python3
"""Builds the small guest kernel from Debian's kernel source package.

tinyconfig and small-guest.config make a kernel without modules that holds what a microVM's guest needs.
Artifacts:
  vmlinux          stripped ELF with a PVH entry
  vmlinux-nopvh    the same without the PVH note: for the 64-bit boot protocol
  bzImage          the compressed image of the same build
  config           the full configuration it was built with
"""

import os
import re
import subprocess
import sys
import time

import recipe
from kernel_image import drop_pvh_note
from recipe import HERE, RecipeError, say

FRAGMENT = HERE / "small-guest.config"
# A kernel's banner names who built it, where and when; fixed values make two builds of one source the same.
IDENTITY = ["KBUILD_BUILD_USER=mayfly", "KBUILD_BUILD_HOST=guest", "KBUILD_BUILD_VERSION=1",
            "KBUILD_BUILD_TIMESTAMP=2020-01-01 00:00:00"]


def build():
    source = recipe.debian_dependency("linux-source", r"linux-source-\d+\.\d+")
    version = recipe.debian_version(source)
    key = recipe.digest(version, FRAGMENT, HERE / "small_kernel.py", HERE / "kernel_image.py")
    return recipe.cached("small-kernel", f"{version.replace('~', '-')}-{key}",
                         lambda directory: compile_kernel(directory, source, version))


def compile_kernel(directory, source, version):
    recipe.need_tools("make", "gcc", "ld=binutils", "flex", "bison", "bc", "xz=xz-utils", "lz4", "tar", "perl")
    work = directory / "work"
    recipe.debian_unpack(source, version, work)
    say("unpacking the source")
    archive, = work.glob("usr/src/linux-source-*.tar.xz")
    tree = work / "linux"
    tree.mkdir()
    recipe.run(["tar", "-C", tree, "--strip-components=1", "-xf", archive])

    make = ["make", "-C", tree, *IDENTITY]
    recipe.run([*make, "tinyconfig"])
    with open(tree / ".config", "ab") as config:
        config.write(FRAGMENT.read_bytes())
    recipe.run([*make, "olddefconfig"])
    check_config(tree)

    compile_with_progress([*make, f"-j{len(os.sched_getaffinity(0))}", "vmlinux", "bzImage"], directory)
    recipe.run(["objcopy", "--strip-all", tree / "vmlinux", directory / "vmlinux"])
    (directory / "vmlinux-nopvh").write_bytes(drop_pvh_note((directory / "vmlinux").read_bytes()))
    (tree / "arch/x86/boot/bzImage").rename(directory / "bzImage")
    (tree / ".config").rename(directory / "config")
    (directory / "make.log").unlink()
    recipe.shutil.rmtree(work)


def check_config(tree):
    """Every option that the fragment turns on must have survived: kconfig drops one with unmet needs silently."""
    config = (tree / ".config").read_text()
    wanted = re.findall(r"^CONFIG_(\w+)=(?!n$)(.+)$", FRAGMENT.read_text(), re.M)
    lost = [name for name, value in wanted if f"\nCONFIG_{name}={value}\n" not in config]
    # One fragment serves two kernel versions: what this one has no such option for is now always on, or gone.
    known = set()
    for kconfig in tree.rglob("Kconfig*") if lost else ():
        known.update(re.findall(r"^\s*(?:menu)?config (\w+)$", kconfig.read_text(errors="replace"), re.M))
    unknown = [name for name in lost if name not in known]
    if unknown:
        say("options that this kernel version does not have: " + " ".join(unknown))
    if len(unknown) < len(lost):
        raise RecipeError("this kernel does not take: " + " ".join(name for name in lost if name in known))


def compile_with_progress(command, directory):
    started = shown = time.monotonic()
    objects = 0
    environment = dict(os.environ, LC_ALL="C", PATH=recipe.search_path())
    with open(directory / "make.log", "wb") as log, \
            subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env=environment) as make:
        try:
            for line in make.stdout:
                log.write(line)
                objects += line.lstrip().startswith((b"CC ", b"AS "))
                if time.monotonic() - shown >= 10:
                    shown = time.monotonic()
                    say(f"{objects} of about 1300 files compiled, {shown - started:.0f} s")
        except BaseException:
            make.terminate()
            raise
    if make.returncode != 0:
        tail = (directory / "make.log").read_text(errors="replace")[-3000:]
        raise RecipeError(f"the kernel did not compile; make said at the end:\n{tail}")


if __name__ == "__main__":
    sys.exit(recipe.main(__doc__, build))
