#!/usr/bin/python3
"""Runs programs that need hardware virtualization, wherever that can be had.

Where the host has hardware KVM, a case is run on the host. Elsewhere it is run inside L1: a virtual machine that
QEMU emulates together with AMD-V, whose Debian kernel therefore has a complete /dev/kvm. A case does not know
which of the two it got.

As a program:
  testbed.py status                 which of the two this host gets, and why
  testbed.py run COMMAND...         one command, its output and exit code; every argument that names an existing
                                    file is taken along
  testbed.py attach COMMAND...      the same with this terminal attached to it: for an interactive guest
"""

import argparse
import ctypes
import dataclasses
import fcntl
import functools
import mmap
import os
import platform
import queue
import re
import select
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "resources" / "guest"))

import debian_kernel  # noqa: E402  (found through the line above)
import initramfs  # noqa: E402
import newc  # noqa: E402
import recipe  # noqa: E402

KVM_CREATE_VM = 0xAE01
L1_MODULES = ("kvm-amd", "virtio-pci", "virtio-blk", "tun")
L1_MEMORY_MIB = 2048
L1_BOOT_LIMIT = 90  # seconds; 2 to 3 are usual, a loaded machine takes longer
L1_SILENCE_LIMIT = 40  # seconds without the sign of life that is due every two
ATTEMPTS = 3
RESULT_DISK_SIZE = 8 << 30  # sparse


class TestbedError(Exception):
    """The testbed itself failed, as opposed to a case run in it."""


# --- where to run ------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Tier:
    name: str  # "hardware" or "qemu"
    reason: str


def detect_tier():
    """Where Linux guests can run here. MAYFLY_TESTBED=hardware or qemu overrules what is found."""
    asked = os.environ.get("MAYFLY_TESTBED")
    if asked in ("hardware", "qemu"):
        return Tier(asked, "MAYFLY_TESTBED says so")
    if asked:
        raise TestbedError(f"MAYFLY_TESTBED is {asked!r}; it can be hardware or qemu")
    if not os.path.exists("/dev/kvm"):
        return Tier("qemu", "this host has no /dev/kvm")
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return Tier("qemu", "/dev/kvm is not permitted to this user (is it in the group kvm?)")
    except OSError as problem:
        return Tier("qemu", f"/dev/kvm cannot be opened ({problem.strerror})")
    try:
        os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
    except OSError as problem:
        return Tier("qemu", f"/dev/kvm makes no virtual machine ({problem.strerror})")
    finally:
        os.close(kvm)
    # A KVM that interprets guest code has a /dev/kvm like any other, but neither processor flag nor vendor module.
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="ascii"), re.M)
    has_flag = bool(flags and {"svm", "vmx"} & set(flags[1].split()))
    module = next((name for name in ("kvm_amd", "kvm_intel") if os.path.isdir(f"/sys/module/{name}")), None)
    if has_flag and module:
        return Tier("hardware", f"/dev/kvm by {module}")
    return Tier("qemu", "this host's /dev/kvm works without hardware virtualization: too slow for Linux")


# --- what to run -------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Step:
    """Once `text` has appeared in the output (after the step before): take `action`. An empty text: at once."""
    text: bytes
    action: str  # "signal", "write", "close" (stdin) or "note" (only its time is wanted)
    value: object = None  # the signal's number, or the bytes to write


@dataclasses.dataclass
class Case:
    """A command to run. A Path in it names a file of this host; the case finds it wherever it is run."""
    name: str
    command: list  # of str and Path
    timeout: float = 60
    steps: list = dataclasses.field(default_factory=list)
    terminal: bool = False
    inputs: dict = dataclasses.field(default_factory=dict)  # file in the working directory -> list of str and Path
    cost: float = 1  # about how long it takes, beside the others: the longest are started first


@dataclasses.dataclass
class Result:
    outcome: str = "lost"  # "exit", "signal", "timeout"; "lost": the testbed hung each time it was tried
    code: int = -1  # exit code or signal number
    seconds: float = 0
    peak_kib: int = 0
    step_seconds: list = dataclasses.field(default_factory=list)  # of the steps that were taken
    terminal: str = ""
    files: dict = dataclasses.field(default_factory=dict)  # what the command left in its working directory
    attempts: int = 1

    @property
    def stdout(self):
        return self.files.get("stdout", b"").decode(errors="replace")

    @property
    def stderr(self):
        return self.files.get("stderr", b"").decode(errors="replace")

    def describe(self):
        return f"{self.outcome} {self.code}" if self.outcome in ("exit", "signal") else self.outcome


def parse_result(files):
    result = Result(files=files)
    for line in files.get("result", b"").decode().splitlines():
        key, _, rest = line.partition(" ")
        if key in ("exit", "signal", "timeout"):
            result.outcome, result.code = key, int(rest or -1)
        elif key == "ns":
            result.seconds = int(rest) / 1e9
        elif key == "peak_kib":
            result.peak_kib = int(rest)
        elif key == "step":
            result.step_seconds.append(int(rest.split()[1]) / 1e9)
        elif key == "terminal":
            result.terminal = rest
    return result


def case_text(case, locate):
    """The case as run_case.c reads it; `locate` turns a Path into what it is called where the case runs."""
    def code(data):
        return (data if isinstance(data, bytes) else str(data).encode()).hex()

    lines = [f"arg {code(locate(word) if isinstance(word, Path) else word)}" for word in case.command]
    lines.append(f"timeout {round(case.timeout * 1000)}")
    if case.terminal:
        lines.append("terminal")
    for step in case.steps:
        value = "" if step.value is None else code(step.value) if step.action == "write" else int(step.value)
        lines.append(f"on {code(step.text) or '-'} {step.action} {value}".rstrip())
    return ("\n".join(lines) + "\n").encode()


def input_bytes(parts, locate):
    return "".join(str(locate(part)) if isinstance(part, Path) else part for part in parts).encode()


def paths_of(cases):
    """Every host file that the cases name, once."""
    paths = {}
    for case in cases:
        for part in [*case.command, *(part for parts in case.inputs.values() for part in parts)]:
            if isinstance(part, Path):
                paths[part] = None
    return list(paths)


def run_case_program():
    """The helper that runs one case."""
    return recipe.static_program(HERE / "run_case.c")


# --- L1 ----------------------------------------------------------------------------------------------------------

def libraries_of(program):
    """The shared libraries that a program of this host is started with; none for a static one."""
    # PT_INTERP's text: a static program has none, and other files have no reason to.
    if b"/ld-linux" not in program.read_bytes()[:4096]:
        return []
    text = recipe.run(["ldd", program]).decode()
    return re.findall(r"(/\S+) \(0x", text)


@functools.cache
def tsc_khz():
    """How much this processor's time stamp counter counts in a millisecond; None where that cannot be found out."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(bytes.fromhex("0f31"      # rdtsc
                             "48c1e220"  # shl $32, %rdx
                             "4809d0"    # or %rdx, %rax
                             "c3"))      # ret
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def read():
        """(time, counter), of which the two belong together best: between many a pair another process runs."""
        tries = [(time.monotonic_ns(), counter(), time.monotonic_ns()) for _ in range(100)]
        before, count, after = min(tries, key=lambda one: one[2] - one[0])
        return (before + after) / 2, count

    start = read()
    time.sleep(0.1)
    end = read()
    return round((end[1] - start[1]) * 1e6 / (end[0] - start[0]))


def clock_words(accel, extra):
    """What L1's kernel is told of its clock, which in QEMU's emulation is the host's counter as it is. Where the host
    is busy the kernel may measure a third of its rate, sees no harm in that, and has days that are three times too
    short: every limit is over early, and its timers leave it no time for anything else."""
    is_hosts = accel.startswith("tcg") and "-icount" not in extra and tsc_khz()
    return f"tsc_early_khz={tsc_khz()}" if is_hosts else ""


class L1Image:
    """L1's initramfs with everything that the cases need, in the directory `home`."""

    def __init__(self, home, cases, attach=None):
        self.kernel = debian_kernel.build()
        self.path = home / "l1.cpio"
        self._names = {path: f"/files/{index}/{path.name}" for index, path in enumerate(paths_of(cases))}
        modules = debian_kernel.module_closure(self.kernel / "modules", L1_MODULES)
        with open(self.path, "wb") as out:
            archive = newc.Archive(out)
            archive.file("init", HERE / "l1_init.sh", 0o755)
            archive.file("bin/busybox", initramfs.busybox(), 0o755)
            archive.file("bin/run_case", run_case_program(), 0o755)
            archive.character_device("dev/console", 5, 1)
            archive.file("modules/load", "".join(f"{name}\n" for name in modules).encode())
            for name in modules:
                archive.file(f"modules/{name}.ko", self.kernel / "modules" / f"{name}.ko")
            for path, name in self._names.items():
                archive.file(name[1:], path, path.stat().st_mode & 0o777)
            for library in sorted({library for path in self._names for library in libraries_of(path)}):
                archive.file(library[1:], Path(library), 0o755)
            for case in cases:
                archive.file(f"cases/{case.name}/case", case_text(case, self._names.get))
                for name, parts in case.inputs.items():
                    archive.file(f"cases/{case.name}/{name}", input_bytes(parts, self._names.get))
            if attach:
                words = [str(self._names[word]) if isinstance(word, Path) else word for word in attach.command]
                archive.file("cases/attach/attach", f"#!/bin/sh\nexec {shlex.join(words)}\n".encode(), 0o755)
            archive.finish()

    def qemu(self, disk, mode, accel="tcg", console="ttyS0", extra=()):
        """QEMU's command line. `mode` goes onto L1's kernel command line."""
        recipe.need_tools("qemu-system-x86_64=qemu-system-x86", "setpriv=util-linux")
        return ["setpriv", "--pdeathsig", "KILL",  # whatever happens to us, no QEMU is left behind
                "qemu-system-x86_64", "-accel", accel, "-M", "q35", "-cpu", "EPYC,+svm,+npt", "-smp", "1",
                "-m", f"{L1_MEMORY_MIB}M", "-kernel", str(self.kernel / "vmlinux"), "-initrd", str(self.path),
                "-append", f"console={console} quiet panic=-1 mitigations=off tsc=reliable no_timer_check "
                           f"nokaslr cryptomgr.notests {clock_words(accel, extra)} {mode}",
                "-drive", f"file={disk},format=raw,if=none,id=results,cache=unsafe",
                "-device", "virtio-blk-pci,drive=results",
                "-display", "none", "-nodefaults", "-no-reboot", *extra]


class L1:
    """One running L1 that takes cases over its serial line. Used by one thread."""

    def __init__(self, image, home, options):
        self._disk = home / "results.raw"
        with open(self._disk, "wb") as disk:
            disk.truncate(RESULT_DISK_SIZE)
        self._complaints = open(home / "qemu.log", "wb+")
        mode = f"testbed=serve {options.cmdline}" + ("" if options.heartbeat else " testbed.heartbeat=0")
        self._silence_limit = L1_SILENCE_LIMIT if options.heartbeat else None
        self._process = subprocess.Popen(
            image.qemu(self._disk, mode, options.accel, extra=["-serial", "stdio", *options.qemu]), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._complaints)
        self._pending = b""
        self.tail = b""  # the last it said, for the report of a hang
        try:
            self._wait("@ready", L1_BOOT_LIMIT * options.patience)
        except BaseException:
            self.close()
            raise

    def run(self, case, patience):
        self._send(f"run {case.name}\n")
        # Its own clock may be slower than ours; a case that overruns is ended inside, this limit is for a hung L1.
        at, size = self._wait(f"@end {case.name} ", (case.timeout + L1_SILENCE_LIMIT) * patience).split()
        with open(self._disk, "rb") as disk:
            disk.seek(int(at))
            files = {}
            with tarfile.open(fileobj=disk, mode="r|") as archive:
                for member in archive:
                    if member.isfile():
                        files[member.name.split("/", 1)[1]] = archive.extractfile(member).read()
        del size  # the archive says itself where it ends
        return parse_result(files)

    def close(self):
        try:
            self._send("quit\n")
            self._process.wait(timeout=5 if self._process.poll() is None else 0)
        except (TestbedError, subprocess.TimeoutExpired):
            pass
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._complaints.close()

    def _send(self, text):
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
        except OSError as problem:
            raise TestbedError(f"L1 is gone: {problem}") from problem

    def _wait(self, prefix, limit):
        """The rest of the line that starts with `prefix`."""
        deadline = time.monotonic() + limit
        heard = time.monotonic()
        stdout = self._process.stdout.fileno()
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                text = line.decode(errors="replace").rstrip("\r")
                if text.startswith(prefix):
                    return text[len(prefix):]
                if text.startswith("@error "):
                    raise TestbedError(f"L1 says: {text[7:]}")
            now = time.monotonic()
            silent = self._silence_limit is not None and now - heard > self._silence_limit and prefix != "@ready"
            if now > deadline or silent:
                raise TestbedError(f"L1 hangs: waited {limit if now > deadline else now - heard:.0f} s for {prefix}; "
                                   f"it said last: {self.tail[-600:].decode(errors='replace')!r}")
            if not select.select([stdout], [], [], 1)[0]:
                continue
            data = os.read(stdout, 65536)
            if not data:
                self._complaints.seek(0)
                said = self._complaints.read().decode(errors="replace")
                raise TestbedError(f"L1 ended by itself; it said last: {self.tail[-600:]!r}; QEMU said: {said[-600:]}")
            heard = now
            self.tail = (self.tail + data)[-4096:]
            self._pending += data


# --- running -----------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Options:
    parallel: int = 0  # 0: one a core, as memory allows
    accel: str = "tcg"
    qemu: tuple = ()  # further arguments
    cmdline: str = ""  # further words for L1's kernel
    heartbeat: bool = True
    patience: float = 1  # factor on every limit that is there to notice a hang
    attempts: int = ATTEMPTS
    # In QEMU: run the cases that overran once more, in one L1 alone. Several processors of a guest on one emulated
    # processor that the host leaves little time to can be busy with their timers alone.
    retry_alone: bool = False


def say(text):
    print(f"[testbed] {text}", file=sys.stderr, flush=True)


def parallelism(cases, asked):
    if asked:
        return min(asked, len(cases))
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    fitting = int(available[1]) // 1024 // L1_MEMORY_MIB if available else 1
    return max(1, min(len(os.sched_getaffinity(0)), fitting, len(cases)))


def run_cases(cases, options=None, tier=None):
    """Runs the cases, several at a time, and returns {name: Result}. Progress goes to stderr."""
    options = options or Options()
    tier = tier or detect_tier()
    if len({case.name for case in cases}) != len(cases):
        raise TestbedError("two cases have the same name")
    say(f"tier {tier.name} ({tier.reason})")
    results = run_round(cases, parallelism(cases, options.parallel), options, tier)
    late = [case for case in cases if results[case.name].outcome == "timeout"]
    if late and options.retry_alone and tier.name == "qemu":
        say(f"!!! overran, and are tried once more without others beside them: {', '.join(case.name for case in late)}")
        for name, result in run_round(late, 1, options, tier).items():
            result.attempts += results[name].attempts
            results[name] = result
    return results


def run_round(cases, count, options, tier):
    """Runs each case once, `count` at a time."""
    say(f"{len(cases)} cases, {count} at a time")
    work = queue.Queue()
    for case in sorted(cases, key=lambda case: -case.cost):
        work.put(case)
    results, failures = {}, []
    with tempfile.TemporaryDirectory(prefix="mayfly-testbed-") as folder:
        home = Path(folder)
        if tier.name == "hardware":
            program = run_case_program()
            worker = lambda index: hardware_worker(program, home, work, results, len(cases))  # noqa: E731
        else:
            image = L1Image(home, cases)
            worker = lambda index: l1_worker(image, home / str(index), index, options, work, results,  # noqa: E731
                                             len(cases))

        def guarded(index):
            try:
                worker(index)
            except BaseException as problem:  # carried to the caller's thread below
                failures.append(problem)

        threads = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return results


def report(case, result, results, total):
    results[case.name] = result
    say(f"{len(results)}/{total} {case.name}: {result.describe()}, {result.seconds:.2f} s")


def hardware_worker(program, home, work, results, total):
    while True:
        try:
            case = work.get_nowait()
        except queue.Empty:
            return
        folder = home / case.name
        folder.mkdir()
        (folder / "case").write_bytes(case_text(case, str))
        for name, parts in case.inputs.items():
            (folder / name).write_bytes(input_bytes(parts, str))
        done = subprocess.run([program, folder], stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise TestbedError(f"run_case failed for {case.name}: {done.stderr.decode(errors='replace')}")
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        report(case, parse_result(files), results, total)
        shutil.rmtree(folder)


def l1_worker(image, home, index, options, work, results, total):
    """Runs cases in an L1 of its own until none are left. A hung L1 is replaced, and its case tried again."""
    home.mkdir()
    l1, case, attempt = None, None, 0
    try:
        while True:
            if case is None:
                try:
                    case, attempt = work.get_nowait(), 1
                except queue.Empty:
                    return
            try:
                if l1 is None:
                    started = time.monotonic()
                    l1 = L1(image, home, options)
                    say(f"L1 number {index} is up after {time.monotonic() - started:.1f} s")
                result = l1.run(case, options.patience)
            except TestbedError as problem:
                say(f"!!! {case.name}, attempt {attempt} of {options.attempts}: {problem}")
                if l1 is not None:
                    l1.close()
                    l1 = None
                attempt += 1
                if attempt <= options.attempts:
                    say(f"!!! starting L1 number {index} again for {case.name}")
                    continue
                result = Result()
            result.attempts = min(attempt, options.attempts)
            report(case, result, results, total)
            case = None
    finally:
        if l1 is not None:
            l1.close()


def attach(command, tier=None):
    """Runs `command` (str and Path) with this process's terminal attached; returns its exit code."""
    tier = tier or detect_tier()
    if tier.name == "hardware":
        say(f"running on this host's own KVM ({tier.reason})")
        return subprocess.call([str(word) for word in command])
    say(f"running inside QEMU, which emulates AMD-V: {tier.reason}")
    case = Case("attach", command)
    terminal = termios.tcgetattr(0) if os.isatty(0) else None
    with tempfile.TemporaryDirectory(prefix="mayfly-testbed-") as folder:
        home = Path(folder)
        image = L1Image(home, [case], attach=case)
        disk = home / "results.raw"
        with open(disk, "wb") as out:
            out.truncate(RESULT_DISK_SIZE)
        log = home / "console.log"
        # signal=off: Control-C is for the guest, as every other key.
        serial = ["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal", "-serial", f"file:{log}"]
        try:
            # QEMU 7.2 remarks on each EPYC feature that its emulation lacks: nothing to trouble the user with.
            with open(home / "qemu.log", "wb+") as complaints:
                status = subprocess.call(image.qemu(disk, "testbed=attach", console="ttyS1", extra=serial),
                                         stderr=complaints)
                complaints.seek(0)
                if status != 0:
                    raise TestbedError(f"QEMU ended with {status}: {complaints.read().decode(errors='replace')}")
        finally:
            if terminal:
                termios.tcsetattr(0, termios.TCSADRAIN, terminal)
        try:
            with tarfile.open(disk, mode="r|") as archive:
                for member in archive:
                    if member.name == "attach/result":
                        return int(archive.extractfile(member).read().split()[1])
        except tarfile.TarError:
            pass  # an empty disk: L1 did not come so far
        said = log.read_text(errors="replace") if log.exists() else ""
        raise TestbedError(f"the virtual machine ended before the command did; its kernel said:\n{said[-2000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["status", "run", "attach"])
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    if options.command and options.command[0] in ("-h", "--help"):  # behind the verb they are ours, too
        parser.print_help()
        return 0
    try:
        tier = detect_tier()
        if options.verb == "status":
            print(f"{tier.name}: {tier.reason}")
            return 0
        if not options.command:
            parser.error("a command is needed")
        command = [Path(word) if os.path.isfile(word) else word for word in options.command]
        if options.verb == "attach":
            return attach(command, tier)
        result = run_cases([Case("run", command, timeout=600)], tier=tier)["run"]
    except (TestbedError, recipe.RecipeError) as problem:
        say(f"error: {problem}")
        return 125
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.code if result.outcome == "exit" else 125


if __name__ == "__main__":
    sys.exit(main())
