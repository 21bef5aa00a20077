#!/usr/bin/python3
"""The jailer from outside: jails made, entered, looked at, attacked and removed.

  jailer_test.py --mayfly STATIC_BINARY --guests FOLDER --jailer BINARY --probe STATIC_BINARY [unittest's own arguments]

It takes root. Only the classes with a microVM need /dev/kvm: in the others tests/integration/jailer/jail_probe.c stands
in the monitor's place. What is on the host of everybody (cgroups, network namespaces) has names of the test's own.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import glob
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time

import bare_guests
from bare_guests import HANG, Case, Connection, Result, guest, main, program



def bytes_of(path):
    with open(path, "rb") as file:
        return file.read()


def text_of(path):
    return bytes_of(path).decode(errors="replace")


# Users of this process's own: a jail that shares its user with another cannot be removed while that runs.
UID = 200_000 + 2 * os.getpid()
GID = UID + 1
ADDR_NO_RANDOMIZE = 0x0040000
DEVICES = {"kvm", "net/tun", "urandom"} | ({"userfaultfd"} if "userfaultfd" in text_of("/proc/misc") else set())

JAILER = ""
PROBE = ""


def identity(path):
    entry = os.stat(path)
    return entry.st_dev, entry.st_ino


def add_session_key(name):
    """A key in a session keyring of this process's own, which its children inherit (add_key(2), keyctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    add_key, keyctl, join, session = 248, 250, 1, -3
    if libc.syscall(keyctl, join, None) < 0:
        if ctypes.get_errno() != errno.ENOSYS:
            raise OSError(ctypes.get_errno(), "no keyring of its own")
    elif libc.syscall(add_key, b"user", name, b"secret", 6, session) < 0:
        raise OSError(ctypes.get_errno(), "no key")


def hierarchies():
    """{controller: folder} of the hierarchies of version 1 that are mounted, and of version 2 as ""."""
    found = {}
    for line in text_of("/proc/self/mountinfo").splitlines():
        mount, system = (half.split() for half in line.split(" - "))
        if system[0] == "cgroup":
            for controller in system[2].split(","):
                found.setdefault(controller, mount[4])
        elif system[0] == "cgroup2":
            found.setdefault("", mount[4])
    return found


def wait_until(done, what):
    end = time.monotonic() + HANG
    while not done():
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        time.sleep(0.005)


class JailCase(Case):
    """A folder of jails of the test's own, and names that nobody else has."""

    def setUp(self):
        super().setUp()
        os.chmod(self.folder, 0o711)
        self.base = self.path("jails")
        self.unique = f"t{os.getpid()}-{self._testMethodName.replace('_', '-')[:40]}"
        self.parent = f"jailer-test-{os.getpid()}"
        self.monitor = PROBE
        self.addCleanup(self.sweep)

    def sweep(self):
        """What a test that failed may have left on the host."""
        for pid in self.jailed():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.jailed(), "the jails' processes have ended")
        for folder in set(hierarchies().values()):
            for group in sorted(glob.glob(f"{folder}/{self.parent}/**/", recursive=True), reverse=True):
                wait_until(lambda group=group: self.remove_group(group), f"{group} is removed")

    @staticmethod
    def remove_group(group):
        try:
            os.rmdir(group)
        except OSError as problem:
            return problem.errno == errno.ENOENT
        return True

    def jailed(self):
        """Processes whose root directory is one of this test's jails."""
        roots = {identity(root) for root in glob.glob(f"{self.base}/*/*/root")}
        found = []
        for name in os.listdir("/proc") if roots else ():
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if identity(f"/proc/{name}/root") in roots:
                        found.append(int(name))
        return found

    def name(self):
        return os.path.basename(self.monitor)

    def jail(self, jail_id=None):
        return os.path.join(self.base, self.name(), jail_id or self.unique)

    def root(self, jail_id=None):
        return os.path.join(self.jail(jail_id), "root")

    def prepare(self, **files):
        """A root directory with files for the microVM: name=path or name=bytes."""
        os.makedirs(self.root(), mode=0o755, exist_ok=True)
        for name, content in files.items():
            path = os.path.join(self.root(), name)
            if isinstance(content, bytes):
                with open(path, "wb") as file:
                    file.write(content)
            else:
                shutil.copy(content, path)
            os.chmod(path, 0o644)

    def arguments(self, *options, own=(), jail_id=None, uid=UID, gid=GID):
        return [JAILER, "--id", jail_id or self.unique, "--exec-file", self.monitor, "--uid", str(uid), "--gid", str(gid),
                "--chroot-base-dir", self.base, *options, "--", *own]

    def run_jailer(self, *options, own=("do", "hello"), **keywords):
        jail = {key: keywords.pop(key) for key in ("jail_id", "uid", "gid") if key in keywords}
        done = subprocess.run(self.arguments(*options, own=own, **jail), stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=HANG, check=False, **keywords)
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def start(self, *options, own, **keywords):
        process = subprocess.Popen(self.arguments(*options, own=own, **keywords), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.stop, process)
        return process

    @staticmethod
    def stop(process):
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    def cleanup_command(self, *options, jail_id=None):
        return [JAILER, "--cleanup", "--id", jail_id or self.unique, "--exec-file", self.monitor, "--chroot-base-dir",
                self.base, *options]

    def cleanup(self, *options, jail_id=None):
        done = subprocess.run(self.cleanup_command(*options, jail_id=jail_id), stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=HANG, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"))

    def groups(self):
        """The test's groups, in all hierarchies."""
        return [group for folder in set(hierarchies().values())
                for group in glob.glob(f"{folder}/{self.parent}/**/", recursive=True)]

    def refused(self, result, *texts, code=1):
        self.assertEqual(result.code, code, str(result))
        self.assertTrue(result.err.startswith("jailer: "), result.err)
        self.assertEqual(result.err.count("\n"), 1, result.err)
        self.assertLess(len(result.err), 1000)
        for text in texts:
            self.assertIn(text, result.err)

    def tree(self):
        """All that is in this test's folder, with what it is."""
        found = {}
        for folder, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                entry = os.lstat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = (entry.st_mode, entry.st_uid, entry.st_gid, entry.st_ino, entry.st_size)
        return found

    def refuses(self, *options, texts, code=1, own=("do", "hello"), **keywords):
        """A dry run refuses what the real one does."""
        before, groups = self.tree(), self.groups()
        for dry in ((), ("--dry-run",)):
            self.refused(self.run_jailer(*options, *dry, own=own, **keywords), *texts, code=code)
            self.assertEqual(self.tree(), before)
            self.assertEqual(self.groups(), groups)

    def nothing_left(self):
        self.assertFalse(os.path.exists(self.base), list(os.walk(self.base)))
        self.assertEqual(self.groups(), [])
        self.assertEqual(self.jailed(), [])

    def needs(self, *controllers):
        missing = [one for one in controllers if one not in hierarchies()]
        if missing:
            self.skipTest(f"no controller {missing[0]} of cgroup version 1")


class MicroVm(JailCase):
    """A jailed monitor with a bare guest."""

    def setUp(self):
        super().setUp()
        self.monitor = program()

    def config_bytes(self, **sections):
        return json.dumps({"boot-source": {"kernel_image_path": "/kernel"}, "drives": [], **sections}).encode()

    def start_guest(self, *options, kernel="spin", own=(), **sections):
        self.prepare(kernel=guest(kernel), config=self.config_bytes(**sections))
        return self.start(*options, own=("--config-file", "/config", *own))

    def socket_path(self):
        return os.path.join(self.root(), "run", self.name() + ".socket")

    def call(self, method, path, body=None):
        wait_until(lambda: os.path.exists(self.socket_path()), "the control API's socket")
        end = time.monotonic() + HANG
        while True:
            # A path of a test's folder may be longer than a socket's address: by way of the folder's descriptor.
            folder = os.open(os.path.dirname(self.socket_path()), os.O_PATH)
            connection = Connection(f"/proc/self/fd/{folder}/{os.path.basename(self.socket_path())}")
            try:
                connection.request(method, path, json.dumps(body) if body is not None else None)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
            finally:
                connection.close()
                os.close(folder)

    def metric(self, name):
        """Of the whole life; without labels but the id."""
        return float(re.search(rf"^{name}\{{[^}}]*\}} (.*)$", self.call("GET", "/metrics")[1].decode(), re.M)[1])

    def pid_of_file(self):
        with open(os.path.join(self.root(), self.name() + ".pid"), encoding="ascii") as file:
            return int(file.read())

    def running(self):
        wait_until(lambda: json.loads(self.call("GET", "/")[1])["state"] == "Running", "the microVM runs")


class Running(MicroVm):
    def test_a_guest_runs_and_the_api_answers_at_the_jails_socket(self):
        process = self.start_guest()
        self.running()
        self.assertEqual(json.loads(self.call("GET", "/")[1])["id"], self.unique)
        self.assertEqual(self.pid_of_file(), process.pid)
        self.assertEqual(os.stat(self.socket_path()).st_uid, UID)
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)

    def test_a_microvm_is_set_up_by_calls_with_files_put_there_afterwards(self):
        self.start(own=())
        self.assertEqual(json.loads(self.call("GET", "/")[1])["state"], "Not started")
        shutil.copy(guest("spin"), os.path.join(self.root(), "kernel"))
        os.chmod(os.path.join(self.root(), "kernel"), 0o644)
        self.assertEqual(self.call("PUT", "/boot-source", {"kernel_image_path": "/kernel"})[0], 204)
        self.assertEqual(self.call("PUT", "/logger", {"log_path": "/log", "level": "Info"})[0], 204)
        self.assertEqual(self.call("PUT", "/actions", {"action_type": "InstanceStart"})[0], 204)
        self.running()
        self.assertEqual(os.stat(os.path.join(self.root(), "log")).st_uid, UID)

    def test_a_guest_that_floods_fills_no_file_beyond_the_jails_limit(self):
        size = 1 << 16
        self.prepare(kernel=guest("flood"))
        process = self.start("--resource-limit", f"fsize={size}", own=())
        for path, body in (("/serial", {"serial_out_path": "/serial"}), ("/boot-source", {"kernel_image_path": "/kernel"}),
                           ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 64}),
                           ("/actions", {"action_type": "InstanceStart"})):
            self.assertEqual(self.call("PUT", path, body)[0], 204)
        wait_until(lambda: self.metric("mayfly_uart_rate_limiter_dropped_bytes_total") > 0, "what does not fit is dropped")
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Resumed"})[0], 204)
        self.running()
        process.terminate()
        self.assertEqual(process.wait(HANG), 0, process.stderr.read())
        self.assertEqual(os.path.getsize(os.path.join(self.root(), "serial")), size)

    def test_the_monitors_exit_code_is_the_jails(self):
        for kernel, code in (("reset_i8042", 0), ("triple_fault", 1)):
            with self.subTest(kernel=kernel):
                self.monitor = program()
                self.prepare(kernel=guest(kernel), config=self.config_bytes())
                process = self.start(own=("--no-api", "--config-file", "/config"))
                out, err = process.communicate(timeout=HANG)
                self.assertEqual(process.returncode, code, f"{out}{err}")
                self.expect(self.cleanup(), 0)

    def test_signals_reach_the_monitor(self):
        process = self.start_guest()
        self.running()
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)

    def test_a_daemon_has_a_session_of_its_own_and_the_jailer_ends(self):
        for options in (("--daemonize",), ("--new-pid-ns",), ("--daemonize", "--new-pid-ns")):
            with self.subTest(options=options):
                process = self.start_guest(*options)
                self.assertEqual(process.wait(HANG), 0, process.stderr)
                pid = self.pid_of_file()
                self.assertNotEqual(pid, process.pid)
                self.running()
                status = text_of(f"/proc/{pid}/status")
                inner = re.search(r"^NSpid:\s+(.*)$", status, re.M)[1].split()
                self.assertEqual(inner[1:], ["1"] if "--new-pid-ns" in options else [])
                if "--daemonize" in options:
                    self.assertEqual(os.getsid(pid), pid)
                    for standard in range(3):
                        self.assertEqual(os.readlink(f"/proc/{pid}/fd/{standard}"), "/dev/null")
                self.refused(self.cleanup(), f"process {pid} runs in it")
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda: not self.jailed(), "the monitor has ended")
                self.expect(self.cleanup(), 0)

    def test_a_network_namespace_is_joined_and_a_tap_in_it_works(self):
        namespace = f"jt{os.getpid()}"
        in_it = ["ip", "netns", "exec", namespace]
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self.addCleanup(subprocess.run, ["ip", "netns", "delete", namespace], check=True)
        subprocess.run([*in_it, "ip", "tuntap", "add", "dev", "tap0", "mode", "tap", "user", str(UID)], check=True)
        process = self.start_guest("--netns", f"/run/netns/{namespace}",
                                   **{"network-interfaces": [{"iface_id": "net0", "host_dev_name": "tap0"}]})
        self.running()
        self.assertEqual(os.stat(f"/proc/{process.pid}/ns/net").st_ino, os.stat(f"/run/netns/{namespace}").st_ino)
        self.addCleanup(self.stop, process)

    def test_a_microvm_is_saved_in_its_jail_and_goes_on_in_another(self):
        process = self.start_guest()
        self.running()
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)
        files = {"snapshot_path": "vm.state", "mem_file_path": "vm.memory"}  # of the root directory, where it works
        for _ in range(2):
            self.assertEqual(self.call("PUT", "/snapshot/create", files), (204, b""))
        for name in files.values():
            entry = os.stat(os.path.join(self.root(), name))
            self.assertEqual((entry.st_uid, entry.st_gid, stat.S_IMODE(entry.st_mode)), (UID, GID, 0o600))
            shutil.copy(os.path.join(self.root(), name), self.folder)
        self.assertEqual([name for name in os.listdir(self.root()) if "partial" in name], [])
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)
        self.expect(self.cleanup(), 0)

        self.prepare(**{name: self.path(name) for name in files.values()})
        process = self.start(own=())
        loaded = self.call("PUT", "/snapshot/load", {"snapshot_path": "vm.state", "resume_vm": True,
                                                     "mem_backend": {"backend_type": "File", "backend_path": "vm.memory"}})
        self.assertEqual(loaded, (204, b""))
        self.running()
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)
        again = {"snapshot_path": "/again.state", "mem_file_path": "/again.memory"}
        self.assertEqual(self.call("PUT", "/snapshot/create", again), (204, b""))
        # What belongs to root stays what others can be started from.
        self.assertEqual(self.call("PUT", "/snapshot/create", files)[0], 400)
        for name in files.values():
            self.assertEqual(bytes_of(os.path.join(self.root(), name)), bytes_of(self.path(name)))
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)

    def test_outputs_that_name_a_device_of_the_hosts_are_refused(self):
        self.start(own=())
        for path in ("/dev/kmsg", "/dev/tty", "/dev/vda", "/dev/mem"):
            for call, field in (("/serial", "serial_out_path"), ("/logger", "log_path"), ("/metrics", "metrics_path")):
                status, answer = self.call("PUT", call, {field: path})
                self.assertEqual((status, path in answer.decode()), (400, True), answer)
        self.assertEqual(sorted(os.listdir(os.path.join(self.root(), "dev"))), sorted({name.split("/")[0] for name in DEVICES}))

    def handler(self, goes):
        """Takes the descriptor of the guest's memory, waits for the first page that is missed, and brings none."""
        path = os.path.join(self.root(), "handler")
        listener = socket.socket(socket.AF_UNIX)
        folder = os.open(self.root(), os.O_PATH)
        listener.bind(f"/proc/self/fd/{folder}/handler")
        os.close(folder)
        os.chown(path, UID, GID)
        listener.listen()
        self.addCleanup(listener.close)
        asked = threading.Event()

        def run():
            connection = listener.accept()[0]
            _, [descriptor], _, _ = socket.recv_fds(connection, 65536, 1)
            self.addCleanup(connection.close)
            missed = select.select([descriptor], [], [], HANG)[0]
            if goes:
                os.close(descriptor)
            else:
                self.addCleanup(os.close, descriptor)
            if missed:
                asked.set()

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        return asked

    def test_a_handler_of_page_faults_that_brings_none_holds_up_its_own_microvm_which_can_be_ended(self):
        if "userfaultfd" not in DEVICES:
            self.skipTest("this host has no /dev/userfaultfd")
        process = self.start_guest()
        self.running()
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)
        files = {"snapshot_path": "vm.state", "mem_file_path": "vm.memory"}
        self.assertEqual(self.call("PUT", "/snapshot/create", files), (204, b""))
        shutil.copy(os.path.join(self.root(), "vm.state"), self.folder)
        process.kill()
        process.wait(HANG)
        for goes, number, code in ((False, signal.SIGKILL, -signal.SIGKILL), (True, signal.SIGKILL, -signal.SIGKILL),
                                   (True, signal.SIGSEGV, 150), (False, signal.SIGTERM, 0)):
            with self.subTest(goes=goes, signal=number):
                self.expect(self.cleanup(), 0)
                self.prepare(**{"vm.state": self.path("vm.state")})
                asked = self.handler(goes)
                process = self.start(own=())
                answers = []

                def load(answers=answers):
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        answers.append(self.call("PUT", "/snapshot/load", {
                            "snapshot_path": "vm.state", "resume_vm": True,
                            "mem_backend": {"backend_type": "Uffd", "backend_path": "handler"}}))

                loader = threading.Thread(target=load)
                loader.start()
                self.assertTrue(asked.wait(HANG))
                self.assertIsNone(process.poll())
                process.send_signal(number)
                self.assertEqual(process.wait(HANG), code)
                loader.join()
                # A page that nobody brought is none of zeros.
                self.assertEqual([status for status, _ in answers], [400] if number == signal.SIGTERM else [])

    def test_the_jails_user_sees_the_process_and_cannot_look_into_the_jail(self):
        process = self.start_guest()
        self.running()
        with open(program(), "rb") as file:
            listed = subprocess.run([f"/proc/self/fd/{file.fileno()}", "ps", "--json"], pass_fds=[file.fileno()], user=UID,
                                    group=GID, extra_groups=[], capture_output=True, text=True, check=True)
        [one] = json.loads(listed.stdout)
        self.assertEqual((one["name"], one["pid"], one["state"]), (os.path.basename(self.jail()), process.pid, None))
        self.assertTrue(one["socket"].startswith("/run/"), one)

    def test_a_template_and_its_clones_are_in_one_jail(self):
        process = self.start_guest()
        self.running()
        self.assertEqual(self.call("PATCH", "/vm", {"state": "Paused"})[0], 204)
        self.assertEqual(self.call("PUT", "/snapshot/create", {"snapshot_path": "vm.state", "mem_file_path": "vm.memory"})[0], 204)
        for name in ("vm.state", "vm.memory"):
            shutil.copy(os.path.join(self.root(), name), self.folder)
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)
        self.expect(self.cleanup(), 0)

        self.prepare(**{name: self.path(name) for name in ("vm.state", "vm.memory")})
        process = self.start(own=("template", "/vm.state", "/vm.memory", "--api-sock", f"/run/{self.name()}.socket", "--pool", "2"))
        status, answer = self.call("POST", "/clone", {"count": 3, "id_prefix": "in", "serial_out_path": "{id}.log"})
        self.assertEqual(status, 200, answer)
        clones = json.loads(answer)["clones"]
        self.assertEqual(len(clones), 3)
        for clone in clones:
            self.assertEqual(identity(f"/proc/{clone['pid']}/root"), identity(self.root()))
            status = text_of(f"/proc/{clone['pid']}/status")
            self.assertIn(f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n", status)
            self.assertIn("Seccomp:\t2\n", status)
            for entry in (f"run/{clone['id']}.sock", f"{clone['id']}.log"):
                self.assertTrue(os.path.exists(os.path.join(self.root(), entry)), entry)
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)
        self.assertTrue(all(clone["pid"] in self.jailed() for clone in clones))
        for clone in clones:
            os.kill(clone["pid"], signal.SIGTERM)
        # Nobody here waits for them: what has ended is gone a moment later.
        wait_until(lambda: self.cleanup().code == 0, "the clones have ended")

    def test_start_up_times_are_counted_from_the_jailers_start(self):
        begin = time.monotonic_ns() // 1000
        process = self.start_guest()
        self.running()
        command = bytes_of(f"/proc/{process.pid}/cmdline").split(b"\0")
        told = int(command[command.index(b"--start-time-us") + 1])
        self.assertTrue(begin <= told <= time.monotonic_ns() // 1000)
        self.assertEqual(command[command.index(b"--parent-cpu-time-us") + 1], b"0")


class Inside(MicroVm):
    """What a running jailed monitor has, beside a written list."""

    # Every descriptor is of one of these kinds, and each kind is there.
    DESCRIPTORS = {r"/dev/null", r"pipe:\[\d+\]", r"anon_inode:\[eventpoll\]", r"anon_inode:\[eventfd\]",
                   r"anon_inode:\[timerfd\]", r"anon_inode:\[signalfd\]", r"socket:\[\d+\]", r"anon_inode:kvm-vm",
                   r"anon_inode:kvm-vcpu:\d+", r"/disk"}
    THREADS = ["mayfly", "mayfly_api", "mayfly_snapshot", "mayfly_vcpu 0"]
    STATUS = {"Uid": [str(UID)] * 4, "Gid": [str(GID)] * 4, "Groups": [], "NoNewPrivs": ["1"], "TracerPid": ["0"],
              "Umask": ["0077"], **{f"Cap{which}": ["0" * 16] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")}}
    OWN_NAMESPACES = {"mnt", "ipc", "uts", "cgroup", "net", "pid", "pid_for_children"}
    LIMITS = {"Max open files": ("100", "100"), "Max core file size": ("1", "1"), "Max file size": ("1073741824",) * 2}

    def setUp(self):
        super().setUp()
        self.needs("pids", "memory")
        self.namespace = f"ji{os.getpid()}"
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        self.addCleanup(subprocess.run, ["ip", "netns", "delete", self.namespace], check=True)
        self.prepare(disk=bytes(1 << 20))
        os.chown(os.path.join(self.root(), "disk"), UID, GID)
        process = self.start_guest(
            "--new-pid-ns", "--netns", f"/run/netns/{self.namespace}", "--resource-limit", "fsize=1073741824",
            "--resource-limit", "no-file=100", "--cgroup", "pids.max=50", "--cgroup", "memory.limit_in_bytes=1G",
            "--parent-cgroup", self.parent,
            drives=[{"drive_id": "disk", "path_on_host": "/disk", "is_root_device": False, "is_read_only": False}])
        self.assertEqual(process.wait(HANG), 0)
        self.running()
        self.proc = f"/proc/{self.pid_of_file()}"

    def threads(self):
        return glob.glob(f"{self.proc}/task/*")

    def status(self, thread):
        with open(f"{thread}/status", encoding="ascii") as file:
            return {key: value.split() for key, value in (line.rstrip("\n").split(":", 1) for line in file)}

    def test_descriptors(self):
        kinds = set()
        for name in os.listdir(f"{self.proc}/fd"):
            try:
                target = os.readlink(f"{self.proc}/fd/{name}")
            except FileNotFoundError:
                continue  # of the connection by which it was asked whether it runs
            kind = [one for one in self.DESCRIPTORS if re.fullmatch(one, target)]
            self.assertEqual(len(kind), 1, f"descriptor {name}: {target}")
            kinds.update(kind)
        self.assertEqual(kinds, self.DESCRIPTORS)

    def test_no_memory_is_writable_and_executable_and_only_the_monitor_is_code(self):
        with open(f"{self.proc}/maps", encoding="ascii") as file:
            maps = [line.split() for line in file]
        self.assertEqual([line for line in maps if "w" in line[1] and "x" in line[1]], [])
        self.assertEqual({line[-1] for line in maps if "x" in line[1]} - {"[vsyscall]"}, {"/" + self.name(), "[vdso]"})

    def test_users_capabilities_and_privileges_of_every_thread(self):
        self.assertGreaterEqual(len(self.threads()), 3)
        for thread in self.threads():
            status = self.status(thread)
            self.assertEqual({key: status[key] for key in self.STATUS}, self.STATUS, thread)

    def test_system_call_filters_of_every_thread(self):
        """The jailer's, and the monitor's own."""
        names = sorted(text_of(f"{thread}/comm").strip() for thread in self.threads())
        self.assertEqual([name for name in names if not name.startswith("kvm-")], self.THREADS)  # KVM's own since Linux 6.13
        for thread in self.threads():
            self.assertEqual(self.status(thread)["Seccomp"], ["2"])
            self.assertGreaterEqual(int(self.status(thread)["Seccomp_filters"][0]), 2, thread)

    def test_namespaces(self):
        for name in os.listdir("/proc/self/ns"):
            own = os.stat(f"{self.proc}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino
            self.assertEqual(own, name in self.OWN_NAMESPACES, name)

    def test_limits(self):
        with open(f"{self.proc}/limits", encoding="ascii") as file:
            limits = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in file}
        self.assertEqual({key: limits[key] for key in self.LIMITS}, self.LIMITS)

    def test_cgroups(self):
        with open(f"{self.proc}/cgroup", encoding="ascii") as file:
            groups = {line.split(":")[1]: line.rstrip("\n").split(":", 2)[2] for line in file}
        own = f"/{self.parent}/{self.unique}"
        self.assertEqual({key for key, path in groups.items() if path == own}, {"pids", "memory"})
        for thread in self.threads():
            with open(f"{thread}/cgroup", encoding="ascii") as file:
                self.assertIn(f":pids:{own}\n", file.read())
        with open(f"{hierarchies()['pids']}{own}/pids.max", encoding="ascii") as file:
            self.assertEqual(file.read(), "50\n")

    def test_root_directory_mounts_and_environment(self):
        self.assertEqual(identity(f"{self.proc}/root"), identity(self.root()))
        self.assertEqual(identity(f"{self.proc}/cwd"), identity(self.root()))
        with open(f"{self.proc}/mountinfo", encoding="utf-8") as file:
            mounts = [line.split() for line in file]
        self.assertEqual([mount[4] for mount in mounts], ["/"])
        self.assertIn("nosuid", mounts[0][5].split(","))
        with open(f"{self.proc}/environ", "rb") as file:
            self.assertEqual(file.read(), b"")

    def test_nobody_of_its_user_may_look_into_it(self):
        self.assertEqual(os.stat(f"{self.proc}/mem").st_uid, 0)  # not dumpable (proc(5))

    def test_signals_are_as_a_program_expects_them(self):
        for thread in self.threads():
            status = self.status(thread)
            ignored = {number for number in range(1, 65) if int(status["SigIgn"][0], 16) >> (number - 1) & 1}
            # SIGCHLD: the kernel reaps passt.
        self.assertLessEqual(ignored, {signal.SIGCHLD, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU, signal.SIGXFSZ})

    def test_files_of_the_jail(self):
        expected = {"": ("d", 0o1770, 0, GID), "dev": ("d", 0o755, 0, 0), "dev/net": ("d", 0o755, 0, 0),
                    "run": ("d", 0o700, UID, GID), self.name(): ("-", 0o111, 0, 0), self.name() + ".pid": ("-", 0o644, 0, 0),
                    f"run/{self.name()}.socket": ("s", 0o600, UID, GID), "kernel": ("-", 0o644, 0, 0),
                    "config": ("-", 0o644, 0, 0), "disk": ("-", 0o644, UID, GID),
                    **{f"dev/{name}": ("c", 0o600, UID, GID) for name in DEVICES}}
        found = {}
        for folder, folders, files in os.walk(self.root()):
            for name in (*folders, *files, *([""] if folder == self.root() else [])):
                path = os.path.join(folder, name)
                entry = os.lstat(path)
                found[os.path.relpath(path, self.root()).removeprefix(".")] = (
                    stat.filemode(entry.st_mode)[0], stat.S_IMODE(entry.st_mode), entry.st_uid, entry.st_gid)
        self.assertEqual(found, expected)
        for name in DEVICES - {"userfaultfd"}:
            self.assertEqual(os.stat(os.path.join(self.root(), "dev", name)).st_rdev, os.stat(f"/dev/{name}").st_rdev)


class Walls(JailCase):
    """What a program in the jail that wants out of it can do."""

    def results(self, *options, own):
        result = self.run_jailer(*options, own=own)
        self.assertEqual(result.code, 0, str(result))
        return dict(line.split(": ", 1) for line in result.out.splitlines())

    def test_a_program_in_the_jail_gets_nowhere(self):
        name = f"jailer-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("\0" + name)
            listener.listen()
            # A program in the jail that is not the monitor, which it could execute but for Landlock.
            self.prepare(**{"other-program": PROBE})
            os.chmod(os.path.join(self.root(), "other-program"), 0o755)
            add_session_key(b"jailer-test")
            found = self.results(own=("do", "escape", name))
        self.assertEqual(len(found), 36, found)
        self.assertEqual({key: value for key, value in found.items() if not value.startswith("E")}, {}, found)

    def test_a_user_namespace_leads_to_nothing_of_the_hosts(self):
        found = self.results(own=("do", "user-namespace"))
        self.assertEqual({key: value for key, value in found.items() if not value.startswith("E")}, {}, found)

    def test_a_terminal_is_not_typed_into(self):
        """The jail's standard input is the controlling terminal of its session, as a shell's would be."""
        master, slave = os.openpty()
        for end in (master, slave):
            self.addCleanup(os.close, end)
        done = subprocess.run(self.arguments(own=("do", "terminal")), stdin=slave, capture_output=True, timeout=HANG,
                              check=False, preexec_fn=lambda: (os.setsid(), fcntl.ioctl(slave, termios.TIOCSCTTY, 0)))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.decode().splitlines(),
                         ["type: EPERM", "type, by an upper half: EPERM", "select and paste: EPERM", "ask for the size: 0",
                          f"type, by x32: killed by: {signal.SIGSYS.value}"])

    def test_the_environment_arguments_and_root_directory_are_the_jails(self):
        self.prepare()
        result = self.run_jailer(own=("do", "report", "a b"), env={"SECRET": "x", "LD_PRELOAD": "/nowhere"})
        lines = result.out.splitlines()
        self.assertEqual([line for line in lines if line.startswith("environment")], [])
        arguments = [line.split(": ", 1)[1] for line in lines if line.startswith("argument")]
        self.assertEqual(arguments[:3], [self.name(), "--id", self.unique])
        self.assertEqual(arguments[9:], ["do", "report", "a b"])
        self.assertEqual([line.split(": ")[1] for line in lines if line.startswith("in the root")],
                         [".", "..", "dev", self.name(), self.name() + ".pid", "run"])

    def test_descriptors_and_signals_of_the_caller_end_at_the_jail(self):
        folder = os.open("/", os.O_RDONLY)
        os.set_inheritable(folder, True)
        self.addCleanup(os.close, folder)
        process = subprocess.Popen(
            self.arguments(own=("do", "wait")), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            close_fds=False, restore_signals=False,  # and as under setarch --addr-no-randomize: see personality(2)
            preexec_fn=lambda: (ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE), signal.signal(signal.SIGUSR1, signal.SIG_IGN),
                                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])))
        self.addCleanup(self.stop, process)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        self.assertEqual(sorted(os.listdir(f"/proc/{process.pid}/fd")), ["0", "1", "2"])
        status = text_of(f"/proc/{process.pid}/status")
        for field in ("SigBlk", "SigIgn", "SigCgt"):
            self.assertIn(f"{field}:\t{'0' * 16}\n", status)
        self.assertEqual(text_of(f"/proc/{process.pid}/personality"), "00000000\n")

    def test_a_directory_as_a_standard_file_is_refused(self):
        folder = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, folder)
        done = subprocess.run(self.arguments(own=("do", "hello")), stdin=folder, capture_output=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"descriptor 0 is a directory", done.stderr)
        self.nothing_left()


class Fuse:
    """A FUSE file system with nothing in it, which says that its directory is root's (linux/fuse.h)."""

    def __init__(self, path, user):
        self.path, self.device = path, os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id={user},group_id=0,allow_other"
        no_device, no_suid = 4, 2
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"lies", path.encode(), b"fuse", no_device | no_suid, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "no FUSE here")
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        attributes = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
        answers = {26: struct.pack("<4I2H7I", 7, 23, 4096, 0, 0, 0, 4096, *[0] * 6), 3: struct.pack("<QII", 0, 0, 0) + attributes,
                   17: bytes(80), 27: bytes(16), 29: b""}  # INIT, GETATTR, STATFS, OPENDIR, RELEASEDIR
        with contextlib.suppress(OSError):  # ENODEV when it is unmounted
            while True:
                _, kind, unique = struct.unpack_from("<IIQ", os.read(self.device, 1 << 17))
                answer = answers.get(kind)
                error = -errno.ENOENT if kind == 1 else -errno.ENOSYS if answer is None else 0  # LOOKUP
                os.write(self.device, struct.pack("<IiQ", 16 + len(answer or b""), error, unique) + (answer or b""))

    def end(self):
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self.thread.join()
        os.close(self.device)


class Refusals(JailCase):
    """Hostile arguments and prepared directories: each is refused by name, and nothing is left."""

    def test_arguments(self):
        for options, text in (((), "--id \"../../etc\": must be 1 to 64"),):
            self.refuses(*options, texts=[text], code=153, jail_id="../../etc")
        self.refuses(texts=["--id", "(100000 characters)"], code=153, jail_id="x" * 100_000)
        self.refuses(texts=["--uid \"-1\": must be a decimal number"], code=153, uid=-1)
        self.refuses(texts=["--gid \"4294967295\": must be a decimal number"], code=153, gid=2**32 - 1)
        self.refuses("--parent-cgroup", "../x", texts=["--parent-cgroup \"../x\"", "without '.' and '..'"], code=153)
        self.refuses("--cgroup", "a/b.c=1", texts=["--cgroup \"a/b.c=1\"", "CONTROLLER.NAME"], code=153)
        self.refuses("--cgroup", "nothing.max=1", texts=["--cgroup \"nothing.max=1\"", "no controller nothing"])
        self.refuses("--cgroup", "\x1b[31m.x=1", texts=["--cgroup \"\\x1b[31m.x=1\""], code=153)

    def test_device_nodes_of_a_file_system_that_is_mounted_without_them_stay_dead(self):
        """An image that is not trusted is the root directory: its nodes are not, and the jail's own are all there is."""
        os.makedirs(self.root())
        for options, found in (("mode=755,nodev", "EACCES"), ("mode=755", "0")):
            with self.subTest(options=options):
                subprocess.run(["mount", "-t", "tmpfs", "-o", options, "image", self.root()], check=True)
                try:
                    os.mknod(f"{self.root()}/node", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
                    os.chown(f"{self.root()}/node", UID, GID)
                    self.expect(self.run_jailer(own=("do", "open", "/node")), 0, out=f"/node: {found}\n/dev/urandom: 0\n")
                finally:
                    subprocess.run(["umount", self.root()], check=True)
                self.expect(self.cleanup(), 0)
                os.makedirs(self.root())

    def test_names_and_paths_that_are_too_long_for_what_is_made_of_them(self):
        self.base = "/" + "/".join(["x" * 99] * 40) + "/" + "x" * 80
        self.refuses(texts=["--chroot-base-dir", "a path of more than 4095 characters"])
        self.base, self.monitor = self.path("jails"), "/" + "x" * 252
        self.refuses(texts=["--exec-file", "255 characters"], code=153)

    def test_arguments_of_a_megabyte(self):
        """As long as the kernel lets one argument be, in each place."""
        long = "x" * 131_000
        for option in ("--chroot-base-dir", "--netns", "--cgroup", "--parent-cgroup", "--resource-limit", "--cgroup-version",
                       "--" + long):
            value = () if option.startswith("--x") else ("/" + long if option == "--chroot-base-dir" else long,)
            options = [option, *value]
            done = subprocess.run([JAILER, "--id", "a", "--exec-file", self.monitor, "--uid", "1", "--gid", "1", *options],
                                  capture_output=True, check=False)
            self.assertEqual(done.returncode, 153, done.stderr)
            self.assertLess(len(done.stderr), 1000)

    def test_a_missing_network_namespace_and_what_is_none(self):
        fifo = self.path("fifo")
        os.mkfifo(fifo)
        for path, text in ((self.path("none"), "No such file"), (fifo, "is no network namespace"),
                           ("/dev/null", "is no network namespace"), (self.folder, "is no network namespace")):
            self.refuses("--netns", path, texts=[f"--netns \"{path}\"", text])
        self.refuses("--netns", "/proc/self/ns/mnt", texts=["--netns", "not of the network"])
        self.nothing_left_but("fifo")

    def nothing_left_but(self, *names):
        self.assertEqual(sorted(os.listdir(self.folder)), sorted(names))

    def test_a_monitor_that_is_no_static_program(self):
        script = self.write("script", "#!/bin/sh\n")
        os.chmod(script, 0o755)
        fifo = self.path("fifo")
        os.mkfifo(fifo, 0o755)
        os.symlink(PROBE, self.path("link"))
        shutil.copy(PROBE, self.path("writable"))
        os.chmod(self.path("writable"), 0o777)
        shutil.copy(PROBE, self.path("owned"))
        os.chown(self.path("owned"), UID, 0)
        shutil.copy(PROBE, self.path("plain"))
        os.chmod(self.path("plain"), 0o644)
        shutil.copy(PROBE, self.path("cut"))
        os.truncate(self.path("cut"), 100)
        for name, text in (("script", "static 64-bit ELF program"), ("fifo", "regular file"), ("link", "symbolic link"),
                           ("writable", "could change it"), ("owned", "could change it"), ("plain", "executable"),
                           ("none", "No such file"), ("cut", "static 64-bit ELF program")):
            self.monitor = self.path(name)
            self.refuses(texts=[f"--exec-file \"{self.monitor}\"", text])
        self.monitor = shutil.which("python3")
        self.refuses(texts=["static 64-bit ELF program" if not os.path.islink(self.monitor) else "symbolic link"])

    def test_a_program_that_cannot_be_executed_after_all(self):
        """The last step fails, with all rights given up: everything goes nevertheless."""
        self.monitor = self.path("lying")
        header = bytearray(bytes_of(PROBE)[:4096])
        header[16] = 0xff  # e_type
        with open(self.monitor, "wb") as file:
            file.write(header)
        os.chmod(self.monitor, 0o755)
        for options in ((), ("--new-pid-ns",), ("--daemonize",)):
            result = self.run_jailer("--parent-cgroup", self.parent, *options,
                                     *(("--cgroup", "pids.max=9") if "pids" in hierarchies() else ()))
            self.refused(result, "execute /lying in the jail")
            self.nothing_left()

    def test_a_base_that_others_can_tamper_with(self):
        os.mkdir(self.base, 0o755)
        os.chmod(self.base, 0o777)
        self.refuses_base("others may write to it")
        os.chmod(self.base, 0o755)
        os.chown(self.base, UID, 0)
        self.refuses_base(f"belongs to user {UID}")
        os.rmdir(self.base)
        os.mkdir(self.path("real"))
        os.symlink(self.path("real"), self.base)
        self.refuses_base("is a symbolic link")
        os.unlink(self.base)
        self.write("jails", "")
        self.refuses_base("is not a directory")
        os.unlink(self.base)
        os.mkfifo(self.base)
        self.refuses_base("is not a directory")

    def refuses_base(self, text):
        before = self.tree()
        self.refused(self.run_jailer(), f"--chroot-base-dir \"{self.base}\"", text)
        self.assertEqual(self.tree(), before)

    def test_what_was_prepared_in_the_place_of_the_jails_own(self):
        root = self.root()
        victim = self.write("victim", "kept")
        attempts = [
            (lambda: os.symlink("/", self.jail()), "is a symbolic link"),
            (lambda: self.write(os.path.relpath(self.jail(), self.folder), ""), "is not a directory"),
            (lambda: (os.mkdir(self.jail()), os.chown(self.jail(), UID, GID)), f"belongs to user {UID}"),
            (lambda: (os.mkdir(self.jail()), os.symlink("/", root)), "is a symbolic link"),
            (lambda: (os.mkdir(self.jail()), os.mkfifo(root)), "is not a directory"),
            (lambda: (os.makedirs(root), os.chown(root, 99, 99)), "belongs to user 99"),
            (lambda: os.makedirs(root + "/dev"), "is there already"),
            (lambda: (os.makedirs(root), os.symlink("/dev", root + "/dev")), "is there already"),
            (lambda: (os.makedirs(root), os.symlink(victim, f"{root}/{self.name()}")), "is there already"),
            (lambda: (os.makedirs(root), os.link(victim, f"{root}/{self.name()}")), "is there already"),
            (lambda: (os.makedirs(root), os.link(victim, f"{root}/{self.name()}.pid")), "is there already"),
            (lambda: (os.makedirs(root), os.mkfifo(f"{root}/{self.name()}.pid")), "is there already"),
            (lambda: (os.makedirs(root), os.symlink("/etc", f"{root}/run")), "is a symbolic link"),
            (lambda: (os.makedirs(root), os.mkfifo(f"{root}/run")), "is not a directory"),
            (lambda: (os.makedirs(f"{root}/run"), os.chown(f"{root}/run", 99, 99)), "run: belongs to user 99"),
        ]
        for number, (prepare, text) in enumerate(attempts):
            with self.subTest(number=number):
                shutil.rmtree(self.base, ignore_errors=True)
                os.makedirs(os.path.dirname(self.jail()))
                prepare()
                self.refuses(texts=[text])
                self.assertEqual(text_of(victim), "kept")

    def test_a_file_system_that_another_users_process_serves(self):
        """Whoever may mount one says of owners and modes what the jailer wants to hear, and later something else."""
        os.makedirs(self.root())
        for mounted in (self.root(), self.jail(), self.base):
            with self.subTest(mounted=mounted):
                try:
                    served = Fuse(mounted, UID)
                except OSError as problem:
                    self.skipTest(str(problem))
                try:
                    for dry in ((), ("--dry-run",)):
                        self.refused(self.run_jailer(*dry), f"{mounted}: is of a file system that a process of user {UID} serves")
                finally:
                    served.end()
        self.assertEqual(os.listdir(self.jail()), ["root"])

    def test_what_was_prepared_is_as_it_was_when_the_start_fails(self):
        self.prepare(kernel=b"kernel")
        os.mkdir(f"{self.root()}/run", 0o711)
        for path, mode in ((f"{self.root()}/run", 0o711), (self.root(), 0o2750)):
            os.chown(path, UID, GID)
            os.chmod(path, mode)
        before = self.tree()
        for late in (("--resource-limit", f"no-file={1 << 40}"), ("--core-scheduling",)):
            if self.run_jailer(*late).code == 0:  # a host that has it
                self.expect(self.cleanup(), 0)
                continue
            self.assertEqual(self.tree(), before)

    def test_a_jail_that_runs_or_was_left(self):
        process = self.start(own=("do", "wait"))
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        changed = os.stat(self.root()).st_ctime_ns
        self.refuses(texts=[self.root(), "is there already", "jailer --cleanup"])
        self.assertEqual(os.stat(self.root()).st_ctime_ns, changed, "not for a moment is it closed to the one that runs")
        self.refused(self.cleanup(), f"process {process.pid} runs in it; end that first")
        process.kill()
        process.wait()
        self.refuses(texts=["is there already", "jailer --cleanup"])
        self.expect(self.cleanup(), 0)
        self.expect(self.run_jailer(), 0, out="hello\n")

    def test_of_many_jailers_for_one_id_one_wins(self):
        results = []
        threads = [threading.Thread(target=lambda: results.append(self.run_jailer(own=("do", "exit", "7"))))
                   for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(result.code for result in results), [1] * 11 + [7], [str(one) for one in results])
        for result in results:
            if result.code == 1:
                self.refused(result, self.jail())
        self.assertEqual(sorted(os.listdir(self.root())), ["dev", self.name(), self.name() + ".pid", "run"])
        self.expect(self.cleanup(), 0)
        os.rmdir(self.base)
        self.nothing_left()

    def swap(self):
        swapper = os.fork()
        if swapper == 0:
            os.setgid(GID)
            os.setuid(UID)
            while True:
                for name in ("dev", "run", self.name(), self.name() + ".pid"):
                    with contextlib.suppress(OSError):
                        os.symlink("/etc", f"{self.root()}/{name}")
                    with contextlib.suppress(OSError):
                        os.rename(f"{self.root()}/{name}", f"{self.root()}/swapped")
                    with contextlib.suppress(OSError):
                        os.unlink(f"{self.root()}/swapped")
        return swapper

    def test_a_folder_that_changes_while_the_jail_is_made(self):
        """Somebody of the jail's user swaps what lies in its folder for links, all the time."""
        self.prepare()
        os.chown(self.root(), UID, GID)
        before = os.lstat("/etc")
        for _ in range(100):
            swapper = self.swap()
            result = self.run_jailer()
            self.assertIn(result.code, (0, 1), str(result))
            os.kill(swapper, signal.SIGKILL)  # what is made while it is removed may be left
            os.waitpid(swapper, 0)
            cleaned = self.cleanup()
            if cleaned.code != 0:
                self.refused(cleaned, "so no jail was made there")
                shutil.rmtree(self.jail())
            self.prepare()
            os.chown(self.root(), UID, GID)
        after = os.lstat("/etc")
        self.assertEqual((before.st_mode, before.st_uid, before.st_gid, before.st_mtime_ns),
                         (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns))

    def exchange(self, victim):
        """As the jail's user, all the time: its own folder `mine` for `dev`, and in both the victim for a new node."""
        attacker = os.fork()
        if attacker == 0:
            os.setgroups([])
            os.setgid(GID)
            os.setuid(UID)
            exchange, here = ctypes.CDLL(None).renameat2, -100  # AT_FDCWD
            dev, mine = f"{self.root()}/dev", f"{self.root()}/mine"
            while True:
                exchange(here, dev.encode(), here, mine.encode(), 2)  # RENAME_EXCHANGE
                for node in (f"{folder}/{name}" for folder in (dev, mine) for name in ("kvm", "urandom")):
                    with contextlib.suppress(OSError):
                        if stat.S_ISCHR(os.lstat(node).st_mode):
                            os.unlink(node)
                            os.link(victim, node)
        return attacker

    def test_a_folder_that_is_exchanged_leads_to_no_file_of_others(self):
        """The owner of the root directory has all the time he wants: the jailer is held up at each step."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        victim = self.write("victim", "kept")
        os.chmod(victim, 0o666)  # which is what fs.protected_hardlinks lets anybody link
        self.prepare()
        os.mkdir(f"{self.root()}/mine")
        for folder in (self.root(), f"{self.root()}/mine"):
            os.chown(folder, UID, GID)
        attacker = self.exchange(victim)
        try:
            done = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=openat2,fchownat", "-e",
                                   "inject=openat2,fchownat:delay_enter=100000", *self.arguments(own=("do", "hello"))],
                                  stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG)
        finally:
            os.kill(attacker, signal.SIGKILL)
            os.waitpid(attacker, 0)
        self.assertEqual((os.stat(victim).st_uid, os.stat(victim).st_gid), (0, 0))
        self.assertEqual((done.returncode, done.stdout), (0, b"hello\n"), done.stderr)
        for name in DEVICES:
            self.assertTrue(stat.S_ISCHR(os.lstat(f"{self.root()}/dev/{name}").st_mode), name)

    def test_core_scheduling_is_refused_where_the_host_lacks_it(self):
        if self.run_jailer("--core-scheduling").code == 0:
            self.skipTest("this host has core scheduling")
        self.refuses("--core-scheduling", texts=["--core-scheduling: this host's kernel cannot do it", "CONFIG_SCHED_CORE"])
        self.nothing_left()

    def test_core_scheduling_is_asked_for_the_whole_process_where_the_host_has_it(self):
        """The kernel's answer is made up: yes, and that there are no siblings to share a core with."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        log = self.path("calls")
        for answer in ("retval=0", "error=ENODEV"):
            done = subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", "trace=prctl", "-e", f"inject=prctl:{answer}:when=2",
                                   *self.arguments("--core-scheduling", own=("do", "hello"))],
                                  stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG)
            self.assertEqual((done.returncode, done.stdout), (0, b"hello\n"), done.stderr)
            self.assertRegex(text_of(log).splitlines()[1],
                             r"prctl\(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, (PR_SCHED_CORE_SCOPE_THREAD_GROUP|PIDTYPE_TGID|0x1)\b")
            self.expect(self.cleanup(), 0)

    def test_without_root_it_says_what_it_takes(self):
        done = subprocess.run(self.arguments(own=("do", "hello")), capture_output=True, user=UID, group=GID, check=False,
                              extra_groups=[])
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"a jail takes root to make; --rootless makes a weaker one", done.stderr)

    def test_root_in_the_jail_is_refused_and_its_group_warned_of(self):
        self.refuses(texts=["--uid 0: must not be root"], code=153, uid=0)
        result = self.run_jailer(gid=0)
        self.assertEqual((result.code, result.out), (0, "hello\n"), str(result))
        self.assertIn("warning: --gid should not be 0", result.err)

    def test_a_host_that_lets_everybody_trace_what_changed_its_user(self):
        for mode, is_refused in (("1\n", True), ("0\n", False), ("2\n", False)):
            with self.subTest(mode=mode):
                bind = f"mount --bind {self.write('mode', mode)} /proc/sys/fs/suid_dumpable && exec \"$@\""
                done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", bind, "sh",
                                       *self.arguments(own=("do", "hello"))], stdin=subprocess.DEVNULL, capture_output=True,
                                      check=False, text=True, timeout=HANG)
                if is_refused:
                    self.refused(Result(done.returncode, done.stdout, done.stderr), "fs.suid_dumpable is 1")
                    self.nothing_left()
                else:
                    self.assertEqual((done.returncode, done.stdout), (0, "hello\n"), done.stderr)
                    self.expect(self.cleanup(), 0)

    def test_a_jailer_that_works_cannot_be_traced(self):
        """Its files in /proc are not even its own user's, from the first step on."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        log = self.path("calls")
        subprocess.run(["strace", "-qq", "-o", log, *self.arguments(own=("do", "hello"))], stdin=subprocess.DEVNULL,
                       capture_output=True, check=True)
        calls = [line.split("(")[0] + "(" + line.split("(")[1].split(",")[0] for line in text_of(log).splitlines() if "(" in line]
        self.assertIn("prctl(PR_SET_DUMPABLE", calls)
        self.assertLess(calls.index("prctl(PR_SET_DUMPABLE"), min(index for index, call in enumerate(calls)
                                                                if call.startswith(("mkdirat", "clone", "mknodat"))))


class Limits(JailCase):
    """Limits that bite."""

    def test_open_files(self):
        result = self.run_jailer("--resource-limit", "no-file=64", own=("do", "files", "70"))
        self.assertEqual(result.out, "open: EMFILE\n", str(result))

    def test_fewer_open_files_than_a_jail_needs_are_refused_and_as_many_are_enough(self):
        groups = [word for file in ("cpu.shares=2", "pids.max=50", "memory.limit_in_bytes=1G", "cpuset.cpus=0", "cpuset.mems=0")
                  if file.split(".")[0] in hierarchies() for word in ("--cgroup", file)]
        everything = ("--parent-cgroup", self.parent, "--daemonize", "--new-pid-ns", *groups)
        for few in (0, 1, 2, 63):
            self.refuses("--resource-limit", f"no-file={few}", *everything, code=153, texts=[f"no-file={few}", "64"])
        self.nothing_left()
        result = self.run_jailer("--resource-limit", "no-file=64", *everything)
        self.assertEqual(result.code, 0, str(result))
        end = time.monotonic() + HANG
        while self.cleanup("--parent-cgroup", self.parent).code != 0 and time.monotonic() < end:  # until it has ended
            time.sleep(0.02)
        self.assertEqual(self.jailed(), [])

    def test_the_size_of_files(self):
        result = self.run_jailer("--resource-limit", "fsize=8192", own=("do", "write", "20000"))
        self.assertEqual(result.out, "write: EFBIG\nwritten: 8192\n", str(result))

    def test_what_keeps_the_caller_from_being_killed_for_memory_is_not_the_jails(self):
        protects = subprocess.run(["sh", "-c", "echo -500 2>/dev/null >/proc/self/oom_score_adj"], capture_output=True,
                                  check=False).returncode == 0  # takes CAP_SYS_RESOURCE
        for given, expected in ((("-500", "0"),) if protects else ()) + (("300", "300"),):
            process = subprocess.Popen(
                ["sh", "-c", f"echo {given} >/proc/self/oom_score_adj; exec \"$@\"", "sh", *self.arguments(own=("do", "wait"))],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(self.stop, process)
            self.assertEqual(process.stdout.readline(), b"waiting\n")
            self.assertEqual(text_of(f"/proc/{process.pid}/oom_score_adj"), expected + "\n")
            process.kill()
            process.wait()
            self.expect(self.cleanup(), 0)

    def test_a_file_system_of_its_own_is_all_that_it_can_fill(self):
        os.makedirs(self.root())
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40,mode=755", "jail", self.root()], check=False,
                                 capture_output=True)
        self.assertEqual(mounted.returncode, 0, mounted.stderr)
        try:
            result = self.run_jailer(own=("do", "write", str(8 << 20)))
            self.assertIn("write: ENOSPC\n", result.out, str(result))
            self.assertTrue(stat.S_ISCHR(os.stat(f"{self.root()}/dev/kvm").st_mode))
        finally:
            subprocess.run(["umount", self.root()], check=True)
        self.expect(self.cleanup(), 0)

    def test_a_limit_above_the_hard_one_is_refused_by_name(self):
        self.refuses("--resource-limit", f"no-file={1 << 40}", texts=[f"no-file={1 << 40}"])
        self.nothing_left()

    def grouped(self, *settings, own):
        options = [word for setting in settings for word in ("--cgroup", setting)]
        return self.run_jailer("--parent-cgroup", self.parent, *options, own=own)

    def test_memory(self):
        self.needs("memory")
        result = self.grouped("memory.limit_in_bytes=20M", "memory.swappiness=0", own=("do", "memory", "100"))
        self.assertEqual(result.code, -signal.SIGKILL, str(result))
        self.assertLess(result.out.count("MiB"), 25)
        self.expect(self.cleanup("--parent-cgroup", self.parent), 0)

    def test_a_monitor_that_is_killed_before_it_runs_is_a_failure(self):
        """By its own limit of memory; also where the caller would not know of children that end."""
        self.needs("memory")
        options = ("--parent-cgroup", self.parent, "--cgroup", "memory.limit_in_bytes=4096")
        for number in range(20):
            for fork in ("--daemonize", "--new-pid-ns"):
                with self.subTest(number=number, fork=fork):
                    result = self.run_jailer(*options, fork, own=("do", "wait"), restore_signals=False,
                                             preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
                    self.refused(result, "killed by signal 9")
                    self.assertFalse(os.path.exists(self.base))

    def test_processes(self):
        self.needs("pids")
        result = self.grouped("pids.max=5", own=("do", "threads", "20"))
        self.assertEqual(result.out, "thread: 1\nthread: 2\nthread: 3\nthread: 4\nthread: EAGAIN\n")

    def test_cpu(self):
        """A tenth of a processor: the group's own count of how often it was held."""
        self.needs("cpu")
        process = self.start("--parent-cgroup", self.parent, "--cgroup", "cpu.cfs_period_us=10000", "--cgroup",
                             "cpu.cfs_quota_us=1000", own=("do", "spin"))
        self.assertEqual(process.stdout.readline(), b"spinning\n")
        statistics = f"{hierarchies()['cpu']}/{self.parent}/{self.unique}/cpu.stat"
        throttled = lambda: int(re.search(r"nr_throttled (\d+)", text_of(statistics))[1])
        wait_until(lambda: throttled() > 5, "the processor is taken away")

    def test_cpus(self):
        self.needs("cpuset")
        process = self.start("--parent-cgroup", self.parent, "--cgroup", "cpuset.cpus=0", own=("do", "wait"))
        self.assertEqual(process.stdout.readline(), b"waiting\n", process.stderr)
        self.assertEqual(os.sched_getaffinity(process.pid), {0})

    def test_values_that_the_kernel_spells_in_its_own_way(self):
        self.needs("memory", "cpuset", "pids")
        for setting in ("memory.limit_in_bytes=-1", "memory.limit_in_bytes=1T", "cpuset.cpus=0-3:1/4", "pids.max=+5"):
            self.expect(self.grouped(setting, own=("do", "hello")), 0, out="hello\n")
            self.expect(self.cleanup(), 0)

    def test_a_value_that_the_kernel_refuses_or_changes(self):
        self.needs("pids", "cpu")
        for setting, text in (("pids.max=many", "write \"many\""), ("pids.none=1", "No such file"),
                              ("cpu.shares=1", "reads \"2\" afterwards")):
            result = self.grouped("pids.max=7", setting, own=("do", "hello"))
            self.refused(result, f"--cgroup \"{setting}\"", text)
            self.nothing_left()

    def test_a_group_that_the_owner_of_its_parent_replaces_is_not_joined(self):
        """A sub-tree that was handed to a user, who makes a group of his own of the jail's name, with limits of his own."""
        self.needs("pids")
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        parent = f"{hierarchies()['pids']}/{self.parent}"
        group = f"{parent}/{self.unique}"
        os.mkdir(parent)
        os.chown(parent, UID + 9, GID)
        attacker = os.fork()
        if attacker == 0:
            os.setuid(UID + 9)
            while True:
                with contextlib.suppress(OSError):
                    if os.stat(group).st_uid == 0:
                        os.rmdir(group)
                        os.mkdir(group)
        self.addCleanup(os.chown, parent, 0, 0)
        try:
            result = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=mkdir", "-e",
                                     "inject=mkdir:delay_exit=200000", *self.arguments(
                                         "--parent-cgroup", self.parent, "--cgroup", "pids.max=5", own=("do", "hello"))],
                                    stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG, text=True)
        finally:
            os.kill(attacker, signal.SIGKILL)
            os.waitpid(attacker, 0)
        self.refused(Result(result.returncode, result.stdout, result.stderr), group, f"belongs to user {UID + 9}")
        self.assertFalse(os.path.exists(self.base))

    def test_a_file_that_the_version_does_not_have(self):
        self.needs("pids", "memory")
        self.refuses("--cgroup", "memory.max=300M", texts=["--cgroup \"memory.max=300M\": is a file of cgroup version 2"])
        os.mkdir(f"{hierarchies()['pids']}/{self.parent}")  # so that a dry run can see what there is in a group
        self.refuses("--parent-cgroup", self.parent, "--cgroup", "pids.none=1",
                     texts=["--cgroup \"pids.none=1\"", "No such file"])

    def test_a_group_that_is_there_already(self):
        self.needs("pids")
        group = f"{hierarchies()['pids']}/{self.parent}/{self.unique}"
        os.makedirs(group)
        self.refuses("--parent-cgroup", self.parent, "--cgroup", "pids.max=7", texts=[group, "is there already"])
        self.assertTrue(os.path.exists(group))
        self.assertFalse(os.path.exists(self.base))
        self.expect(self.cleanup("--parent-cgroup", self.parent), 0)
        self.assertFalse(os.path.exists(group))

    def test_version_2_joins_the_parent_that_it_is_given(self):
        if "" not in hierarchies():
            self.skipTest("cgroup version 2 is not mounted")
        group = f"{hierarchies()['']}/{self.parent}"
        options = ("--cgroup-version", "2", "--parent-cgroup", self.parent)
        self.refuses(*options, texts=[f"--parent-cgroup \"{self.parent}\"", "No such file"])
        self.nothing_left()
        os.mkdir(group)
        process = self.start(*options, own=("do", "wait"))
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        self.assertIn(f"0::/{self.parent}\n", text_of(f"/proc/{process.pid}/cgroup"))
        self.assertEqual(os.listdir(f"{group}/"), [name for name in os.listdir(f"{group}/") if "." in name])

    def test_version_2_names_what_it_does_not_offer(self):
        if "" not in hierarchies():
            self.skipTest("cgroup version 2 is not mounted")
        self.refuses("--cgroup-version", "2", "--cgroup", "nothing.max=1",
                     texts=["--cgroup \"nothing.max=1\"", "no controller nothing of cgroup version 2"])


class Leftovers(JailCase):
    """What is left of jails: nothing."""

    def host(self):
        mounts = text_of("/proc/self/mountinfo")
        return mounts, sorted(os.listdir(self.folder)), self.groups(), self.jailed()

    def test_100_jails_leave_nothing(self):
        before = self.host()
        settings = [word for controller, word in (("pids", "pids.max=30"), ("memory", "memory.limit_in_bytes=64M"))
                    if controller in hierarchies() for word in ("--cgroup", word)]
        processes = []
        for number in range(100):
            processes.append(self.start("--parent-cgroup", self.parent, *settings, *(("--new-pid-ns",) if number % 2 else ()),
                                        own=("do", "wait"), jail_id=f"vm{number}"))
        for process in processes:
            self.assertEqual(process.stdout.readline(), b"waiting\n")
        self.assertEqual(len(self.jailed()), 100)
        self.assertEqual(self.host()[0], before[0], "no mount of a jail's is the host's")
        for pid in self.jailed():
            os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.wait()
        for number in range(100):
            self.expect(self.cleanup("--parent-cgroup", self.parent, jail_id=f"vm{number}"), 0)
        for folder in set(hierarchies().values()):  # a parent that is named stays
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{folder}/{self.parent}")
        os.rmdir(self.base)
        self.assertEqual(self.host(), before)

    def test_cleanup_can_be_repeated_and_needs_nothing_to_be_there(self):
        for _ in range(2):
            self.expect(self.cleanup(), 0, out="", err="")
        self.expect(self.run_jailer(), 0)
        for _ in range(2):
            self.expect(self.cleanup(), 0)
            self.assertEqual(os.listdir(self.base), [])

    def test_cleanup_finds_groups_of_the_default_parent_and_takes_that_too(self):
        self.needs("pids")
        self.monitor = self.path(f"monitor-{os.getpid()}")
        shutil.copy(PROBE, self.monitor)
        parent = f"{hierarchies()['pids']}/{self.name()}"
        self.expect(self.run_jailer("--cgroup", "pids.max=9"), 0)
        self.assertTrue(os.path.exists(f"{parent}/{self.unique}"))
        self.expect(self.cleanup(), 0)
        self.assertFalse(os.path.exists(parent))

    def test_cleanup_removes_what_a_hostile_monitor_left_and_nothing_else(self):
        self.expect(self.run_jailer(), 0)
        victim = self.path("victim")
        os.mkdir(victim)
        self.write("victim/kept", "kept")
        os.symlink(victim, os.path.join(self.root(), "link"))
        os.symlink(os.path.join(victim, "kept"), os.path.join(self.root(), "file"))
        os.link(os.path.join(victim, "kept"), os.path.join(self.root(), "hard"))
        os.mkfifo(os.path.join(self.root(), "fifo"))
        os.makedirs(os.path.join(self.root(), "/".join(["deep"] * 200)))
        self.expect(self.cleanup(), 0)
        self.assertEqual(os.listdir(victim), ["kept"])
        self.assertFalse(os.path.exists(self.jail()))

    def test_cleanup_comes_to_its_end_while_another_user_goes_on_filling_the_jail(self):
        """One whose user is not the jail's, in a folder of his that was prepared there."""
        shared = os.path.join(self.root(), "shared")
        os.makedirs(shared, 0o755)
        os.chown(shared, UID + 7, GID)
        filler = subprocess.Popen(
            ["setpriv", "--reuid", str(UID + 7), "--regid", str(GID), "--clear-groups", sys.executable, "-c",
             "import itertools, os\nos.write(1, b'.')\nfor name in itertools.cycle('abcdefgh'):\n"
             "  try:\n    os.mkdir(name)\n  except OSError:\n    pass"],
            cwd=shared, stdout=subprocess.PIPE)
        try:
            self.assertEqual(filler.stdout.read(1), b".")
            self.expect(self.run_jailer(), 0)
            self.expect(self.cleanup(), 0)
            self.assertIsNone(filler.poll())
            self.assertFalse(os.path.exists(self.jail()))
        finally:
            filler.kill()
            filler.wait()
            filler.stdout.close()

    def test_cleanup_does_not_enter_what_is_mounted_in_the_jail(self):
        self.expect(self.run_jailer(), 0)
        mounted = os.path.join(self.root(), "data")
        os.mkdir(mounted)
        subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
        try:
            self.write(os.path.relpath(os.path.join(mounted, "kept"), self.folder), "kept")
            self.refused(self.cleanup(), "data")
            self.assertEqual(os.listdir(mounted), ["kept"])
        finally:
            subprocess.run(["umount", mounted], check=True)
        self.expect(self.cleanup(), 0)

    def end_all_of_the_user(self):
        """As a process of the user: none of its own can escape that, and nobody else is met."""
        killer = "import os, signal, sys; os.setresuid(*[int(sys.argv[1])] * 3); os.kill(-1, signal.SIGKILL)"
        subprocess.run([sys.executable, "-c", killer, str(UID)], check=False)

    def test_cleanup_refuses_a_jail_whose_processes_hide(self):
        """A process without its first thread, and one with another root directory."""
        self.addCleanup(self.end_all_of_the_user)
        for what, first in (("dead-leader", b"thread: 0\n"), ("elsewhere", b"unshare user: 0\n")):
            with self.subTest(what=what):
                process = self.start(own=("do", what))
                self.assertEqual(process.stdout.readline(), first)
                if what == "elsewhere":
                    self.assertEqual(process.stdout.readline(), b"chroot: 0\n")
                self.refused(self.cleanup(), "process")
                self.assertTrue(os.path.exists(os.path.join(self.root(), self.name())))
                self.end_all_of_the_user()
                process.wait()
                self.expect(self.cleanup(), 0)

    def test_cleanup_refuses_a_jail_whose_process_is_always_another(self):
        self.addCleanup(self.end_all_of_the_user)
        process = self.start(own=("do", "chain"))
        self.assertEqual(process.stdout.readline(), b"forking\n")
        count = os.path.join(self.root(), "run", "chain")
        wait_until(lambda: os.path.exists(count) and os.path.getsize(count) == 8, "the first has counted itself")

        def has_gone_on():
            """It is no refusal's merit where the last of them has ended."""
            before = bytes_of(count)
            wait_until(lambda: bytes_of(count) != before, "one more has counted itself")

        for _ in range(3):
            self.refused(self.cleanup(), "process")
            has_gone_on()
        self.write(os.path.relpath(os.path.join(self.root(), "run", "stop"), self.folder), "")
        process.wait(HANG)
        # Who has ended stays in name until its parent, the host's first process, has seen to it.
        wait_until(lambda: self.cleanup().code == 0, "the jail is removed")
        self.assertEqual(os.listdir(self.base), [])

    def test_a_lock_of_another_users_holds_nobody_up(self):
        os.makedirs(self.jail(), 0o755)
        locker = subprocess.Popen(["setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups", "flock", "--exclusive",
                                   self.jail(), "sh", "-c", "echo locked; read end"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        self.assertEqual(locker.stdout.readline(), b"locked\n")
        try:
            self.expect(self.run_jailer(uid=UID + 2), 0)
            record = os.stat(os.path.join(self.jail(), ".jail"))
            self.assertEqual((stat.S_IMODE(record.st_mode), record.st_uid), (0o600, 0))
            self.expect(self.cleanup(), 0)
        finally:
            locker.stdin.close()
            locker.stdout.close()
            locker.wait()

    def test_cleanup_knows_the_jails_cgroups_without_being_told(self):
        self.needs("pids")
        self.expect(self.run_jailer("--parent-cgroup", self.parent, "--cgroup", "pids.max=9"), 0)
        self.assertEqual(len(self.groups()), 2)
        self.expect(self.cleanup(), 0)
        self.assertEqual(self.groups(), [f"{hierarchies()['pids']}/{self.parent}/"])

    def test_cleanup_waits_for_no_one_and_refuses_links(self):
        os.makedirs(os.path.dirname(self.jail()))
        os.symlink("/etc", self.jail())
        self.refused(self.cleanup(), "is a symbolic link")
        os.unlink(self.jail())
        os.makedirs(self.root())
        lock = os.open(os.path.join(self.jail(), ".jail"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.refused(self.cleanup(), "another jailer is at work")
        os.close(lock)
        self.expect(self.cleanup(), 0)

    def test_a_dry_run_says_what_would_be_done_and_does_nothing(self):
        settings = ("--cgroup", "pids.max=9") if "pids" in hierarchies() else ()
        result = self.run_jailer("--dry-run", "--parent-cgroup", self.parent, *settings)
        self.assertEqual(result.code, 0, str(result))
        for text in (self.root(), "device node dev/kvm", f"become user {UID}", "execute"):
            self.assertIn(text, result.out)
        self.nothing_left()


class Failing(JailCase):
    """Each system call of the jailer is made to fail once, at each place: all is made, or nothing is left."""

    def calls(self, options):
        """[(name, number among its kind)] of the system calls between the jailer's exec and the monitor's."""
        log = self.path("calls")
        done = subprocess.run(["strace", "-f", "-qq", "-o", log, *self.arguments(*options, own=("do", "hello"))],
                              stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG)
        self.assertEqual(done.returncode, 0, done.stderr)
        counts, found = {}, []
        with open(log, encoding="utf-8", errors="replace") as file:
            for line in file:
                call = re.match(r"\d+ +(\w+)\(", line)
                if not call:
                    continue
                name = call[1]
                counts[name] = counts.get(name, 0) + 1
                if name == "execve" and counts[name] == 2:
                    break
                found.append((name, counts[name]))
        return found

    def check(self, *options):
        options = ("--parent-cgroup", self.parent, *options)
        calls = [call for call in self.calls(options)
                 # Without these there is no process of which anything could be said; and what strace has fail is not
                 # done, but no close() that fails leaves the descriptor open.
                 if call[0] not in ("close", "execve", "brk", "mmap", "munmap", "mprotect", "arch_prctl", "exit", "exit_group",
                                    "set_tid_address", "set_robust_list", "rseq", "rt_sigreturn", "sched_yield", "futex",
                                    "clock_gettime", "gettid", "getpid", "madvise")]
        self.expect(self.cleanup("--parent-cgroup", self.parent), 0)
        self.remove_parents()
        self.assertGreater(len(calls), 100)
        failed = 0
        for name, number in calls:
            with self.subTest(call=name, number=number):
                done = subprocess.run(
                    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e",
                     f"inject={name}:error=EIO:when={number}", *self.arguments(*options, own=("do", "hello"))],
                    stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG)
                is_whole = done.returncode == 0 and (b"hello" in done.stdout or "--daemonize" in options)
                failed += not is_whole
                left = (os.path.exists(self.base), self.jailed(),
                        [group for group in self.groups() if not group.endswith(f"/{self.parent}/")])
                self.expect(self.cleanup("--parent-cgroup", self.parent), 0)
                self.remove_parents()
                if not is_whole:
                    self.assertNotEqual(done.returncode, 0)
                    # A standard file that cannot be looked at counts as closed: there is nobody to tell.
                    if name != "fcntl" or number > 3:
                        self.assertTrue(done.stderr.startswith(b"jailer: "), f"{done.returncode} {done.stderr}")
                    self.assertEqual(left, (False, [], []), done.stderr)
        print(f"{len(calls)} system calls made to fail, {failed} of them stopped the jailer")
        self.assertGreater(failed, 50)

    def remove_parents(self):
        for folder in set(hierarchies().values()):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{folder}/{self.parent}")
        if os.path.isdir(self.base):
            shutil.rmtree(self.base)

    def setUp(self):
        super().setUp()
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        self.needs("pids")

    def test_at_every_system_call_of_a_jail(self):
        self.check("--cgroup", "pids.max=9")

    def test_what_was_prepared_is_as_it_was_wherever_it_fails(self):
        """Owners, modes and contents of the root directory and of run, given back by what still can."""
        self.prepare(kernel=b"kernel")
        os.mkdir(f"{self.root()}/run")
        for path, mode in ((f"{self.root()}/run", 0o711), (self.root(), 0o750)):
            os.chown(path, UID, GID)
            os.chmod(path, mode)
        saved, before = self.path("saved"), self.tree()
        subprocess.run(["cp", "-a", self.base, saved], check=True)
        entry = lambda found: {path: what[:3] for path, what in found.items() if path.startswith(self.base)}
        calls = [call for call in self.calls(()) if call[0] in ("fchown", "fchmod", "fchownat", "mkdirat", "mknodat", "openat2",
                                                                "mount", "pivot_root", "setresuid", "landlock_restrict_self")]
        self.assertGreater(len(calls), 20)
        for name, number in calls:
            with self.subTest(call=name, number=number):
                subprocess.run(["rm", "-rf", self.base], check=True)
                subprocess.run(["cp", "-a", saved, self.base], check=True)
                done = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e",
                                       f"inject={name}:error=EIO:when={number}", *self.arguments(own=("do", "hello"))],
                                      stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=HANG)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertEqual(entry(self.tree()), entry(before), done.stderr)

    def test_at_every_system_call_of_a_jail_with_a_process_of_its_own(self):
        self.check("--cgroup", "pids.max=9", "--new-pid-ns", "--daemonize")


class Rootless(MicroVm):
    """A jail by an ordinary user; /dev/kvm is lent to him in a mount namespace of the test's own."""

    def setUp(self):
        super().setUp()
        if text_of("/proc/sys/user/max_user_namespaces") == "0\n":
            self.skipTest("no user namespaces")
        os.chmod(self.folder, 0o755)
        os.mkdir(self.base, 0o755)
        os.chown(self.base, UID, GID)

    def rootless(self, *options, own, **keywords):
        """The command that runs the jailer as UID, with a /dev/kvm that is his."""
        kvm = self.path("kvm")
        if not os.path.exists(kvm):
            os.mknod(kvm, 0o600 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
            os.chown(kvm, UID, GID)
        lend = 'mount --bind "$1" /dev/kvm; shift; exec setpriv --reuid "$1" --regid "$2" --clear-groups -- "${@:3}"'
        return ["unshare", "--mount", "bash", "-ec", lend, "lend", kvm, str(UID), str(GID),
                *self.arguments("--rootless", *options, own=own, **keywords)]

    def test_a_guest_runs_in_a_jail_that_its_user_made(self):
        self.prepare(kernel=guest("spin"), config=self.config_bytes())
        for folder, _, _ in os.walk(self.base):
            os.chown(folder, UID, GID)
        process = subprocess.Popen(self.rootless(own=("--config-file", "/config"), uid=1000, gid=1000),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.stop, process)
        self.assertEqual(process.stdout.readline(), b"spinning\n")
        self.running()
        pid = self.pid_of_file()
        refused = subprocess.run(self.cleanup_command(), user=UID, group=GID, extra_groups=[], capture_output=True, check=False)
        self.assertIn(f"process {pid} runs in it", refused.stderr.decode())
        status = text_of(f"/proc/{pid}/status")
        self.assertIn(f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n", status)
        self.assertIn(f"CapEff:\t{'0' * 16}\n", status)
        self.assertIn("NoNewPrivs:\t1\n", status)
        self.assertEqual(text_of(f"/proc/{pid}/uid_map").split(), ["1000", str(UID), "1"])
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
            self.assertEqual({line.split()[4] for line in file}, {"/"} | {f"/dev/{name}" for name in DEVICES})
        process.terminate()
        self.assertEqual(process.wait(HANG), 0)
        done = subprocess.run(self.cleanup_command(), user=UID, group=GID, extra_groups=[], capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.base), [])

    def test_a_rootless_cleanup_opens_what_is_closed(self):
        closed = os.path.join(self.root(), "closed", "more")
        os.makedirs(os.path.join(self.root(), "dev"))
        os.makedirs(closed)
        for folder, _, _ in os.walk(self.base):
            os.chown(folder, UID, GID)
        for folder in (closed, os.path.dirname(closed), self.root()):
            os.chmod(folder, 0)
        done = subprocess.run(self.cleanup_command(), user=UID, group=GID, extra_groups=[], capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.base), [])

    def test_a_rootless_dry_run_sees_where_there_are_no_user_namespaces(self):
        command = [JAILER, "--rootless", "--id", "a", "--exec-file", PROBE, "--uid", "7", "--gid", "7", "--chroot-base-dir",
                   self.base, "--dry-run"]
        allowed = subprocess.run(command, user=UID, group=GID, extra_groups=[], capture_output=True, check=False, text=True)
        self.assertEqual(allowed.returncode, 0, allowed.stderr)
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        denied = subprocess.run(["strace", "-qq", "-o", "/dev/null", "-e", "inject=unshare:error=ENOSPC:when=1", *command],
                                user=UID, group=GID, extra_groups=[], capture_output=True, check=False, text=True)
        self.refused(Result(denied.returncode, denied.stdout, denied.stderr), "--rootless: make a user namespace")
        self.assertEqual(os.listdir(self.base), [])

    def test_a_rootless_jail_that_fails_leaves_nothing(self):
        lying = self.path("lying")
        header = bytearray(bytes_of(PROBE)[:4096])
        header[16] = 0xff  # e_type
        with open(lying, "wb") as file:
            file.write(header)
        os.chmod(lying, 0o755)
        self.monitor = lying
        done = subprocess.run(self.rootless(own=(), uid=1000, gid=1000), capture_output=True, check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(b"execute /lying in the jail", done.stderr)
        self.assertEqual(os.listdir(self.base), [])


def take_arguments():
    """Ours, before those of all tests with bare guests."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jailer", required=True)
    parser.add_argument("--probe", required=True)
    options, rest = parser.parse_known_args()
    global JAILER, PROBE
    JAILER, PROBE = os.path.abspath(options.jailer), os.path.abspath(options.probe)
    sys.argv[1:] = rest
    if os.geteuid() != 0:
        print("SKIP: a jail takes root to make")
        sys.exit(77)


if __name__ == "__main__":
    take_arguments()
    main(__doc__, without_kvm=("Walls", "Refusals", "Limits", "Leftovers", "Failing"))
