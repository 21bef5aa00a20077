#!/usr/bin/python3
"""Boots real Linux kernels in mayfly, in the testbed: every way to load a kernel, several sizes of machine, and
every way in which a guest or its user ends one.

  linux_test.py --mayfly BINARY [--only REGEX] [--list] [-v]

MAYFLY_PROGRAM in the environment, where it is set, goes before --mayfly. Nothing is skipped: a host without hardware virtualization runs
the same cases inside QEMU.
"""

import argparse
import os
import re
import struct
import sys
import tempfile
import unittest
from pathlib import Path

import testbed
from testbed import Case, Step

import debian_kernel  # found through testbed
import initramfs
import small_kernel

MIB_PER_GIB = 1024
LOW_RAM_END = 3 << 30  # guest memory makes room for devices from 3 to 4 GiB
HIGH_RAM_START = 4 << 30

EXIT_ENDED = 0  # the guest rebooted or powered off, or its user asked mayfly to end
EXIT_FAULT = 1

SIGINT, SIGTERM = 2, 15

# What a kernel may say at level "warning" or worse, or in a warning's words, on a well-made machine, and why.
ALLOWED = [
    # A microVM has no clock chip and says so in its FADT; the kernel reads the time from kvmclock.
    (r"platform rtc_cmos: .*", "no RTC, as declared"),
    (r"rtc_cmos rtc_cmos: .*", "no RTC, as declared"),
    (r"DMI not present or invalid\.", "no SMBIOS tables; said at level information"),
    # There is no PCI bus; Linux looks for one by port accesses, and only its command line could tell it not to.
    (r"PCI: (Fatal: No config space access function found|System does not support PCI)", "no PCI"),
    # The job that prints this log is told on the command line, and the kernel has no such parameter.
    (r"Unknown kernel command line parameters \"mayfly\.job=.*", "ours, read from /proc/cmdline"),
    # Said by every AMD guest kernel whose host shows it Spectre without the mitigation the host itself has switched
    # off (L1 runs with mitigations=off); it is about the host's choice and not about the machine.
    (r"(Spectre V2|RETBleed|Speculative|SRSO|TSA|MDS|MMIO Stale|TAA|VMSCAPE)\b.*", "processor vulnerabilities"),
]
# What only the emulation of the processor causes, in QEMU's tier.
ALLOWED_IN_EMULATION = [
    # QEMU's processor offers no invariant TSC, and without it Linux trusts no AMD machine with several processors.
    (r"tsc: Marking TSC unstable due to TSCs unsynchronized", "no invariant TSC"),
    # Four guest processors take turns on one emulated one, beside other work of the host.
    (r"hrtimer: interrupt took \d+ ns", "slow"),
    (r"clocksource: Long readout interval, skipping watchdog check: .*", "slow"),
]
# For the same reason nothing may be concluded there from a guest processor that makes no progress for 20 seconds.
CMDLINE_IN_EMULATION = "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog"
# QEMU's emulated AMD-V (7.2) does not intercept XSETBV: KVM never learns the guest's XCR0 and leaves the size in CPUID
# leaf 0xd at its first value. This is the warning about it, whole, taken out only where that emulation is at work.
XSAVE_WARNING = re.compile(
    r"^<4>[^\n]*\[ cut here \]-+\n<4>[^\n]*XSAVE consistency problem: size .*?\[ end trace 0+ \]-+\n"
    r"(<4>[^\n]*CPUID\[0d, ..\]: [^\n]*\n)*", re.M | re.S)
SUSPICIOUS = re.compile(
    r"\bWARNING\b|\bBUG\b|ACPI.*(Error|Warning|Exception)|Firmware (Bug|Warn)|\[Firmware|Call Trace|Oops|"
    r"unchecked MSR|lockup|detected stalls|TSC.*(unstable|failed)|(?i:\berror\b|\bfailed\b|\binvalid\b|\bcorrupt)")


class Kernel:
    def __init__(self, name, folder, cost, least_mib):
        self.name = name
        self.cost = cost
        self.least_mib = least_mib
        self.images = {"pvh": folder / "vmlinux", "elf64": folder / "vmlinux-nopvh", "bzimage": folder / "bzImage"}


class Suite:
    """The cases and what is expected of each."""

    def __init__(self, mayfly, scratch, hardware):
        self.mayfly = mayfly
        self.cmdline = kernel_words(hardware)
        # 64 MiB are too few for Debian's kernel on any machine: its image alone takes 50.
        self.small = Kernel("small", small_kernel.build(), 1, 64)
        self.debian = Kernel("debian", debian_kernel.build(), 4, 128)
        self.kernels = (self.small, self.debian)
        self.busybox = initramfs.build("busybox")
        self.large = initramfs.build("large")
        self.spinner = scratch / "spinner"
        self.spinner.write_bytes(bare_spinner())
        self.entries = []  # (Case, check)
        for add in (self.boots, self.memory_sizes, self.endings, self.signals, self.serial, self.initrds):
            add()

    def add(self, name, check, kernel, jobs, entry="pvh", cpus=1, mib=256, cmdline="reboot=k", initrd=None, **case):
        command = [self.mayfly, "run", "--kernel", kernel.images[entry], "--initrd", initrd or self.busybox,
                   "--cpus", str(cpus), "--memory", f"{mib}M",
                   "--cmdline", f"{self.cmdline} {cmdline} mayfly.job={jobs}"]
        case.setdefault("cost", kernel.cost)
        self.entries.append((Case(name, command, timeout=120, **case), check))

    def boots(self):
        for kernel in self.kernels:
            for entry in kernel.images:
                for cpus in (1, 2, 4):
                    jobs = "cpus,info,poweroff" if cpus == 4 else "cpus,reboot"
                    self.add(f"boot_{kernel.name}_{entry}_{cpus}cpu", check_boot(cpus, kernel.name), kernel, jobs, entry, cpus,
                             cost=kernel.cost + cpus)

    def memory_sizes(self):
        for kernel in self.kernels:
            for mib in (kernel.least_mib, 256, 3584, 6 * MIB_PER_GIB):
                for entry in ("pvh", "bzimage"):  # the two ways by which a kernel is told its memory map
                    self.add(f"memory_{kernel.name}_{entry}_{mib}mib", check_memory(mib), kernel, "memory,poweroff",
                             entry, mib=mib)

    def endings(self):
        for kernel in self.kernels:
            for name, jobs, cmdline, code in (
                    ("poweroff", "poweroff", "", EXIT_ENDED),
                    ("reboot_by_keyboard_controller", "reboot", "reboot=k", EXIT_ENDED),
                    ("reboot_by_acpi", "reboot", "reboot=a", EXIT_ENDED),
                    ("reboot_by_default", "reboot", "", EXIT_ENDED),
                    ("panic", "panic", "reboot=k", EXIT_ENDED),
                    ("triple_fault", "reboot", "reboot=t", EXIT_FAULT)):
                self.add(f"end_{kernel.name}_{name}", check_end(jobs, code), kernel, jobs, cmdline=cmdline, cpus=2)

    def signals(self):
        for name, number in (("sigterm", SIGTERM), ("sigint", SIGINT)):
            stop = [Step(b"spinning", "signal", number)]
            self.add(f"{name}_spinning", check_stopped, self.small, "spin", cpus=4, steps=stop)
            # halt leaves each processor in a hlt with interrupts off: no guest event will end that wait.
            self.add(f"{name}_halted", check_stopped, self.small, "halt", cpus=2,
                     steps=[Step(b"System halted", "signal", number)])
            self.add(f"{name}_before_the_kernel_speaks", check_stopped, self.debian, "poweroff",
                     steps=[Step(b"", "signal", number)])
            case = Case(f"{name}_spinning_with_interrupts_off",
                        [self.mayfly, "run", "--kernel", self.spinner, "--cpus", "1", "--memory", "64M"],
                        steps=[Step(b"S", "signal", number)])
            self.entries.append((case, check_stopped))
        self.add("sigterm_on_a_terminal", check_terminal, self.small, "spin", terminal=True,
                 steps=[Step(b"spinning", "signal", SIGTERM)])

    def serial(self):
        say = [Step(b"waiting for a line", "write", b"a quick brown fox\n"), Step(b"heard: a quick brown fox", "note")]
        for kernel in self.kernels:
            self.add(f"serial_{kernel.name}_input_is_heard", check_steps, kernel, "echo,poweroff", steps=say)
        self.add("serial_stdin_closed_guest_goes_on", check_steps, self.small, "echo,poweroff",
                 steps=[Step(b"begin echo", "write", b"a quick"), Step(b"waiting", "write", b" brown fox\n"),
                        Step(b"heard", "close"), Step(b"end echo status 0", "note")])
        self.add("serial_shell_on_a_terminal", check_terminal, self.small, "shell", terminal=True,
                 steps=[Step(b"microvm:", "write", b"echo $((6 * 7)) answers; tty\r"),
                        # Control-C is for the guest's program, not for mayfly.
                        Step(b"42 answers", "write", b"echo as''leep; sleep 1000\r"),
                        Step(b"asleep", "write", b"\x03"),
                        Step(b"microvm:", "write", b"poweroff\r")])

    def initrds(self):
        for kernel, entry in ((self.small, "pvh"), (self.small, "bzimage"), (self.debian, "elf64")):
            self.add(f"initrd_50mb_{kernel.name}_{entry}", check_checksum, kernel, "checksum,poweroff", entry,
                     initrd=self.large, cost=kernel.cost + 3)


def kernel_words(hardware):
    """What every guest kernel is told."""
    return "console=ttyS0 panic=-1 quiet" + ("" if hardware else f" {CMDLINE_IN_EMULATION}")


def bare_spinner():
    """An ELF for the 64-bit entry that says S on the serial port and spins with interrupts off for ever."""
    code = bytes.fromhex("baf8030000"  # mov $0x3f8, %edx
                         "b053"        # mov $'S', %al
                         "ee"          # out %al, %dx
                         "fa"          # cli
                         "ebfe")       # 1: jmp 1b
    where, header_size = 0x1000000, 64 + 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, where, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, header_size, where, where, len(code), len(code), 1)
    return header + segment + code


# --- expectations ------------------------------------------------------------------------------------------------

def expect_end(test, result, code=EXIT_ENDED):
    said = f"\nstdout ends:\n{result.stdout[-3000:]}\nstderr ends:\n{result.stderr[-2000:]}"
    test.assertEqual(result.describe(), f"exit {code}", said)


def expect_job(test, result, job):
    test.assertIn(f"GUEST end {job} status 0", result.stdout)
    return result.stdout.split(f"GUEST begin {job}")[1].split(f"GUEST end {job}")[0].replace("\r", "")


def check_boot(cpus, kernel):
    def check(test, result):
        expect_end(test, result)
        online = "0" if cpus == 1 else f"0-{cpus - 1}"
        test.assertIn(f"online {online} processors {cpus}\n", expect_job(test, result, "cpus"))
        if cpus == 4:
            check_info(test, expect_job(test, result, "info"), cpus, kernel)
    return check


def check_info(test, info, cpus, kernel):
    """What the guest sees of its machine, and that its kernel found nothing wrong with it."""
    parts = dict(part.split("\n", 1) for part in re.split(r"^--- ", info, flags=re.M)[1:] if "\n" in part)
    test.assertEqual(parts["/proc/interrupts"].splitlines()[0].split(), [f"CPU{n}" for n in range(cpus)])
    test.assertRegex(parts["/proc/interrupts"], r"IO-APIC +4-edge +ttyS0", "the serial port has its interrupt")
    # Not by /proc/iomem: Linux 6.12 lists a local APIC there only where it is used by MMIO, 6.1 as an x2APIC, too.
    ticks = re.search(r"(?m)^ *LOC:((?: +\d+)+) ", parts["/proc/interrupts"])
    test.assertEqual([int(n) > 0 for n in ticks[1].split()], [True] * cpus, "every local APIC has its timer")
    test.assertEqual(parts["clocksource"].strip(), "kvm-clock")
    ids = re.findall(r"^apicid\s*: (\d+)$", parts["/proc/cpuinfo"], re.M)
    test.assertEqual(ids, [str(n) for n in range(cpus)])
    test.assertEqual(set(re.findall(r"^cpu cores\s*: (\d+)$", parts["/proc/cpuinfo"], re.M)), {str(cpus)})
    # Debian's cloud kernel has no driver for it.
    if kernel == "small":
        test.assertIn("MFLY0001:00", parts["vmgenid"].split(), "the VM generation id's driver has its device")
        test.assertRegex(parts["/proc/interrupts"], r"IO-APIC +3-edge +ACPI:Ged", "and would be told of another one")
    complaints = kernel_complaints(parts["dmesg"], test.hardware)
    test.assertEqual(complaints, [], "\n".join(["the kernel complains:", *complaints]))


def kernel_complaints(log, hardware=True, further=()):
    """Lines of a raw kernel log at level warning or worse, or in a warning's words, that neither ALLOWED nor `further`
    allows."""
    allowed = [*ALLOWED, *further, *(() if hardware else ALLOWED_IN_EMULATION)]
    if not hardware:
        log = XSAVE_WARNING.sub("", log)
    lines = []
    for level, text in re.findall(r"^<(\d+)>(?:\[ *[\d.]+\] )?(.*)$", log, re.M):
        bad = int(level) & 7 <= 4 or SUSPICIOUS.search(text)
        if bad and not any(re.fullmatch(pattern, text) for pattern, _ in allowed):
            lines.append(f"<{level}> {text}")
    return lines


def check_memory(mib):
    def check(test, result):
        expect_end(test, result)
        said = expect_job(test, result, "memory")
        ranges = [(int(start, 16), int(end, 16) + 1)
                  for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", said, re.M)]
        size = mib << 20
        total = sum(end - start for start, end in ranges)
        # Below 1 MiB a part is reserved (the first page, the tables); nothing else may be missing.
        test.assertLessEqual(total, size)
        test.assertGreaterEqual(total, size - (1 << 20))
        high = size - LOW_RAM_END
        test.assertEqual(max(end for _, end in ranges), HIGH_RAM_START + high if high > 0 else size)
        test.assertFalse([r for r in ranges if r[1] > LOW_RAM_END and r[0] < HIGH_RAM_START], "RAM in the device hole")
        usable = int(re.search(r"MemTotal: +(\d+) kB", said)[1]) << 10
        test.assertGreater(usable, size * 0.96 - (64 << 20))
    return check


def check_end(job, code):
    def check(test, result):
        expect_end(test, result, code)
        test.assertIn(f"GUEST begin {job}", result.stdout)
        if job == "panic":
            test.assertIn("Kernel panic - not syncing: Attempted to kill init", result.stdout)
    return check


def check_steps(test, result):
    expect_end(test, result)
    test.assertEqual(len(result.step_seconds), len(test.case.steps), f"not every step came:\n{result.stdout}")


def check_stopped(test, result):
    check_steps(test, result)
    test.assertNotIn("GUEST end", result.stdout)


def check_terminal(test, result):
    check_steps(test, result)
    test.assertEqual(result.terminal, "restored")


def check_checksum(test, result):
    expect_end(test, result)
    test.assertIn("payload: OK", expect_job(test, result, "checksum"))


# --- running -----------------------------------------------------------------------------------------------------

class LinuxTest(unittest.TestCase):
    """One test of the table; unittest only prints and counts, all cases have been run before."""

    def __init__(self, case, check, result, hardware):
        super().__init__("run_check")
        self.case, self._check, self._result, self.hardware = case, check, result, hardware

    def __str__(self):
        return self.case.name

    def run_check(self):
        self.assertNotEqual(self._result.outcome, "lost", "the testbed hung each time this was tried")
        self._check(self, self._result)


class KernelComplaintsTest(unittest.TestCase):
    """The reader of kernel logs notices what it is there to notice."""

    def test_quiet_log_has_none(self):
        self.assertEqual(kernel_complaints("<6>[    0.000000] Linux version 6.1\n<5>[    0.1] random: done\n"), [])

    def test_emulators_warning_is_cut_out_and_no_more(self):
        log = ("<6>[    0.0] before\n<4>[    0.1] ------------[ cut here ]------------\n"
               "<4>[    0.1] XSAVE consistency problem: size 832 != kernel_size 576\n<4>[    0.1] Call Trace:\n"
               "<4>[    0.1] ---[ end trace 0000000000000000 ]---\n"
               "<4>[    0.1] CPUID[0d, 00]: eax=00000007 ebx=00000240\n<4>[    0.2] odd\n")
        self.assertEqual(kernel_complaints(log, hardware=False), ["<4> odd"])
        self.assertGreater(len(kernel_complaints(log, hardware=True)), 1)

    def test_warning_level_is_reported(self):
        self.assertEqual(len(kernel_complaints("<4>[    0.000000] something odd\n")), 1)

    def test_warning_words_at_any_level_are_reported(self):
        for text in ("ACPI BIOS Error (bug): x", "BUG: bad", "[Firmware Bug]: x", "WARNING: CPU: 0", "tsc: TSC unstable"):
            self.assertEqual(len(kernel_complaints(f"<6>[    1.000000] {text}\n")), 1, text)

    def test_allowed_line_is_not_reported(self):
        self.assertEqual(kernel_complaints("<4>[    0.1] platform rtc_cmos: registered platform RTC device\n"), [])


def main(description, make_suite, *further):
    """Runs the cases of a suite and then the test classes `further`. make_suite(mayfly, scratch, hardware) returns an
    object with `entries`: a list of (Case, check(test, result))."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", metavar="BINARY", help="the program to test")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the cases whose name matches")
    parser.add_argument("--list", action="store_true", help="print the cases' names")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write each case's output files there")
    parser.add_argument("-v", "--verbose", action="store_true", help="name every test")
    options = parser.parse_args()
    mayfly = Path(os.environ.get("MAYFLY_PROGRAM") or options.mayfly or "")
    if not mayfly.is_file():
        parser.error("--mayfly or MAYFLY_PROGRAM must name the mayfly binary")
    tests = unittest.TestSuite()
    try:
        with tempfile.TemporaryDirectory(prefix="mayfly-linux-test-") as scratch:
            tier = testbed.detect_tier()
            hardware = tier.name == "hardware"
            suite = make_suite(mayfly.resolve(), Path(scratch), hardware)
            chosen = [(case, check) for case, check in suite.entries if re.search(options.only, case.name)]
            if options.list or not chosen:
                print("\n".join(case.name for case, _ in chosen) or f"no case matches {options.only}")
                return 0 if chosen else 2
            results = testbed.run_cases([case for case, _ in chosen], testbed.Options(retry_alone=True), tier)
        tests.addTests(LinuxTest(case, check, results[case.name], hardware) for case, check in chosen)
    except (testbed.TestbedError, testbed.recipe.RecipeError) as problem:
        testbed.say(f"error: {problem}")
        return 1
    if options.keep:
        for name, result in results.items():
            (options.keep / name).mkdir(parents=True, exist_ok=True)
            for file, data in result.files.items():
                (options.keep / name / file).write_bytes(data)
    for test_case in further:
        tests.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(test_case))
    again = sorted(name for name, result in results.items() if result.attempts > 1)
    if again:
        testbed.say(f"!!! judged by a later attempt, because the first hung or overran: {', '.join(again)}")
    outcome = unittest.TextTestRunner(verbosity=2 if options.verbose else 1).run(tests)
    return 0 if outcome.wasSuccessful() else 1



if __name__ == "__main__":
    sys.exit(main(__doc__, Suite, KernelComplaintsTest))
