#!/usr/bin/python3
"""Runs the monitor on this host's /dev/kvm with bare guests: a few dozen instructions each, one behaviour each.

  bare_guest_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

A host without a usable /dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unittest

from bare_guests import HANG, Case, Connection, Result, Running, guest, main, mayfly, program, run_guest


class Endings(Case):
    def test_power_off_ends_with_0(self):
        self.expect(run_guest("power_off"), 0, b"hello\n")

    def test_acpi_reset_ends_with_0(self):
        self.expect(run_guest("reset_acpi"), 0, b"")

    def test_i8042_reset_ends_with_0(self):
        self.expect(run_guest("reset_i8042"), 0, b"")

    def test_errors_of_run_are_sentences_and_the_log_has_them_where_it_is_elsewhere(self):
        broken = run_guest("triple_fault", "--log-path", self.path("log"))
        self.expect(broken, 1)
        sentence = "the microVM failed: triple fault: vCPU 0 shut down on a triple fault\n"
        self.assertEqual(broken.err, "mayfly: " + sentence)
        with open(self.path("log"), encoding="utf-8") as log:
            self.assertRegex(log.read(), r"^\d{4}-\d\d-\d\dT.*\] " + sentence)
        missing = mayfly("run", "--kernel", "/nonexistent")
        self.expect(missing, 152)
        self.assertEqual(missing.err, "mayfly: cannot run the microVM: open kernel image /nonexistent: "
                         "No such file or directory (ENOENT)\n")

    def test_triple_fault_ends_with_1_and_says_so(self):
        self.expect(run_guest("triple_fault"), 1, b"going\n", "triple fault")

    def test_other_values_in_the_power_registers_end_nothing(self):
        self.expect(run_guest("not_quite_power_off"), 0, b"still here\n")

    def test_each_stop_signal_ends_a_spinning_and_a_halted_guest_with_0(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for name, text in (("spin", b"spinning\n"), ("halt", b"halting\n")):
                with self.subTest(signal=number, guest=name):
                    vm = Running("run", "--kernel", guest(name)).until(text)
                    vm.process.send_signal(number)
                    self.expect(vm.end(), 0)

    def test_a_stop_signal_with_waiting_vcpus_ends_with_0(self):
        vm = Running("run", "--kernel", guest("spin"), "--cpus", "32").until(b"spinning\n")
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)

    def test_two_signals_in_quick_succession_are_one_ending(self):
        for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
            with self.subTest(first=first, second=second):
                vm = Running("run", "--kernel", guest("spin"), "--cpus", "4").until(b"spinning\n")
                vm.process.send_signal(first)
                vm.process.send_signal(second)
                self.expect(vm.end(), 0)

    def test_a_stop_signal_at_any_moment_of_the_start_ends_it(self):
        # Before the monitor has taken the signal into its hands it does what it does to any process.
        for delay in range(0, 12):
            with self.subTest(delay=delay):
                vm = Running("run", "--kernel", guest("spin"), "--cpus", "8")
                time.sleep(delay / 1000)
                vm.process.send_signal(signal.SIGTERM)
                self.assertIn(vm.end().code, (0, -signal.SIGTERM))

    def test_stop_signals_work_where_the_caller_had_them_and_the_kick_signal_blocked(self):
        for name, text in (("spin", b"spinning\n"), ("halt", b"halting\n")):
            with self.subTest(guest=name):
                masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                try:
                    vm = Running("run", "--kernel", guest(name))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, masked)
                vm.until(text)
                vm.process.send_signal(signal.SIGTERM)
                self.expect(vm.end(), 0)

    def test_a_hang_up_ends_with_156(self):
        vm = Running("run", "--kernel", guest("spin")).until(b"spinning\n")
        vm.process.send_signal(signal.SIGHUP)
        self.expect(vm.end(), 156)


class Buses(Case):
    def test_what_nobody_answers_reads_as_all_ones(self):
        self.expect(run_guest("unknown", "--memory", "64M"), 0, b"PASS\n")

    def test_an_interrupt_does_not_reach_a_guest_through_a_pic_that_it_never_set_up(self):
        self.expect(run_guest("pic_is_quiet"), 0, b"PASS\n")

    def test_string_instructions_reach_the_device_element_by_element(self):
        text = b"many bytes in one exit, more than one page of them would not fit and are split by the processor\n"
        self.expect(run_guest("string_io"), 0, text + b"PASS\n")

    def test_a_flood_of_unknown_accesses_is_counted_and_its_log_limited(self):
        metrics = self.path("metrics")
        result = run_guest("flood_unknown", "--metrics-path", metrics, "--level", "Info")
        self.expect(result, 0, b"still here\n", "no device")
        self.assertLess(result.err.count("\n"), 100)
        with open(metrics, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        self.assertEqual(sum(line["vmm"]["unknown_port_accesses"] for line in lines), 40000)
        self.assertEqual(sum(line["vmm"]["unknown_mmio_accesses"] for line in lines), 40000)


class Serial(Case):
    def test_input_reaches_the_guest_and_output_comes_back(self):
        vm = Running("run", "--kernel", guest("echo"), stdin=subprocess.PIPE).until(b"ready\n")
        vm.send(b"abc" * 100)
        vm.until(b"bcd" * 100)
        vm.send(b"q")
        self.expect(vm.end(), 0, b"ready\n" + b"bcd" * 100)

    def test_the_end_of_input_does_not_end_the_guest(self):
        result = run_guest("echo", data=b"hal9000q")
        self.expect(result, 0, b"ready\nibm:111")

    def test_a_reader_that_does_not_read_does_not_stop_the_guest(self):
        read_end, write_end = os.pipe()
        vm = Running("run", "--kernel", guest("flood"), "--metrics-path", self.path("metrics"), stdout=write_end)
        os.close(write_end)
        # The pipe fills up; the guest goes on running: its exits are counted.
        self.wait_for_exits(vm, 200_000)
        vm.process.send_signal(signal.SIGTERM)
        code = vm.process.wait(HANG)
        vm.process.stderr.close()
        os.close(read_end)
        self.assertEqual(code, 0)

    def test_a_reader_that_goes_away_does_not_end_the_guest(self):
        read_end, write_end = os.pipe()
        vm = Running("run", "--kernel", guest("flood"), stdout=write_end)
        os.close(write_end)
        self.assertEqual(os.read(read_end, 1), b"x")
        os.close(read_end)
        with self.assertRaises(subprocess.TimeoutExpired):
            vm.process.wait(0.5)
        vm.process.send_signal(signal.SIGTERM)
        self.assertEqual(vm.process.wait(HANG), 0)
        vm.process.stderr.close()

    def test_descriptors_that_are_closed_are_nobody_elses(self):
        """Without the monitor's care the first files that it opens would be its standard input and output."""
        log = self.path("log")
        flags = f"--log-path {log} --level Info --metrics-path {self.path('metrics')}"
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"):
            with self.subTest(closed=closed):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(log)
                done = subprocess.run(f"exec {program()} run --kernel {guest('power_off')} {flags} {closed}", shell=True,
                                      stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                self.assertEqual(done.stdout, b"" if ">&-" in closed.split() else b"hello\n")
                with open(log, encoding="utf-8") as file:
                    text = file.read()
                self.assertIn("guest power-off", text)
                self.assertNotIn("hello", text)

    def test_output_to_a_file_is_whole(self):
        with open(self.path("out"), "wb") as file:
            process = subprocess.run([program(), "run", "--kernel", guest("string_io")], stdin=subprocess.DEVNULL,
                                     stdout=file, stderr=subprocess.PIPE, timeout=HANG, check=False)
        self.assertEqual((process.returncode, process.stderr), (0, b""))
        with open(self.path("out"), "rb") as file:
            self.assertTrue(file.read().endswith(b"PASS\n"))

    def test_a_job_in_the_background_leaves_the_terminal_alone_until_it_is_brought_to_the_front(self):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        end, ready = os.pipe()
        shell = os.fork()
        if shell == 0:
            self.be_a_shell(slave, ready)
        os.close(ready)
        self.kill_at_the_end(shell)
        pid = int(os.read(end, 16))
        self.kill_at_the_end(pid)
        self.read_until(master, b"ready")
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            self.assertNotIn(file.read().rsplit(")", 1)[1].split()[0], "Tt")
        self.assertEqual(termios.tcgetattr(slave), before)
        os.kill(shell, signal.SIGUSR1)  # to the front
        limit = time.monotonic() + HANG
        while termios.tcgetattr(slave)[3] & termios.ICANON:
            self.assertLess(time.monotonic(), limit, "the terminal does not become raw")
            time.sleep(0.01)
        os.write(master, b"aq")
        self.read_until(master, b"b")
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]), 0)
        self.assertEqual(termios.tcgetattr(slave), before)
        for descriptor in (master, slave, end):
            os.close(descriptor)

    def kill_at_the_end(self, pid):
        """Whatever a failed test leaves of the process; one that has ended by then is gone, whoever has its number."""
        descriptor = os.pidfd_open(pid)

        def kill():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

        self.addCleanup(kill)

    def be_a_shell(self, slave, ready):
        """Starts a guest as a job in the background; `fg` when SIGUSR1 comes; ends with the job's exit code."""
        code = 99
        try:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            job = os.fork()
            if job == 0:
                os.setpgid(0, 0)
                os.dup2(slave, 0)
                os.dup2(slave, 1)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
                os.execv(program(), [program(), "run", "--kernel", guest("echo")])
            with contextlib.suppress(PermissionError):  # the job has done it and runs already
                os.setpgid(job, job)
            os.write(ready, str(job).encode())
            signal.sigwait([signal.SIGUSR1])
            os.tcsetpgrp(slave, job)
            code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(slave, os.getpgrp())
        finally:
            os._exit(code & 0xff)

    def wait_for_exits(self, vm, count):
        """Until the vCPU thread has used CPU time for that many exits at least."""
        end = time.monotonic() + HANG
        task = f"/proc/{vm.process.pid}/task"
        while time.monotonic() < end:
            for thread in os.listdir(task):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that only the start needed has ended
                    with open(f"{task}/{thread}/comm", encoding="utf-8") as file:
                        name = file.read().strip()
                    if name.endswith("_vcpu 0"):
                        with open(f"{task}/{thread}/schedstat", encoding="utf-8") as file:
                            if int(file.read().split()[0]) > count * 5000:
                                return
            time.sleep(0.02)
        raise AssertionError("the guest does not run")

    def test_a_terminal_is_raw_while_the_guest_runs_and_restored_after(self):
        for ending in ("guest", "signal", "escape", "crash"):
            with self.subTest(ending=ending):
                master, slave = pty.openpty()
                before = termios.tcgetattr(slave)
                process = subprocess.Popen([program(), "run", "--kernel", guest("echo")], stdin=slave, stdout=slave,
                                           stderr=subprocess.PIPE, start_new_session=True)
                self.read_until(master, b"ready")
                during = termios.tcgetattr(slave)
                self.assertEqual(during[3] & (termios.ICANON | termios.ECHO | termios.ISIG), 0)
                os.write(master, b"\x03")  # Ctrl-C is the guest's
                self.read_until(master, b"\x04")
                if ending == "guest":
                    os.write(master, b"q")
                elif ending == "escape":
                    os.write(master, b"\x01x")
                else:
                    process.send_signal(signal.SIGTERM if ending == "signal" else signal.SIGSEGV)
                self.assertEqual(process.wait(HANG), 150 if ending == "crash" else 0)
                process.stderr.close()
                self.assertEqual(termios.tcgetattr(slave), before)
                os.close(master)
                os.close(slave)

    def test_the_escape_ends_a_guest_that_does_not_read_its_port(self):
        for junk in (b"", b"junk" * 2560):
            with self.subTest(junk=len(junk)):
                master, slave = pty.openpty()
                process = subprocess.Popen([program(), "run", "--kernel", guest("spin")], stdin=slave, stdout=slave,
                                           stderr=subprocess.PIPE, start_new_session=True)
                self.kill_at_the_end(process.pid)
                self.read_until(master, b"spinning")
                self.write_all(master, junk + b"\x01x")
                self.assertEqual(process.wait(HANG), 0)
                process.stderr.close()
                os.close(master)
                os.close(slave)

    def write_all(self, fd, data):
        os.set_blocking(fd, False)
        end = time.monotonic() + HANG
        while data:
            self.assertLess(time.monotonic(), end, f"{len(data)} bytes are not taken")
            try:
                data = data[os.write(fd, data):]
            except BlockingIOError:
                time.sleep(0.01)

    def read_until(self, fd, text):
        seen = b""
        while text not in seen:
            self.assertTrue(select.select([fd], [], [], HANG)[0], f"no {text!r} in {seen!r}")
            seen += os.read(fd, 4096)


class Starting(Case):
    def test_the_command_line_reaches_the_guest_by_either_entry(self):
        for name in ("command_line", "pvh"):
            with self.subTest(guest=name):
                self.expect(run_guest(name, "--cmdline", "one two=3"), 0, b"one two=3 pci=off\n")
                self.expect(run_guest(name, "--cmdline", "one -- two"), 0, b"one pci=off -- two\n")
                self.expect(run_guest(name, "--cmdline", "pci=conf1 one"), 0, b"pci=conf1 one\n")
                self.expect(run_guest(name), 0, b"console=ttyS0 reboot=k panic=1 pci=off\n")

    def test_a_configuration_file_boots_as_the_flags_do(self):
        config = self.config(guest("power_off"), **{"machine-config": {"vcpu_count": 2, "mem_size_mib": 64}})
        self.expect(mayfly("--no-api", "--config-file", config), 0, b"hello\n")

    def test_a_start_waits_for_an_image_that_is_let_go_soon(self):
        image = self.write("disk", "x" * 4096)
        config = self.config(guest("power_off"), drives=[
            {"drive_id": "d", "path_on_host": image, "is_root_device": False}])
        with open(image, "r+b") as holder:
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
            held = mayfly("--no-api", "--config-file", config)
            self.expect(held, 152, b"", "in use")
            vm = Running("--no-api", "--config-file", config)
            time.sleep(0.05)
        self.expect(vm.end(), 0)

    def test_every_count_of_vcpus_and_sizes_of_memory_start(self):
        for cpus, memory in ((1, "17M"), (2, "64M"), (32, "128M"), (1, "3G"), (1, "5G"), (1, "64G")):
            with self.subTest(cpus=cpus, memory=memory):
                self.expect(run_guest("power_off", "--cpus", str(cpus), "--memory", memory), 0, b"hello\n")

    def test_the_boot_trace_holds_every_phase_in_order(self):
        trace = self.path("trace.json")
        self.expect(run_guest("boot_mark", "--boot-trace", trace), 0, b"")
        with open(trace, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        names = {event["name"]: event for event in events}
        for name in ("process start", "build the machine", "map guest memory", "create VM", "create vCPUs",
                     "load kernel", "guest start", "first exit", "guest boot mark"):
            self.assertIn(name, names)
        self.assertLessEqual(names["guest start"]["ts"], names["first exit"]["ts"])
        self.assertTrue(all(event["ts"] >= 0 and event["ph"] in "Xi" for event in events))

        self.expect(run_guest("power_off", "--boot-trace", trace), 0, b"hello\n")
        with open(trace, encoding="utf-8") as file:
            self.assertIn("first serial byte", [event["name"] for event in json.load(file)["traceEvents"]])

    def test_the_boot_timer_tells_how_long_the_guest_took_to_its_mark(self):
        config = self.config(guest("boot_mark"))
        line = r"\] Guest-boot-time = +(\d+) us (\d+) ms, +(\d+) CPU us (\d+) CPU ms\n"
        result = mayfly("--no-api", "--config-file", config, "--boot-timer", "--no-seccomp")
        self.expect(result, 0, b"")
        found = re.findall(line, result.err)
        self.assertEqual(len(found), 1, result.err)
        us, ms, cpu_us, cpu_ms = (int(number) for number in found[0])
        self.assertEqual((us // 1000, cpu_us // 1000), (ms, cpu_ms))
        self.assertGreater(cpu_us, 0)
        without = mayfly("--no-api", "--config-file", config)
        self.expect(without, 0, b"")
        self.assertNotIn("Guest-boot-time", without.err)

    def test_threads_carry_the_names_that_tools_look_for(self):
        vm = Running("run", "--kernel", guest("spin"), "--cpus", "2").until(b"spinning\n")
        wanted = {"mayfly", "mayfly_vcpu 0", "mayfly_vcpu 1"}
        names, end = set(), time.monotonic() + HANG
        # A thread names itself: one that waits for its first turn still has the name of its process.
        while names != wanted and time.monotonic() < end:
            names = set()
            for thread in os.listdir(f"/proc/{vm.process.pid}/task"):
                with open(f"/proc/{vm.process.pid}/task/{thread}/comm", encoding="utf-8") as file:
                    names.add(file.read().strip())
            # KVM has a thread of its own in the process (kvm-nx-lpage-recovery).
            names = {name for name in names if not name.startswith("kvm-")}
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)
        self.assertEqual(names, wanted)

    def test_a_default_kernel_is_found_by_the_environment(self):
        env = {**os.environ, "MAYFLY_KERNEL": guest("power_off")}
        self.expect(mayfly("run", env=env), 0, b"hello\n")
        env = {"HOME": self.folder, "PATH": os.environ["PATH"]}
        self.expect(mayfly("run", env=env), 153, b"", "--kernel")


class Refusals(Case):
    def test_bad_arguments_end_with_153_and_name_the_flag(self):
        for arguments, text in (
                (["--frobnicate"], "--frobnicate"),
                (["run", "--cpus", "33"], "--cpus"),
                (["run", "--cpus", "0"], "--cpus"),
                (["run", "--cpus", "1.5"], "--cpus"),
                (["run", "--memory", "12Q"], "--memory"),
                (["run", "--memory", "0"], "--memory"),
                (["run", "--memory", "1K"], "--memory"),
                (["run", "--memory", "99999999999999999999G"], "--memory"),
                (["run", "--id", "no/slash"], "--id"),
                (["run", "--id", "x" * 65], "--id"),
                (["run", "--level", "loud", "--kernel", "/dev/null"], "loud"),
                (["run", "--boot-protocol", "bios"], "--boot-protocol"),
                (["--no-api"], "--config-file"),
                ([], "--no-api"),
                (["--api-sock", "/nowhere/at/all"], ("--api-sock", "/nowhere/at/all")),
                (["--api-sock", "/x", "--no-api", "--config-file", "/x"], "contradict"),
        ):
            with self.subTest(arguments=arguments):
                self.expect(mayfly(*arguments), 153, b"", text)

    def test_bad_configurations_end_with_152_and_name_what_is_wrong(self):
        for content, text in (
                ("{", "not JSON"),
                ("[]", "must be an object"),
                ('{"drives": []}', "boot-source"),
                ('{"drives": [], "drives": [], "boot-source": {"kernel_image_path": "/k"}}', "given twice"),
                ('{"drives": [{"drive_id": "r"}], "boot-source": {"kernel_image_path": "/k"}}', "drives"),
                ('{"drives": [], "boot-source": {"kernel_image_path": "/nonexistent"}}', ": boot-source: open kernel image /none"),
                ('{"drives": [{"drive_id": "d", "path_on_host": "/nonexistent", "is_root_device": false}], '
                 '"boot-source": {"kernel_image_path": "%s"}}' % __file__, ": drives: drive d: open image /nonexistent"),
                ('{"drives": [], "boot-source": {"kernel_image_path": "/dev/null"}, "logger": {"level": "loud"}}', ": logger: "),
                ('{"drives": [], "boot-source": {"kernel_image_path": "/dev/null"}}', "/dev/null"),
                ('{"drives": [{"drive_id": "d", "path_on_host": "/a", "is_root_device": false}, {"drive_id": "d", '
                 '"path_on_host": "/b", "is_root_device": false}], "boot-source": {"kernel_image_path": "/k"}}', "has this id"),
                ('{"drives": [], "network-interfaces": [{"iface_id": "n", "backend": "user"}, {"iface_id": "n", '
                 '"backend": "user"}], "boot-source": {"kernel_image_path": "/k"}}', "has this id"),
                ('{"drives": [], "vsock": {}, "boot-source": {"kernel_image_path": "/k"}}', "vsock"),
        ):
            with self.subTest(content=content):
                config = self.write("bad.json", content)
                self.expect(mayfly("--no-api", "--config-file", config), 152, b"", (f"configuration file {config}: ", text))
        self.expect(mayfly("--no-api", "--config-file", self.path("missing.json")), 152, b"", "missing.json")

    def test_output_files_that_cannot_be_written_are_refused_before_anything_runs(self):
        nowhere = self.path("no/such")
        for flag in ("--log-path", "--metrics-path", "--boot-trace"):
            with self.subTest(flag=flag):
                self.expect(run_guest("power_off", flag, nowhere), 153, b"", (flag, nowhere))
        for section, field in (("logger", "log_path"), ("metrics", "metrics_path")):
            with self.subTest(section=section):
                config = self.config(guest("power_off"), **{section: {field: nowhere}})
                self.expect(mayfly("--no-api", "--config-file", config), 152, b"",
                            (f"configuration file {config}: {section}", nowhere))

    def test_what_it_was_started_with_and_no_argument_names_is_closed(self):
        with open(self.write("left", "x"), "rb") as left, open(guest("spin"), "rb") as kernel:
            process = subprocess.Popen([program(), "run", "--kernel", f"/dev/fd/{kernel.fileno()}"], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, pass_fds=(left.fileno(), kernel.fileno()))
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            self.assertEqual(process.stdout.readline(), b"spinning\n")
            links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
            self.assertNotIn(self.path("left"), links)
            self.assertIn(os.path.realpath(guest("spin")), links)

    def test_devices_are_no_outputs_and_nothing_runs(self):
        for device in ("/dev/kmsg", "/dev/kvm", "/dev/random"):
            for flag in ("--log-path", "--metrics-path", "--boot-trace"):
                with self.subTest(flag=flag, device=device):
                    self.expect(run_guest("power_off", flag, device), 153, b"", (flag, device, "no other device"))

    def test_a_start_that_is_refused_leaves_the_boot_trace_as_it_was(self):
        trace = self.write("trace", "the last one")
        self.expect(run_guest("power_off", "--boot-trace", trace, "--log-path", self.path("no/such")), 153, b"")
        with open(trace, encoding="utf-8") as file:
            self.assertEqual(file.read(), "the last one")

    def test_a_boot_trace_that_is_full_at_the_end_is_an_error_of_the_host(self):
        self.expect(run_guest("power_off", "--boot-trace", "/dev/full"), 1, b"hello\n", "/dev/full")

    def test_what_comes_from_a_file_reaches_no_terminal_raw(self):
        config = self.write("bad.json", json.dumps({"\x1b[31m\n" + "x" * 100_000: 1, "drives": [],
                                                   "boot-source": {"kernel_image_path": "/k"}}))
        result = mayfly("--no-api", "--config-file", config)
        self.expect(result, 152, b"", "unknown field")
        self.assertNotIn("\x1b", result.err)
        self.assertLess(len(result.err), 5000)

    def without_kvm(self, hide, *runner):
        """Runs a guest where `hide`, a shell command in mount namespace of its own, has changed /dev."""
        script = f'mount --make-rprivate / && {hide} && exec "$@"'
        done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *runner, program(), "run", "--kernel",
                               guest("power_off")], stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG,
                              check=False)
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def test_a_kvm_that_is_missing_or_forbidden_or_none_is_the_hosts_fault(self):
        if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev"], capture_output=True,
                          check=False).returncode != 0:
            self.skipTest("mounting in a namespace of its own takes root")
        self.expect(self.without_kvm("mount -t tmpfs none /dev"), 1, b"", ("/dev/kvm", "ENOENT", "modprobe"))
        self.expect(self.without_kvm("mount --bind /dev/null /dev/kvm"), 1, b"", ("/dev/kvm", "not a KVM device"))
        forbidden = self.write("forbidden", "")
        os.chmod(forbidden, 0)
        self.expect(self.without_kvm(f"mount --bind {forbidden} /dev/kvm", "setpriv", "--bounding-set=-all",
                                     "--inh-caps=-all"), 1, b"", ("/dev/kvm", "EACCES", "group"))

    def test_images_that_are_none_are_refused_by_name(self):
        noise = self.path("noise")
        with open(noise, "wb") as file:
            file.write(os.urandom(100_000))
        fifo = self.path("fifo")
        os.mkfifo(fifo)
        for path in (noise, fifo, self.folder, "/dev/zero", self.path("missing"), self.write("empty", "")):
            for arguments in (["--kernel", path], ["--kernel", guest("power_off"), "--initrd", path]):
                if arguments[0] == "--kernel" and len(arguments) == 4 and path == noise:
                    continue  # any bytes make an initrd
                with self.subTest(arguments=arguments):
                    self.expect(mayfly("run", *arguments), 152, b"", path)

    def test_an_output_that_is_an_input_is_refused_and_the_input_kept(self):
        kernel = self.path("kernel.elf")
        with open(guest("power_off"), "rb") as file:
            content = file.read()
        with open(kernel, "wb") as file:
            file.write(content)
        for flag in ("--log-path", "--metrics-path", "--boot-trace"):
            with self.subTest(flag=flag):
                self.expect(mayfly("run", "--kernel", kernel, flag, kernel), 153, b"", ("kernel image", flag))
                with open(kernel, "rb") as file:
                    self.assertEqual(file.read(), content)

    def test_a_command_line_that_is_too_long_or_not_text_is_refused(self):
        self.expect(run_guest("command_line", "--cmdline", "x" * 2047), 0, b"x" * 2047 + b"\n")
        self.expect(run_guest("command_line", "--cmdline", "x" * 2048), 152, b"", "2048")
        self.expect(run_guest("command_line", "--cmdline", "a\nb"), 152, b"", "command line")

    def test_memory_that_is_too_small_for_the_kernel_is_refused(self):
        self.expect(run_guest("power_off", "--memory", "8M"), 152, b"", "memory")

    def test_huge_pages_that_the_host_does_not_have_are_refused_with_the_way_out(self):
        with open("/proc/sys/vm/nr_hugepages", encoding="utf-8") as file:
            if int(file.read()) != 0:
                self.skipTest("this host has huge pages reserved")
        self.expect(run_guest("power_off", "--huge-pages"), 1, b"", "nr_hugepages")


class Devices(Case):
    def test_an_empty_image_is_no_root_file_system_and_as_another_disk_is_warned_of(self):
        empty = self.write("empty", "")
        self.expect(run_guest("power_off", "--rootfs", empty), 152, b"", f"drive rootfs: {empty} has no bytes, and so")
        self.expect(run_guest("power_off", "--disk", empty), 0, b"hello\n",
                    f"drive disk1: {empty} has no bytes: the guest sees an empty disk")

    def test_a_tap_that_is_not_there_is_refused_and_not_made(self):
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            self.skipTest("this user may not use /dev/net/tun")
        self.expect(run_guest("power_off", "--net", "tap=mayflytypo0"), 152, b"",
                    ("interface net1: tap mayflytypo0: there is no interface of this name", "ip tuntap add dev mayflytypo0"))
        self.assertFalse(os.path.exists("/sys/class/net/mayflytypo0"))


class Output(Case):
    def test_help_and_version_go_to_stdout_with_0(self):
        self.assertIn(b"Exit status", mayfly("--help").out)
        self.assertIn(b"--kernel", mayfly("run", "--help").out)
        self.assertTrue(mayfly("--version").out.startswith(b"mayfly "))
        for arguments in (["--help"], ["run", "--help"], ["--version"]):
            self.expect(mayfly(*arguments), 0)

    def test_the_doctor_examines_this_host(self):
        result = mayfly("doctor")
        self.expect(result, 0)
        for subject in (b"KVM", b"huge pages", b"cgroups", b"userfaultfd", b"network", b"can run microVMs"):
            self.assertIn(subject, result.out)

    def test_the_log_goes_to_its_file_in_the_dialects_format(self):
        log = self.path("log")
        self.expect(run_guest("power_off", "--log-path", log, "--level", "Info", "--show-level", "--show-log-origin",
                              "--id", "vm-7"), 0, b"hello\n")
        with open(log, encoding="utf-8") as file:
            text = file.read()
        self.assertRegex(text, r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[vm-7:mayfly:INFO:[\w/]+\.cc:\d+\] ")
        self.assertIn("guest power-off", text)

    def test_the_configuration_files_logger_and_metrics_are_followed_and_flags_win(self):
        sections = {"logger": {"log_path": self.path("log"), "level": "Info", "show_level": True},
                    "metrics": {"metrics_path": self.path("metrics"), "emit_id": True, "properties": {"zone": "a"}}}
        config = self.config(guest("power_off"), **sections)
        self.expect(mayfly("--no-api", "--config-file", config, "--id", "vm-7"), 0, b"hello\n")
        with open(self.path("log"), encoding="utf-8") as file:
            self.assertRegex(file.read(), r"(?m)^\S+ \[vm-7:mayfly:INFO\] guest power-off")
        with open(self.path("metrics"), encoding="utf-8") as file:
            line = json.loads(file.readline())
        self.assertEqual((line["id"], line["properties"]), ("vm-7", {"zone": "a"}))

        self.expect(mayfly("--no-api", "--config-file", config, "--log-path", self.path("other"), "--metrics-path",
                           self.path("others")), 0, b"hello\n")
        self.assertGreater(os.path.getsize(self.path("other")), 0)
        self.assertGreater(os.path.getsize(self.path("others")), 0)

    def test_fifos_without_a_reader_hold_up_nothing(self):
        for name in ("log", "metrics", "trace"):
            os.mkfifo(self.path(name))
        self.expect(run_guest("flood_unknown", "--log-path", self.path("log"), "--level", "Trace", "--metrics-path",
                              self.path("metrics"), "--boot-trace", self.path("trace")), 0, b"still here\n")

    def test_metrics_are_written_at_the_start_and_at_the_end(self):
        metrics = self.path("metrics")
        self.expect(run_guest("reset_i8042", "--metrics-path", metrics), 0)
        with open(metrics, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        self.assertGreaterEqual(len(lines), 2)
        self.assertEqual(sum(line["i8042"]["reset_count"] for line in lines), 1)
        self.assertEqual(sum(line["vcpu"]["exit_io_out"] for line in lines), 1)


class Api:
    """A monitor that waits for its control API to tell what to run."""

    def __init__(self, path, *arguments):
        self.vm = Running("--api-sock", path, *arguments)
        self.connection = Connection(path)
        self.connection.connect_once_served(self.vm.process)

    def call(self, method, path, body=None):
        """The status, and the body as JSON or None."""
        self.connection.request(method, path, None if body is None else json.dumps(body))
        answer = self.connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None

    def end(self):
        result = self.vm.end()
        self.connection.close()
        return result


class CpuTemplates(Case):
    MODEL = "0bxxxx000000000011xx00011011110010"  # of CPUID leaf 1, EAX
    # LAHF in 64-bit mode off, which is bit 0 of leaf 0x80000001, ECX; the last entry of IA32_PAT write-through.
    TEMPLATE = {
        "cpuid_modifiers": [
            {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
                {"register": "eax", "bitmap": MODEL},
                {"register": "ecx", "bitmap": "0b0" + 31 * "x"}]},
            {"leaf": "0x80000001", "subleaf": "0x0", "flags": 0, "modifiers": [
                {"register": "ecx", "bitmap": "0b0"}]}],
        "msr_modifiers": [{"addr": "0x277", "bitmap": "0bx_x100" + 56 * "x"}]}

    def numbers(self, out):
        return [int(line, 16) for line in out.decode().split()]

    def expect_changed(self, before, after):
        self.assertEqual(len(before), 5)
        self.assertEqual(after[0], before[0] & 0xf000c000 | 0x000306f2)
        self.assertEqual(before[2] & 1, 1, "a processor without LAHF")
        self.assertEqual(after[1], before[1])  # whether there is a hypervisor is not a template's to say
        self.assertEqual(after[2], before[2] & ~1)
        self.assertEqual(after[3], before[3] & ~0x07000000 | 0x04000000)
        self.assertEqual(after[4], before[4])

    def boot(self, *arguments, **sections):
        return mayfly("--no-api", "--config-file", self.config(guest("cpu_template"), **sections), *arguments)

    def test_a_template_of_the_configuration_file_changes_its_bits_and_no_others(self):
        before, after = self.boot(), self.boot(**{"cpu-config": self.TEMPLATE})
        self.expect(before, 0)
        self.expect(after, 0, None, "ecx: bits 0x80000000 are the machine's to decide")
        self.expect_changed(self.numbers(before.out), self.numbers(after.out))
        path = self.write("template.json", json.dumps(self.TEMPLATE))
        self.assertEqual(self.boot(**{"cpu-config": path}).out, after.out)
        self.expect(self.boot(**{"cpu-config": self.path("none.json")}), 152, b"", self.path("none.json"))

    def test_a_template_of_the_control_api_changes_its_bits_and_no_others(self):
        api = Api(self.path("api.sock"))
        self.assertEqual(api.call("PUT", "/boot-source", {"kernel_image_path": guest("cpu_template")})[0], 204)
        self.assertEqual(api.call("PUT", "/cpu-config", self.TEMPLATE), (204, None))
        shown = api.call("GET", "/vm/config")[1]["cpu-config"]
        self.assertEqual(shown["msr_modifiers"], [{"addr": "0x277", "bitmap": "0bxxxxx100" + 56 * "x"}])
        self.assertEqual(api.call("PUT", "/actions", {"action_type": "InstanceStart"}), (204, None))
        result = api.end()
        self.expect(result, 0)
        self.expect_changed(self.numbers(self.boot().out), self.numbers(result.out))
        # What is shown is a section that makes the same processor.
        self.assertEqual(self.boot(**{"cpu-config": shown}).out, result.out)

    def test_what_this_host_does_not_have_is_named_at_the_start_which_can_be_tried_again(self):
        api = Api(self.path("api.sock"))
        self.assertEqual(api.call("PUT", "/boot-source", {"kernel_image_path": guest("cpu_template")})[0], 204)
        leaf = {"leaf": "0x3fffffff", "subleaf": "0x1", "flags": 0, "modifiers": []}
        for template, text in (
                ({"cpuid_modifiers": [leaf]}, "leaf 0x3fffffff, subleaf 0x1"),
                ({"msr_modifiers": [{"addr": "0x277", "bitmap": "0b0"}, {"addr": "0x12345678", "bitmap": "0b1"}]},
                 "addr 0x12345678"),
                ({"kvm_capabilities": ["1", "4000000000"]}, "capability 4000000000")):
            with self.subTest(template=template):
                self.assertEqual(api.call("PUT", "/cpu-config", template), (204, None))
                status, body = api.call("PUT", "/actions", {"action_type": "InstanceStart"})
                self.assertEqual(status, 400)
                self.assertIn("cpu-config: ", body["fault_message"])
                self.assertIn(text, body["fault_message"])
                self.assertEqual(api.call("GET", "/")[1]["state"], "Not started")
                self.expect(self.boot(**{"cpu-config": template}), 152, b"", ("cpu-config: ", text))
        # A template that is taken back leaves nothing behind.
        self.assertEqual(api.call("PUT", "/cpu-config", {"kvm_capabilities": ["!56"]}), (204, None))
        self.assertEqual(api.call("PUT", "/actions", {"action_type": "InstanceStart"}), (204, None))
        self.expect(api.end(), 0, self.boot().out)

    def test_a_machine_of_several_vcpus_starts_with_a_template(self):
        machine = {"vcpu_count": 4, "mem_size_mib": 64, "smt": True}
        self.expect(self.boot(**{"cpu-config": self.TEMPLATE, "machine-config": machine}), 0)


if __name__ == "__main__":
    main(__doc__)
