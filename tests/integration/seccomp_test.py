#!/usr/bin/python3
"""Holds the system call filters to what is needed: every rule of the policy is taken away in turn, and the monitor must
end by SIGSYS in the scenario that needs it.

  seccomp_test.py --mayfly BINARY --guests FOLDER --compiler MAYFLY-SECCOMP --without-vdso PROGRAM [unittest's arguments]

A host without a usable /dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import bare_guests
from bare_guests import HANG, Case, Connection, guest, mayfly, program
from snapshot_test import Handler

ROOT = Path(__file__).resolve().parents[2]
POLICIES = {name: ROOT / "resources/seccomp" / f"{name}.json" for name in ("monitor", "api", "vcpu", "snapshot", "guard")}
FORBIDDEN = 148
SYS_TGKILL = 234
PR_CAPBSET_DROP, CAP_FOWNER = 24, 3
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
SYS_OPENAT, SYS_LINKAT, AT_EMPTY_PATH = 257, 265, 0x1000
KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2 = 0xae03, 208
# How often a scenario is gone through that needs a rule only when two threads meet.
MANY = 400

OPTIONS = argparse.Namespace()
LIBC = ctypes.CDLL(None, use_errno=True)


class Ended(Exception):
    """The monitor has ended before it was meant to."""


class Vm:
    """A monitor under way, with a filter and what a scenario says of its surroundings."""

    def __init__(self, case, filters, kernel, *, api=False, terminal=False, wrapper=(), arguments=(), environment=None,
                 stdin=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE, prepare=None, run=False, load=False, drives=(),
                 networks=(),
                 **sections):
        self.seen = b""
        self.api = None
        self.master = None
        machine = {"vcpu_count": 1, "mem_size_mib": 64}
        config = case.config(guest(kernel), **{"machine-config": machine, "drives": list(drives),
                                               "network-interfaces": list(networks), **sections})
        start = ["run", "--kernel", guest(kernel), "--memory", "64M"] if run else [] if load else ["--config-file", config]
        command = [program(), *start, "--seccomp-filter", filters, *arguments]
        self.socket = case.path("api.sock")
        command += ["--api-sock", self.socket] if api else [] if run else ["--no-api"]
        stdin = subprocess.PIPE if stdin is None else stdin
        if terminal:
            self.master, slave = pty.openpty()
            stdin = stdout = slave
        self.process = subprocess.Popen([*wrapper, *command], stdin=stdin, stdout=stdout, stderr=stderr,
                                        start_new_session=terminal, env={**os.environ, **(environment or {})},
                                        preexec_fn=prepare)
        if terminal:
            os.close(slave)
        case.addCleanup(self.clean_up)
        self.forks = list(wrapper) == [OPTIONS.without_vdso]
        self.input = self.master if terminal else self.process.stdin and self.process.stdin.fileno()
        self.output = self.master if terminal else self.process.stdout and self.process.stdout.fileno()

    def clean_up(self):
        if self.forks:
            with contextlib.suppress(OSError, ValueError):  # there is none any more
                os.kill(self.pid(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None
        if self.api:
            self.api.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def until(self, text):
        end = time.monotonic() + HANG
        while text not in self.seen:
            ready = select.select([self.output], [], [], max(0, end - time.monotonic()))[0]
            try:
                data = os.read(self.output, 65536) if ready else b""
            except OSError:  # of a terminal whose other side is closed
                data = b""
            if not data:
                raise Ended
            self.seen += data
        self.seen = self.seen.split(text, 1)[1]

    def write(self, data):
        try:
            os.write(self.input, data)
        except OSError as error:
            raise Ended from error

    def tell(self, letters):
        """What devices.c does at each letter, one after the other."""
        for letter in letters:
            self.write(letter.encode())
            self.until(b"\n" if self.master is None else b"\r\n")

    def call(self, method, path, body=None):
        try:
            if self.api is None:
                self.api = Connection(self.socket)
                end = time.monotonic() + HANG
                while True:
                    try:
                        self.api.connect()
                        break
                    except (FileNotFoundError, ConnectionRefusedError):
                        if self.process.poll() is not None or time.monotonic() > end:
                            raise
                        time.sleep(0.002)
            self.api.request(method, path, body=None if body is None else json.dumps(body))
            answer = self.api.getresponse()
            return answer.status, answer.read()
        except (OSError, bare_guests.http.client.HTTPException) as error:
            raise Ended from error

    def pid(self):
        """The monitor's; that of what was started, unless it has become the monitor."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text()) if self.forks else pid

    def thread(self, name):
        """The id of a thread, once it is there."""
        end = time.monotonic() + HANG
        while time.monotonic() < end and self.process.poll() is None:
            for task in Path(f"/proc/{self.pid()}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    if (task / "comm").read_text().strip() == name:
                        return int(task.name)
            time.sleep(0.002)
        raise Ended

    def signal(self, number, thread=None):
        if thread is None:
            self.process.send_signal(number)
        else:
            LIBC.syscall(SYS_TGKILL, self.pid(), self.thread(thread), int(number))

    def stop(self):
        self.signal(signal.SIGTERM)


def in_private_network(queues):
    """A tap of our own."""
    mode = "vnet_hdr multi_queue" if queues > 1 else "vnet_hdr"
    script = f'ip tuntap add tap0 mode tap {mode} && ip link set tap0 up && exec "$@"'
    return ["unshare", "--net" if os.geteuid() == 0 else "-rn", "sh", "-c", script, "sh"]


# Scenarios: what each does is enough to need the rules that name it. Each takes a case and a filter, and gives the
# monitor and the exit code that it has to end with.

def disk(case, name="disk", size=8 << 20, folder=None, **fields):
    path = case.path(name)
    if folder:
        path = case.enterContext(tempfile.NamedTemporaryFile(dir=folder)).name
        os.truncate(path, size)
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.truncate(size)
    return {"drive_id": "d", "path_on_host": path, "is_root_device": False, **fields}


def life(case, filters, **keywords):
    """A guest that reads and writes its console until somebody ends it."""
    vm = Vm(case, filters, "echo", **keywords)
    vm.until(b"ready")
    vm.write(b"a")
    vm.until(b"b")
    return vm


def console(case, filters, **keywords):
    vm = life(case, filters, **keywords)
    vm.stop()
    return vm, 0


def end_by_guest(case, filters):
    vm = life(case, filters)
    vm.write(b"q")
    return vm, 0


def after_a_second(case, filters):
    vm = life(case, filters)
    time.sleep(0.6)
    vm.stop()
    return vm, 0


def drive(letters, **fields):
    def scenario(case, filters):
        vm = Vm(case, filters, "devices", drives=[disk(case, discard=True, **fields)])
        vm.tell("b")
        for _ in range(letters.count("x") * 400 or 1):
            vm.tell(letters)
        vm.write(b"q")
        return vm, 0
    return scenario


def network(letters, queues=1, **sections):
    def scenario(case, filters):
        vm = Vm(case, filters, "devices", wrapper=in_private_network(queues), drives=[disk(case)],
                networks=[{"iface_id": "n", "host_dev_name": "tap0", "queue_pairs": queues}], **sections)
        vm.tell(letters)
        vm.write(b"q")
        return vm, 0
    return scenario


def passt(letters):
    def scenario(case, filters):
        vm = Vm(case, filters, "devices", drives=[disk(case)], networks=[{"iface_id": "n", "backend": "user"}])
        vm.tell(letters)
        vm.write(b"q")
        return vm, 0
    return scenario


def other_image(read_only=False, image=None, prepare=None, **fields):
    def scenario(case, filters):
        vm = Vm(case, filters, "spin", api=True, prepare=prepare, drives=[disk(case, is_read_only=read_only, **fields)])
        vm.until(b"spinning")
        other = image() if image else disk(case, "other")["path_on_host"]
        if prepare:
            os.chmod(other, 0o666)
            os.chown(other, 12345, 12345)
        status, answer = vm.call("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": other})
        case.assertEqual(status, 204, answer)
        vm.stop()
        return vm, 0
    return scenario


def block_device():
    """A disk of this host's, to be read and nothing else."""
    for folder in sorted(Path("/sys/block").iterdir()):
        path = f"/dev/{folder.name}"
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "size").read_text()) > 0:
                os.close(os.open(path, os.O_RDONLY))
                return path
    return None


def without_rights_over_files():
    LIBC.prctl(PR_CAPBSET_DROP, CAP_FOWNER, 0, 0, 0)


def pauses(case, filters):
    vm = life(case, filters, api=True, **{"machine-config": {"vcpu_count": 2, "mem_size_mib": 64}})
    for _ in range(MANY):
        for state in ("Paused", "Resumed"):
            vm.call("PATCH", "/vm", {"state": state})
    vm.stop()
    return vm, 0


def shutdown_request(case, filters):
    vm = Vm(case, filters, "shutdown_request", api=True)
    vm.until(b"closed")
    vm.write(b"x")
    vm.until(b"open")
    vm.call("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    vm.until(b"PASS")
    return vm, 0


def terminal(case, filters):
    vm = Vm(case, filters, "echo", terminal=True)
    vm.until(b"ready")
    vm.write(b"a")
    vm.until(b"b")
    vm.stop()
    return vm, 0


def crash(thread, number=signal.SIGSEGV, code=150, **keywords):
    """A signal that reports an error of the program's own, on one of its threads."""
    def scenario(case, filters):
        vm = life(case, filters, api=True, **keywords)
        vm.signal(number, thread)
        return vm, code
    return scenario


def end_after_harmless_signal(vm, thread):
    vm.signal(signal.SIGPIPE, thread)
    time.sleep(0.1)
    vm.call("GET", "/")
    vm.stop()


def harmless_signal(thread):
    def scenario(case, filters):
        vm = life(case, filters, api=True)
        end_after_harmless_signal(vm, thread)
        return vm, 0
    return scenario


# Each piece of memory is asked of the kernel, and given back at once.
SMALL_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0:glibc.malloc.trim_threshold=1:glibc.malloc.mmap_threshold=256"}

TINY_PIECES = {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0:glibc.malloc.trim_threshold=1:glibc.malloc.tcache_count=0"}


def boot_trace(environment):
    def scenario(case, filters):
        vm = life(case, filters, arguments=["--boot-trace", case.path("trace")], environment=environment)
        vm.stop()
        return vm, 0
    return scenario


def large_bodies(case, filters):
    vm = life(case, filters, api=True, environment=SMALL_HEAP)
    vm.call("PUT", "/mmds", {str(number): "x" * 1000 for number in range(30)})
    vm.call("GET", "/metrics")
    vm.stop()
    return vm, 0


def no_vdso(**keywords):
    def scenario(case, filters):
        vm = life(case, filters, wrapper=[OPTIONS.without_vdso], **keywords)
        if keywords.get("api"):
            vm.call("GET", "/")
        vm.write(b"q")
        return vm, 0
    return scenario


def boot_timer(case, filters):
    vm = Vm(case, filters, "boot_mark", arguments=["--boot-timer"])
    return vm, 0


def stop_and_go_on(vm):
    """By the shell, or a debugger: what was waited for with poll(2) or a limit is waited for again by another call."""
    vm.signal(signal.SIGSTOP)
    time.sleep(0.2)
    vm.signal(signal.SIGCONT)
    time.sleep(0.1)


def stopped_by_the_shell(case, filters):
    """Stopped and continued while it waits, at its end, for a console that nobody reads."""
    read_end, write_end = os.pipe()
    case.addCleanup(os.close, read_end)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    vm = Vm(case, filters, "flood", stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    time.sleep(0.5)
    vm.stop()
    time.sleep(0.05)
    stop_and_go_on(vm)
    return vm, 0


def sockets(case, filters):
    """Standard input, output and error are sockets, as a service manager may have them."""
    ends = [socket.socketpair() for _ in range(3)]
    vm = Vm(case, filters, "echo", stdin=ends[0][1], stdout=ends[1][1], stderr=ends[2][1])
    for ours, theirs in ends:
        theirs.close()
        case.addCleanup(ours.close)
    vm.input, vm.output = ends[0][0].fileno(), ends[1][0].fileno()
    vm.log = ends[2][0]
    vm.until(b"ready")
    vm.write(b"a")
    vm.until(b"b")
    vm.stop()
    return vm, 0


def log_in_a_file(kernel, text, **keywords):
    """Standard error is a file, of which others may have the descriptor, too."""
    def scenario(case, filters):
        with open(case.path("err"), "wb") as file:
            vm = Vm(case, filters, kernel, stderr=file, api=True, **keywords)
        vm.until(text)
        vm.call("GET", "/nonsense")
        vm.call("PUT", "/actions", {"action_type": "nonsense"})
        vm.stop()
        return vm, 0
    return scenario


def clients(case, filters):
    vm = life(case, filters, api=True)
    vm.call("GET", "/")
    connection = socket.socket(socket.AF_UNIX)
    case.addCleanup(connection.close)
    connection.connect(vm.socket)
    with contextlib.suppress(OSError):
        connection.sendall(b"nonsense\r\n\r\n")  # answered, then told that nothing more comes
        while connection.recv(4096):
            pass
    connection.close()
    vm.call("GET", "/")
    vm.stop()
    return vm, 0


def refuse(number, index, value, error):
    """Before a monitor: a host whose system call `number` fails where that argument has that value. Whatever a filter of the
    monitor's own forbids ends it all the same: of several filters the strictest decides."""
    def load_word(offset):
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def otherwise_skip(value, count):
        return struct.pack("HBBI", 0x15, 0, count, value)

    def answer(what):
        return struct.pack("HBBI", 0x06, 0, 0, what)

    program = ctypes.create_string_buffer(
        load_word(0) + otherwise_skip(number, 3) + load_word(16 + 8 * index) + otherwise_skip(value, 1) +
        answer(0x00050000 | error) + answer(0x7fff0000))

    def prepare():
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HxxxxxxP", 6, ctypes.addressof(program)))
    return prepare


NO_UNNAMED_FILES = refuse(SYS_OPENAT, 2, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, errno.EOPNOTSUPP)
NO_NAME_BY_DESCRIPTOR = refuse(SYS_LINKAT, 4, AT_EMPTY_PATH, errno.ENOENT)  # before Linux 6.10, without privilege


def without_proc():
    return ["unshare", "--mount" if os.geteuid() == 0 else "-rm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


def save(case, vm, state="state", memory="memory", status=204):
    vm.call("PATCH", "/vm", {"state": "Paused"})
    answer = vm.call("PUT", "/snapshot/create", {"snapshot_path": os.path.join(case.folder, state),
                                                 "mem_file_path": os.path.join(case.folder, memory)})
    case.assertEqual(answer[0], status, answer)


def load(case, vm, status=204, **fields):
    backend = {"backend_type": "File", "backend_path": case.path("memory")}
    answer = vm.call("PUT", "/snapshot/load", {"snapshot_path": case.path("state"), "mem_backend": backend, "resume_vm": True,
                                               **fields})
    case.assertEqual(answer[0], status, answer)


def snapshots(folder=None, times=2, **keywords):
    """New ones, then others over them."""
    def scenario(case, filters):
        if folder:
            case.folder = case.enterContext(tempfile.TemporaryDirectory(dir=folder))
        vm = life(case, filters, api=True, **keywords)
        for _ in range(times):
            save(case, vm)
        vm.call("PATCH", "/vm", {"state": "Resumed"})
        vm.write(b"a")
        vm.until(b"b")
        vm.stop()
        return vm, 0
    return scenario


def over_a_part_that_was_left(case, filters):
    for name in ("state", "memory"):
        case.write(f".{name}.partial", "left by a writer that was killed")
    return snapshots(prepare=NO_UNNAMED_FILES)(case, filters)


def cut_short(case, filters):
    """Files that have names, and that a limit keeps from being written: they go, and the guest goes on."""
    def prepare():
        NO_UNNAMED_FILES()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    vm = life(case, filters, api=True, prepare=prepare)
    save(case, vm, status=400)
    case.assertEqual([name for name in os.listdir(case.folder) if "state" in name or "memory" in name], [])
    vm.call("PATCH", "/vm", {"state": "Resumed"})
    vm.write(b"a")
    vm.until(b"b")
    vm.stop()
    return vm, 0


def restored(case, filters):
    """A guest with a disk and a network goes on in another process, which changes its disk and saves it again."""
    devices = {"wrapper": in_private_network(1)}
    first = Vm(case, filters, "devices", api=True, drives=[disk(case)],
               networks=[{"iface_id": "n", "host_dev_name": "tap0"}], **devices)
    first.tell("bwn")
    save(case, first)
    first.stop()
    if first.process.wait(HANG) != 0:
        raise Ended
    vm = Vm(case, filters, "devices", api=True, load=True, **devices)
    load(case, vm)
    vm.tell("rwt")
    answer = vm.call("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": disk(case, "other")["path_on_host"]})
    case.assertEqual(answer[0], 204, answer)
    vm.tell("r")
    save(case, vm, "second", "of the second")
    vm.call("PATCH", "/vm", {"state": "Resumed"})
    vm.tell("rw")
    vm.stop()
    return vm, 0


def of_changes(case, filters):
    """Diffs by the dirty log, and live ones, of a guest that writes over its memory, zeros among it."""
    vm = Vm(case, filters, "flips", api=True,
            **{"machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": True}})
    vm.until(b"ready")
    for kind, live in (("Full", False), ("Diff", False), ("Diff", False), *[("Full", True)] * 4):
        vm.call("PATCH", "/vm", {"state": "Resumed" if live else "Paused"})
        answer = vm.call("PUT", "/snapshot/create", {"snapshot_path": case.path("state"), "mem_file_path": case.path("memory"),
                                                     "snapshot_type": kind, "live": live})
        case.assertEqual(answer[0], 204, answer)
        vm.call("PATCH", "/vm", {"state": "Resumed"})
    vm.stop()
    return vm, 0


def working_set(case, filters):
    """One guest's is recorded, and read ahead of another."""
    first = life(case, filters, api=True)
    save(case, first)
    first.stop()
    if first.process.wait(HANG) != 0:
        raise Ended
    for fields in ({"record_working_set": True}, {"working_set_path": case.path("set")}):
        vm = Vm(case, filters, "echo", api=True, load=True)
        load(case, vm, **fields)
        vm.write(b"a")
        vm.until(b"b")
        if "record_working_set" in fields:
            stop_and_go_on(vm)
            answer = vm.call("PUT", "/snapshot/working-set", {"working_set_path": case.path("set")})
            case.assertEqual(answer[0], 204, answer)
            vm.stop()
            if vm.process.wait(HANG) != 0:
                raise Ended
    vm.stop()
    return vm, 0


def handled(handler, end=Vm.stop, code=0, status=204, to_socket=False, without_vdso=False, **keywords):
    """A guest whose pages `handler` brings, in a process of its own, until it ends as `end` says."""
    def scenario(case, filters):
        first = life(case, filters, api=True)
        save(case, first)
        first.stop()
        if first.process.wait(HANG) != 0:
            raise Ended
        surroundings = {"wrapper": [OPTIONS.without_vdso]} if without_vdso else {}
        if to_socket:
            ours, surroundings["stderr"] = socket.socketpair()
            case.addCleanup(ours.close)
            case.addCleanup(surroundings["stderr"].close)
        path = case.path("handler")
        child = os.fork()
        if child == 0:
            try:
                handler(path, case.path("memory"))
            finally:
                os._exit(0)
        case.addCleanup(os.waitpid, child, 0)
        case.addCleanup(os.kill, child, signal.SIGKILL)
        while not os.path.exists(path):
            time.sleep(0.01)
        vm = Vm(case, filters, "echo", api=True, load=True, **surroundings, **keywords)
        load(case, vm, status, mem_backend={"backend_type": "Uffd", "backend_path": path})
        end(vm)
        return vm, code
    return scenario


def serve(path, memory):
    Handler(path, memory).ended.wait()


def serve_none(path, memory):
    Handler(path, memory, most=0).refused.wait(HANG)


def serve_a_few(path, memory):
    """Then end, as soon as one more is wanted."""
    Handler(path, memory, most=4).refused.wait(HANG)


def handler_dies(**keywords):
    return handled(serve_a_few, end=lambda vm: vm.process.wait(HANG), code=1, **keywords)


def end_after_a_stop(vm):
    stop_and_go_on(vm)
    vm.stop()


def guard_crash(number=signal.SIGSEGV, code=150, **keywords):
    return handled(serve, end=lambda vm: vm.signal(number, "mayfly_guard"), code=code, **keywords)


def link_that_leads_nowhere(log):
    """A snapshot's path that cannot be one; with `log`, while the log's file has been moved away."""
    def scenario(case, filters):
        path = case.path("log")
        vm = life(case, filters, api=True, arguments=["--log-path", path] if log else ())
        if log:
            os.rename(path, case.path("log.1"))
        os.symlink("nothing", case.path("link"))
        save(case, vm, "link", status=400)
        vm.stop()
        return vm, 0
    return scenario


def crash_report(to_socket=False, without_vdso=False):
    """Of the thread that writes snapshots, which says nothing else, to a log that others have, too."""
    def scenario(case, filters):
        if to_socket:
            ours, theirs = socket.socketpair()
            case.addCleanup(ours.close)
        else:
            theirs = open(case.path("err"), "wb")
        with theirs:
            vm = life(case, filters, api=True, stderr=theirs, wrapper=[OPTIONS.without_vdso] if without_vdso else ())
        vm.signal(signal.SIGSEGV, "mayfly_snapshot")
        return vm, 150
    return scenario


def xsave_size():
    with open("/dev/kvm", "rb") as kvm:
        return fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2)


def not_on_this_host(thread, rule):
    """Why a rule has no scenario here."""
    if rule == "ioctl 1=BLKGETSIZE64" and block_device() is None:
        return "no block device of this host can be opened"
    if rule in ("ioctl 1=KVM_GET_XSAVE", "ioctl 1=KVM_GET_XSAVE2") and rule.endswith("2") != (xsave_size() > 4096):
        return "this host's vector registers take the other request"
    if thread == "guard" and os.geteuid() != 0:
        return "only root may handle the kernel's page faults by userfaultfd"
    if rule == "mincore" and Path("/proc/swaps").read_text().count("\n") > 1:
        return "this host has swap"
    return None


MMDS = {"mmds-config": {"network_interfaces": ["n"]}}
TERMINAL = {"terminal": True}

# How often a scenario is gone through at most until it misses its rule.
ATTEMPTS = 8

# Which scenario needs which rule; none where it cannot be brought about at will: whether a vCPU's thread has to ask for
# memory depends on what others have given back before, of the threads for snapshots and of the guard as well; whether the end
# waits for a thread, and the guard for a lock, on who is faster. What is behind a rule is its call, and the arguments that it
# asks for.
NEEDED = {
    "monitor": {
        "epoll_wait": console,
        "read": console,
        "write": console,
        "epoll_ctl": console,
        "timerfd_settime": drive("rrrr", rate_limiter={"ops": {"size": 1, "refill_time": 50}}),
        "close": end_by_guest,
        "preadv2": drive("r"),
        "pwritev2 5=0": drive("w"),
        "pwritev2 5=RWF_DSYNC": drive("Bw", cache_type="Writeback"),
        "fdatasync": drive("f", cache_type="Writeback"),
        "fallocate 1=FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE": drive("d"),
        "fallocate 1=FALLOC_FL_ZERO_RANGE|FALLOC_FL_KEEP_SIZE": drive("z"),
        "io_uring_enter": drive("r", io_engine="Async"),
        "io_uring_register 1=IORING_REGISTER_FILES_UPDATE": other_image(io_engine="Async"),
        "sendmsg 2=MSG_DONTWAIT|MSG_NOSIGNAL": passt("nt"),
        "getrandom 2=0": network("ns", **MMDS),
        "poll": sockets,
        "openat 2=O_RDONLY|O_NOATIME|O_NOCTTY|O_CLOEXEC": other_image(read_only=True),
        "openat 2=O_RDONLY|O_NOCTTY|O_CLOEXEC": other_image(read_only=True, prepare=without_rights_over_files),
        "openat 2=O_RDWR|O_NOATIME|O_NOCTTY|O_CLOEXEC": other_image(),
        "openat 2=O_RDWR|O_NOCTTY|O_CLOEXEC": other_image(prepare=without_rights_over_files),
        "newfstatat": other_image(),
        "fcntl 1=F_OFD_SETLK": other_image(),
        "ioctl 1=BLKGETSIZE64": other_image(read_only=True, image=block_device),
        "ioctl 1=KVM_KVMCLOCK_CTRL": pauses,
        "ioctl 1=KVM_GET_IRQCHIP": shutdown_request,
        "ioctl 1=KVM_IRQ_LINE": shutdown_request,
        **{f"ioctl 1=KVM_GET_{what}": snapshots()
           for what in ("MP_STATE", "TSC_KHZ", "REGS", "SREGS", "XSAVE", "XSAVE2", "XCRS", "DEBUGREGS", "LAPIC", "MSRS",
                        "VCPU_EVENTS", "PIT2", "CLOCK")},
        "readlink": link_that_leads_nowhere(log=True),
        "ioctl 1=KVM_GET_DIRTY_LOG": of_changes,
        "ioctl 1=TUNSETQUEUE": network("nm", queues=2),
        "ioctl 1=TUNSETOFFLOAD": network("nt"),
        "ioctl 1=TIOCGPGRP": terminal,
        "ioctl 1=TCGETS": terminal,
        "ioctl 1=TCSETS": terminal,
        "brk": boot_trace(TINY_PIECES),
        "mmap 2=PROT_READ|PROT_WRITE 3=MAP_PRIVATE|MAP_ANONYMOUS": boot_trace(SMALL_HEAP),
        "munmap": console,
        "madvise 2=MADV_DONTNEED": after_a_second,
        "madvise 2=MADV_DONTDUMP": after_a_second,
        "futex 1=FUTEX_WAIT|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAKE|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME|FUTEX_PRIVATE_FLAG": snapshots(),
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME": None,
        "clock_gettime": no_vdso(),
        "tgkill 0=OWN_PROCESS 2=SIGRTMIN": console,
        "tgkill 0=OWN_PROCESS 2=SIGABRT": crash("mayfly", signal.SIGABRT, -signal.SIGABRT),
        "getpid": crash("mayfly", signal.SIGABRT, -signal.SIGABRT),
        "gettid": crash("mayfly", signal.SIGABRT, -signal.SIGABRT),
        "rt_sigprocmask": console,
        "rt_sigreturn": harmless_signal("mayfly"),
        "restart_syscall": stopped_by_the_shell,
        "exit_group": console,
    },
    "api": {
        "epoll_wait": clients,
        "accept4 3=SOCK_CLOEXEC|SOCK_NONBLOCK": clients,
        "recvfrom": clients,
        "sendmsg 2=MSG_DONTWAIT|MSG_NOSIGNAL": clients,
        "epoll_ctl": clients,
        "close": clients,
        "shutdown 1=SHUT_WR": clients,
        "shutdown 1=SHUT_RD": clients,
        "newfstatat 3=AT_SYMLINK_NOFOLLOW": clients,
        "unlink": clients,
        "read": clients,
        "write": clients,
        "timerfd_settime": clients,
        "poll 2=0": log_in_a_file("echo", b"ready"),
        "brk": large_bodies,
        "mmap 2=PROT_READ|PROT_WRITE 3=MAP_PRIVATE|MAP_ANONYMOUS": large_bodies,
        "munmap": large_bodies,
        "futex 1=FUTEX_WAIT|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAKE|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME|FUTEX_PRIVATE_FLAG": pauses,
        "clock_gettime": no_vdso(api=True),
        "ioctl 1=TIOCGPGRP": crash("mayfly_api", **TERMINAL),
        "ioctl 1=TCGETS": crash("mayfly_api", **TERMINAL),
        "ioctl 1=TCSETS": crash("mayfly_api", **TERMINAL),
        "tgkill 0=OWN_PROCESS 2=SIGABRT": crash("mayfly_api", signal.SIGABRT, -signal.SIGABRT),
        "getpid": crash("mayfly_api", signal.SIGABRT, -signal.SIGABRT),
        "gettid": crash("mayfly_api", signal.SIGABRT, -signal.SIGABRT),
        "rt_sigprocmask": clients,
        "rt_sigreturn": harmless_signal("mayfly_api"),
        "madvise 2=MADV_DONTNEED": clients,
        "exit": clients,
        "exit_group": crash("mayfly_api"),
    },
    "vcpu": {
        "ioctl 1=KVM_RUN": console,
        "write": console,
        "timerfd_settime": console,
        "sendmsg 2=MSG_DONTWAIT|MSG_NOSIGNAL": sockets,
        "poll 2=0": log_in_a_file("flood_unknown", b"here"),
        "io_uring_enter": drive("bx", io_engine="Async", folder="/dev/shm"),
        "brk": None,
        "futex 1=FUTEX_WAIT|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAKE|FUTEX_PRIVATE_FLAG": pauses,
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME|FUTEX_PRIVATE_FLAG": pauses,
        "clock_gettime": boot_timer,
        "ioctl 1=TIOCGPGRP": crash("mayfly_vcpu 0", **TERMINAL),
        "ioctl 1=TCGETS": crash("mayfly_vcpu 0", **TERMINAL),
        "ioctl 1=TCSETS": crash("mayfly_vcpu 0", **TERMINAL),
        "tgkill 0=OWN_PROCESS 2=SIGABRT": crash("mayfly_vcpu 0", signal.SIGABRT, -signal.SIGABRT),
        "getpid": crash("mayfly_vcpu 0", signal.SIGABRT, -signal.SIGABRT),
        "gettid": crash("mayfly_vcpu 0", signal.SIGABRT, -signal.SIGABRT),
        "rt_sigprocmask": console,
        "rt_sigreturn": pauses,
        "madvise 2=MADV_DONTNEED": console,
        "exit": console,
        "exit_group": crash("mayfly_vcpu 0"),
    },
    "snapshot": {
        "pwrite64": snapshots(),
        "lseek": restored,
        "pread64": restored,
        "ioctl 1=PAGEMAP_SCAN": snapshots(),
        "mincore": snapshots(wrapper=without_proc()),
        "ioctl 1=KVM_GET_DIRTY_LOG": of_changes,
        "fallocate 1=FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE": of_changes,
        "readahead": working_set,
        "madvise 2=MADV_POPULATE_READ": working_set,
        "madvise 2=MADV_POPULATE_WRITE": working_set,
        "sysinfo": snapshots(wrapper=without_proc()),
        "openat 2=O_RDONLY|O_DIRECTORY|O_CLOEXEC": snapshots(),
        "openat 2=O_TMPFILE|O_RDWR|O_CLOEXEC 3=S_IRUSR|S_IWUSR": snapshots(folder="/dev/shm"),
        "openat 2=O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC 3=S_IRUSR|S_IWUSR": snapshots(prepare=NO_UNNAMED_FILES),
        "openat 2=O_RDONLY|O_CLOEXEC|O_NOFOLLOW|O_NONBLOCK|O_NOCTTY": over_a_part_that_was_left,
        "flock 1=LOCK_EX|LOCK_NB": snapshots(),
        "newfstatat": snapshots(),
        "readlink": link_that_leads_nowhere(log=False),
        "ftruncate": snapshots(),
        "fsync": snapshots(),
        "sync_file_range": snapshots(),
        "linkat 4=AT_EMPTY_PATH": snapshots(folder="/dev/shm"),
        "linkat 0=AT_FDCWD 4=AT_SYMLINK_FOLLOW": snapshots(prepare=NO_NAME_BY_DESCRIPTOR),
        "renameat": snapshots(),
        "unlinkat 2=0": cut_short,
        "close": link_that_leads_nowhere(log=False),
        "brk": None,
        "mmap 2=PROT_READ|PROT_WRITE 3=MAP_PRIVATE|MAP_ANONYMOUS": restored,
        "munmap": restored,
        "futex 1=FUTEX_WAIT|FUTEX_PRIVATE_FLAG": snapshots(times=MANY),
        "futex 1=FUTEX_WAKE|FUTEX_PRIVATE_FLAG": snapshots(),
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME|FUTEX_PRIVATE_FLAG": snapshots(),
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG": working_set,
        "futex 1=FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME": working_set,
        "write": crash_report(),
        "sendmsg 2=MSG_DONTWAIT|MSG_NOSIGNAL": crash_report(to_socket=True),
        "poll 2=0": crash_report(),
        "clock_gettime": crash_report(without_vdso=True),
        "ioctl 1=TIOCGPGRP": crash("mayfly_snapshot", **TERMINAL),
        "ioctl 1=TCGETS": crash("mayfly_snapshot", **TERMINAL),
        "ioctl 1=TCSETS": crash("mayfly_snapshot", **TERMINAL),
        "tgkill 0=OWN_PROCESS 2=SIGABRT": crash("mayfly_snapshot", signal.SIGABRT, -signal.SIGABRT),
        "getpid": crash("mayfly_snapshot", signal.SIGABRT, -signal.SIGABRT),
        "gettid": crash("mayfly_snapshot", signal.SIGABRT, -signal.SIGABRT),
        "rt_sigprocmask": clients,
        "rt_sigreturn": harmless_signal("mayfly_snapshot"),
        "restart_syscall": working_set,
        "madvise 2=MADV_DONTNEED": clients,
        "exit": clients,
        "exit_group": crash("mayfly_snapshot"),
    },
    "guard": {
        "poll": handled(serve),
        "read": handled(serve),
        "ioctl 1=UFFDIO_WAKE": handler_dies(),
        "ioctl 1=UFFDIO_UNREGISTER": handled(serve_none, status=400),
        "close": handler_dies(),
        "write": handler_dies(),
        "sendmsg 2=MSG_DONTWAIT|MSG_NOSIGNAL": handler_dies(to_socket=True),
        "brk": None,
        "futex 1=FUTEX_WAIT|FUTEX_PRIVATE_FLAG": None,
        "futex 1=FUTEX_WAKE|FUTEX_PRIVATE_FLAG": handled(serve),
        "clock_gettime": handler_dies(without_vdso=True),
        "ioctl 1=TIOCGPGRP": guard_crash(**TERMINAL),
        "ioctl 1=TCGETS": guard_crash(**TERMINAL),
        "ioctl 1=TCSETS": guard_crash(**TERMINAL),
        "tgkill 0=OWN_PROCESS 2=SIGABRT": guard_crash(signal.SIGABRT, -signal.SIGABRT),
        "getpid": guard_crash(signal.SIGABRT, -signal.SIGABRT),
        "gettid": guard_crash(signal.SIGABRT, -signal.SIGABRT),
        "rt_sigprocmask": handled(serve),
        "rt_sigreturn": handled(serve, end=lambda vm: end_after_harmless_signal(vm, "mayfly_guard")),
        "restart_syscall": handled(serve, end=end_after_a_stop),
        "madvise 2=MADV_DONTNEED": handled(serve),
        "exit": handled(serve),
        "exit_group": guard_crash(),
    },
}


# Without these the end is another one: signals are blocked at the end of a thread and around tgkill, so that the kernel
# itself ends the process; and without the last there is no end but a crash.
OTHER_ENDS = {
    "api exit": -signal.SIGSYS,
    "api madvise 2=MADV_DONTNEED": -signal.SIGSYS,
    "vcpu exit": -signal.SIGSYS,
    "vcpu madvise 2=MADV_DONTNEED": -signal.SIGSYS,
    "snapshot exit": -signal.SIGSYS,
    "snapshot madvise 2=MADV_DONTNEED": -signal.SIGSYS,
    "guard exit": -signal.SIGSYS,
    "guard madvise 2=MADV_DONTNEED": -signal.SIGSYS,
    "monitor tgkill 0=OWN_PROCESS 2=SIGRTMIN": -signal.SIGSYS,
    "monitor exit_group": -signal.SIGSEGV,
    "api exit_group": -signal.SIGSEGV,
    "vcpu exit_group": -signal.SIGSEGV,
    "snapshot exit_group": -signal.SIGSEGV,
    "guard exit_group": -signal.SIGSEGV,
}


def name_of(rule):
    tests = [f"{test['index']}={test['equals']}" for test in rule.get("arguments", [])]
    return " ".join([rule["call"], *tests])


class FilterCase(Case):
    def compile(self, policies, name="filters"):
        """The filters of the policies, by thread; of those that are not given, the project's own."""
        files = []
        for thread, own in POLICIES.items():
            files.append(str(own))
            if thread in policies:
                files[-1] = self.write(f"{thread}.json", json.dumps(policies[thread]))
        output = self.path(name)
        done = subprocess.run([OPTIONS.compiler, "-o", output, *files], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return output

    def go_through(self, scenario, filters):
        """The exit code, the one that was expected, and the log."""
        expected = 0
        try:
            vm, expected = scenario(self, filters)
        except Ended:
            vm = None
        process = (vm or self.running()).process
        try:
            code = process.wait(HANG)
        except subprocess.TimeoutExpired:
            code = None
        log = process.stderr.read().decode(errors="replace") if process.stderr else ""
        self.doCleanups()
        return code, expected, log

    def running(self):
        """The monitor of a scenario that was cut short: its clean-up knows it."""
        return next(args[0].__self__ if args else function.__self__
                    for function, args, _ in reversed(self._cleanups) if isinstance(getattr(function, "__self__", None), Vm))


class Rules(FilterCase):
    """One test for each thread: see NEEDED."""

    def test_with_all_rules_every_scenario_comes_to_its_end(self):
        for thread, scenarios in NEEDED.items():
            for name, scenario in scenarios.items():
                with self.subTest(thread=thread, rule=name):
                    self.setUp()
                    if scenario is not None and not not_on_this_host(thread, name):
                        code, expected, log = self.go_through(scenario, self.compile({}))
                        self.assertEqual(code, expected, log)

    def each_rule_of(self, thread):
        policy = json.loads(POLICIES[thread].read_text())
        rules = {name_of(rule): rule for rule in policy["rules"]}
        self.assertEqual(sorted(rules), sorted(NEEDED[thread]), "every rule has a scenario, and no other has one")
        for name, rule in rules.items():
            if NEEDED[thread][name] is None:
                continue
            with self.subTest(rule=name):
                if why := not_on_this_host(thread, name):
                    self.skipTest(why)
                rest = {**policy, "rules": [other for other in policy["rules"] if other is not rule]}
                # Some are needed only as threads happen to meet: one time of several tells.
                for _ in range(ATTEMPTS):
                    self.setUp()
                    code, _, log = self.go_through(NEEDED[thread][name], self.compile({thread: rest}))
                    if code != 0:
                        break
                self.assertEqual(code, OTHER_ENDS.get(f"{thread} {name}", FORBIDDEN), log)

    def test_each_of_the_monitor_is_needed(self):
        self.each_rule_of("monitor")

    def test_each_of_the_api_is_needed(self):
        self.each_rule_of("api")

    def test_each_of_the_vcpus_is_needed(self):
        self.each_rule_of("vcpu")

    def test_each_of_the_snapshots_is_needed(self):
        self.each_rule_of("snapshot")

    def test_each_of_the_handlers_guard_is_needed(self):
        self.each_rule_of("guard")


class Choice(FilterCase):
    """Which filters a monitor gets, and what it says of those that it cannot use."""

    def states(self, vm):
        """By thread's name, its mode of seccomp and whether it can gain privileges; without KVM's own worker, which is a
        thread of the process since Linux 6.13 and runs no code of it."""
        states = {}
        for task in Path(f"/proc/{vm.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
                if not fields["Name"].startswith("kvm-"):
                    states[fields["Name"]] = fields["Seccomp"], fields["NoNewPrivs"]
        return states

    def started(self, *arguments):
        vm = bare_guests.Running("run", "--kernel", guest("spin"), "--cpus", "2", "--api-sock", self.path("s"), *arguments)
        self.addCleanup(vm.process.kill)
        return vm.until(b"spinning")

    def test_every_thread_of_a_running_microvm_has_a_filter(self):
        vm = self.started()
        names = ("mayfly", "mayfly_api", "mayfly_snapshot", "mayfly_vcpu 0", "mayfly_vcpu 1")
        self.assertEqual(self.states(vm), {name: ("2", "1") for name in names})
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)

    def test_no_thread_has_one_where_none_is_wanted(self):
        vm = self.started("--no-seccomp")
        self.assertEqual({mode for mode, _ in self.states(vm).values()}, {"0"})
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)

    def test_before_the_start_the_api_has_its_filter_and_a_start_that_fails_can_be_tried_again(self):
        vm = bare_guests.Running("--api-sock", self.path("s"))
        self.addCleanup(vm.process.kill)
        api = Connection(self.path("s"))
        self.addCleanup(api.close)
        api.connect_once_served(vm.process)

        def put(path, body):
            api.request("PUT", path, body=json.dumps(body))
            answer = api.getresponse()
            answer.read()
            return answer.status

        self.assertEqual(put("/boot-source", {"kernel_image_path": guest("spin")}), 204)
        # One more looks at KVM ahead, and ends soon.
        waiting = {"mayfly": ("0", "0"), "mayfly_api": ("2", "1"), "mayfly_snapshot": ("2", "1")}
        end = time.monotonic() + HANG
        while self.states(vm) != waiting and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(self.states(vm), waiting)
        self.assertEqual(put("/cpu-config", {"kvm_capabilities": ["9999"]}), 204)
        self.assertEqual(put("/actions", {"action_type": "InstanceStart"}), 400)
        self.assertEqual(self.states(vm)["mayfly"], ("0", "0"))
        self.assertEqual(put("/cpu-config", {}), 204)
        self.assertEqual(put("/actions", {"action_type": "InstanceStart"}), 204)
        vm.until(b"spinning")
        self.assertEqual({mode for mode, _ in self.states(vm).values()}, {"2"})
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)

    def test_a_start_waits_for_the_filter_of_the_thread_that_writes_snapshots(self):
        """Which the kernel refuses here; nothing that comes before asks that thread for anything."""
        filters = bytearray(Path(self.compile({})).read_bytes())
        at = 16  # magic, version, processor; then for each thread how many instructions of 8 bytes, and these
        for _ in range(list(POLICIES).index("snapshot")):
            at += 4 + 8 * struct.unpack_from("<I", filters, at)[0]
        struct.pack_into("<H", filters, at + 4, 0xffff)  # no instruction
        Path(self.path("filters")).write_bytes(filters)
        vm = bare_guests.Running("--api-sock", self.path("s"), "--seccomp-filter", self.path("filters"))
        self.addCleanup(vm.process.kill)
        with contextlib.closing(Connection(self.path("s"))) as api:
            api.connect_once_served(vm.process)
            for path, body, expected in (("/boot-source", {"kernel_image_path": guest("spin")}, 204),
                                         ("/actions", {"action_type": "InstanceStart"}, 400)):
                api.request("PUT", path, body=json.dumps(body))
                answer = api.getresponse()
                said = answer.read().decode()
                self.assertEqual(answer.status, expected, said)
        self.assertIn("the seccomp filter of thread snapshot", said)
        vm.process.send_signal(signal.SIGTERM)
        self.expect(vm.end(), 0)

    def test_who_has_no_policy_for_a_thread_that_came_later_gets_the_monitors_own(self):
        own = [str(path) for name, path in POLICIES.items() if name not in ("snapshot", "guard")]
        subprocess.run([OPTIONS.compiler, "-o", self.path("three"), *own], check=True)
        self.assertLess(os.path.getsize(self.path("three")), os.path.getsize(self.compile({})))
        vm = Vm(self, self.path("three"), "echo", api=True)
        vm.until(b"ready")
        self.assertEqual(self.states(vm)["mayfly_snapshot"], ("2", "1"))
        save(self, vm)
        vm.stop()
        self.assertEqual(vm.process.wait(HANG), 0)
        if os.geteuid() == 0:  # else no kernel's page fault may be another process's
            vm, _ = handled(serve, end=lambda vm: self.assertEqual(self.states(vm)["mayfly_guard"], ("2", "1")))(
                self, self.path("three"))
            vm.stop()
            self.assertEqual(vm.process.wait(HANG), 0)

    def test_filters_that_cannot_be_used_are_refused_with_the_file_and_the_reason(self):
        good = Path(self.compile({})).read_bytes()
        self.write("text", "{}")
        Path(self.path("cut")).write_bytes(good[:-1])
        Path(self.path("huge")).write_bytes(good + bytes(1 << 20))
        for name, why in (("none", "ENOENT"), ("text", "mayfly-seccomp"), ("cut", "damaged"), ("huge", "bytes"),
                          (".", "EISDIR")):
            refused = mayfly("run", "--kernel", guest("spin"), "--seccomp-filter", self.path(name))
            self.expect(refused, 153, b"", ("--seccomp-filter", self.path(name), why))
        both = mayfly("run", "--no-seccomp", "--seccomp-filter", self.path("filters"))
        self.expect(both, 153, b"", "contradict")

    def test_policies_that_are_wrong_are_refused_and_nothing_is_written(self):
        def compiled(*arguments):
            return subprocess.run([OPTIONS.compiler, "-o", self.path("out"), *arguments], capture_output=True, text=True,
                                  check=False)
        own = [str(path) for path in POLICIES.values()]
        for arguments, code, why in (
                ([], 153, "POLICY"), (["--names", own[0]], 153, "--names"), (["--nonsense"], 153, "nonsense"),
                (own[:2], 152, "no policy for thread vcpu"), ([*own, own[0]], 152, "two policies for thread monitor"),
                ([self.path("none")], 152, "ENOENT"), ([self.write("p.json", "{")], 152, "p.json")):
            done = compiled(*arguments)
            self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
            self.assertIn(why, done.stderr)
            self.assertFalse(os.path.exists(self.path("out")))
        done = subprocess.run([OPTIONS.compiler, "-o", "/nonexistent/out", *own], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent/out", done.stderr)


class Documentation(FilterCase):
    PAGE = ROOT / "docs/seccomp.md"

    def test_the_page_has_the_right_numbers(self):
        done = subprocess.run([OPTIONS.compiler, "--count", *map(str, POLICIES.values())], capture_output=True, text=True,
                              check=True)
        counts = dict(re.findall(r"(\w+): (\d+) system calls", done.stdout))
        self.assertEqual(dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| \d+ \|$", self.PAGE.read_text(), re.M)), counts)

    def test_the_commands_of_the_page_work_as_written(self):
        blocks = re.findall(r"```sh\n(.*?)```", self.PAGE.read_text(), re.S)
        self.assertTrue(blocks)
        tools = self.path("bin")
        os.mkdir(tools)
        os.symlink(program(), f"{tools}/mayfly")
        os.symlink(OPTIONS.compiler, f"{tools}/mayfly-seccomp")
        os.symlink(ROOT / "resources", self.path("resources"))
        os.symlink(guest("power_off"), self.path("vmlinux"))
        done = subprocess.run(["bash", "-euc", "\n".join(blocks)], cwd=self.folder, capture_output=True, text=True, timeout=HANG,
                              env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("hello", done.stdout)


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--without-vdso", required=True)
    _, rest = parser.parse_known_args(namespace=OPTIONS)
    sys.argv[1:] = rest
    bare_guests.main(__doc__)


if __name__ == "__main__":
    main()
