"""What the benchmarks have in common that measure a monitor by a Linux guest of their own (bench/NAME_guest.c)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "testbed"))

import testbed  # noqa: E402,F401  (found through the line above; it in turn knows where the others are)

import newc  # noqa: E402
import recipe  # noqa: E402


def compiled(name):
    """The program bench/NAME.c, static, compiled once."""
    source = ROOT / "bench" / f"{name}.c"
    return recipe.static_program(source, source.with_name("monitor_process.h"))


def initramfs(name):
    """One with the program bench/NAME_guest.c as its first process, and a console."""
    program = compiled(f"{name}_guest")

    def write(folder):
        with open(folder / "initramfs.cpio", "wb") as out:
            archive = newc.Archive(out)
            archive.folder("dev")
            archive.character_device("dev/console", 5, 1)
            archive.file("init", program, 0o755)
            archive.finish()

    return recipe.cached(f"initramfs-{name}", recipe.digest(program, Path(__file__)), write) / "initramfs.cpio"


def missing(done, results, wanted):
    """Says so on stderr where a case did not end well, or has no result of each of `wanted`."""
    if done.describe() == "exit 0" and all(key in results for key in wanted):
        return False
    testbed.say(f"error: not all was measured ({done.describe()}):\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    return True
