#!/usr/bin/python3
"""Takes snapshots of bare guests on this host's /dev/kvm and goes on from them, over the control API.

  snapshot_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

The guests are tests/support/guests/snapshot.c, which has state of every kind, and devices.c. A host without a usable
/dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import array
import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import itertools
import json
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from api_test import Stream
from bare_guests import HANG, Case, Connection, Running, guest, main, program

TAP_NAMES = itertools.count()


class Vm(Running):
    """A microVM that is driven by its control API, and typed at."""

    def __init__(self, case, *arguments, before=()):
        self.case = case
        self.socket = case.path(f"api{next(case.numbers)}.sock")
        command = [*before, program(), "--api-sock", self.socket, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.seen = b""
        self.api = Connection(self.socket)
        self.api.connect_once_served(self.process)

    def kill(self):
        self.api.close()
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()

    def call(self, method, path, body=None):
        """The status and the JSON of the answer, None without one."""
        self.api.request(method, path, body=None if body is None else json.dumps(body))
        answer = self.api.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None

    def call_aside(self, method, path, body):
        """The call in a thread of its own, as it is answered late or never, and a list that gets its answer."""
        answers = []

        def run():
            with contextlib.suppress(OSError, http.client.HTTPException):
                answers.append(self.call(method, path, body))
        thread = threading.Thread(target=run)
        thread.start()
        return thread, answers

    def do(self, method, path, body):
        self.case.assertEqual(self.call(method, path, body), (204, None), f"{method} {path} {body}")

    def refused(self, texts, method, path, body=None):
        status, answer = self.call(method, path, body)
        self.case.assertEqual(status, 400, answer)
        for text in [texts] if isinstance(texts, str) else texts:
            self.case.assertIn(text, answer["fault_message"])

    def get(self, path):
        status, answer = self.call("GET", path)
        self.case.assertEqual(status, 200, answer)
        return answer

    def boot(self, name="snapshot", until=b"ready\n", **machine):
        self.do("PUT", "/boot-source", {"kernel_image_path": guest(name)})
        self.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64, **machine})
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})
        if until:
            self.until(until)
        return self

    def pause(self):
        self.do("PATCH", "/vm", {"state": "Paused"})

    def resume(self):
        self.do("PATCH", "/vm", {"state": "Resumed"})

    def create(self, files):
        """A snapshot, after which the microVM is paused."""
        self.pause()
        self.do("PUT", "/snapshot/create", files.create())

    def load(self, files, **more):
        """Of a process that was killed, what io_uring has open is closed a little after its end: asks until it is."""
        end = time.monotonic() + HANG
        status, answer = self.call("PUT", "/snapshot/load", files.load(**more))
        while status == 400 and "is in use" in answer["fault_message"] and time.monotonic() < end:
            time.sleep(0.05)
            status, answer = self.call("PUT", "/snapshot/load", files.load(**more))
        self.case.assertEqual((status, answer), (204, None))
        return self

    def ask(self, letters, until):
        """Types the letters and reads up to `until`; what came before it."""
        self.seen = b""
        self.send(letters)
        self.until(until)
        return self.seen

    def count(self):
        """The number in the guest's memory, which this makes one more."""
        return int(self.ask(b"c", b"\n"))

    def clock(self):
        return int(self.ask(b"k", b"\n"), 16)

    def metrics(self):
        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
        with open(self.case.path("metrics"), encoding="utf-8") as file:
            return json.loads(file.readlines()[-1])


class Files:
    """The two files of a snapshot, and the bodies of the calls that name them."""

    def __init__(self, folder, name="vm"):
        self.state, self.memory = os.path.join(folder, name + ".state"), os.path.join(folder, name + ".mem")

    def create(self, **more):
        return {"snapshot_path": self.state, "mem_file_path": self.memory, **more}

    def load(self, resume=True, **more):
        backend = {"backend_type": "File", "backend_path": self.memory}
        return {"snapshot_path": self.state, "mem_backend": backend, "resume_vm": resume, **more}

    def contents(self):
        def sum_of(path):
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return sum_of(self.state), sum_of(self.memory)


class SnapshotCase(Case):
    def setUp(self):
        super().setUp()
        self.numbers = itertools.count()
        self.files = Files(self.folder)

    def start(self, *arguments, **keywords):
        vm = Vm(self, *arguments, **keywords)
        self.addCleanup(vm.kill)
        return vm

    def restored(self, files=None, **more):
        return self.start().load(files or self.files, **more)

    def expect_same_memory(self, one, other, but_for=1):
        """But for as many pages: the one in which each snapshot has its mark, and each guest that goes on the id of its life;
        and the one of the clock, which is written where a guest goes on as well."""
        with open(one.memory, "rb") as first, open(other.memory, "rb") as second:
            self.assertEqual(os.path.getsize(one.memory), os.path.getsize(other.memory))
            pages = enumerate(zip(iter(lambda: first.read(4096), b""), iter(lambda: second.read(4096), b"")))
            self.assertEqual(len([number for number, (left, right) in pages if left != right]), but_for)

    def image(self, name, size=1 << 20, fill=b""):
        with open(self.path(name), "wb") as file:
            file.write(fill)
            file.truncate(size)
        return self.path(name)

    def taken(self, *letters, **machine):
        """A microVM that has counted to 3, was told `letters`, and is paused, with its snapshot in self.files."""
        vm = self.start().boot(**machine)
        self.assertEqual([vm.count() for _ in range(3)], [1, 2, 3])
        for letter, until in letters:
            vm.ask(letter, until)
        vm.create(self.files)
        return vm


class GoingOn(SnapshotCase):
    """What a guest has, it has when it goes on."""

    def test_the_original_and_every_copy_go_on_from_the_same_moment_and_apart(self):
        original = self.taken()
        contents = self.files.contents()
        first = self.restored()
        second = self.start()
        body = self.files.load(resume=False)
        del body["mem_backend"]
        second.do("PUT", "/snapshot/load", {**body, "mem_file_path": self.files.memory})
        self.assertEqual(second.get("/")["state"], "Paused")
        second.resume()
        original.resume()
        self.assertEqual([vm.count() for vm in (original, first, second)], [4, 4, 4])
        self.assertEqual([first.count() for _ in range(5)], [5, 6, 7, 8, 9])
        self.assertEqual([second.count(), original.count(), self.restored().count()], [5, 5, 4])
        self.assertEqual(self.files.contents(), contents)

    def test_a_copy_is_a_microvm_like_any_other_and_can_be_saved_again(self):
        vm = self.taken()
        for turn in range(6):
            files = Files(self.folder, f"turn{turn}")
            vm.create(files)
            vm.kill()
            vm = self.restored(files)
            self.assertEqual(vm.count(), 4 + turn)
        vm.send(b"q")
        self.expect(vm.end(), 0)

    def test_the_same_names_are_written_over_while_the_guest_runs_from_their_former_files(self):
        self.taken().kill()
        vm = self.restored()
        for turn in range(4):
            self.assertEqual(vm.count(), 4 + turn)
            vm.create(self.files)
            vm.resume()
        self.assertEqual(self.restored().count(), 8)
        self.assertEqual(sorted(name for name in os.listdir(self.folder) if not name.startswith("api")), ["vm.mem", "vm.state"])

    def test_a_guest_paused_and_saved_runs_no_further_until_it_is_resumed(self):
        vm = self.taken()
        other = Files(self.folder, "other")
        vm.send(b"c")
        vm.do("PUT", "/snapshot/create", other.create())
        self.expect_same_memory(other, self.files)
        vm.resume()
        vm.seen = b""
        vm.until(b"4\n")

    def test_the_shell_goes_on_from_one_with_the_console_on_its_own_streams(self):
        self.taken()
        contents = self.files.contents()
        copy = Running("restore", self.files.state, self.files.memory, stdin=subprocess.PIPE)
        self.addCleanup(copy.process.kill)
        copy.send(b"c")
        copy.until(b"4\n")
        copy.process.send_signal(signal.SIGTERM)
        self.expect(copy.end(), 0)
        # Another one is asked at its socket, and is paused.
        socket_path = self.path("own.sock")
        paused = Running("restore", self.files.state, self.files.memory, "--paused", "--id", "copy",
                         "--api-sock", socket_path, stdin=subprocess.PIPE)
        self.addCleanup(paused.process.kill)
        api = Connection(socket_path)
        api.connect_once_served(paused.process)
        api.request("GET", "/")
        told = json.load(api.getresponse())
        api.close()
        self.assertEqual((told["state"], told["id"]), ("Paused", "copy"))
        listed = subprocess.run([program(), "ps", "--json"], capture_output=True, check=True, timeout=HANG)
        self.assertIn(("copy", "Paused"), [(vm["name"], vm["state"]) for vm in json.loads(listed.stdout)])
        subprocess.run([program(), "resume", str(paused.process.pid)], check=True, timeout=HANG)
        paused.send(b"c")
        paused.until(b"4\n")
        paused.process.send_signal(signal.SIGTERM)
        self.expect(paused.end(), 0)
        self.assertEqual(self.files.contents(), contents)

    def test_the_shell_s_copy_keeps_nothing_that_it_was_started_with(self):
        self.taken()
        with open(self.files.state, "rb") as state, open(self.image("left"), "rb") as left:
            process = subprocess.Popen([program(), "restore", f"/dev/fd/{state.fileno()}", self.files.memory],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       pass_fds=(left.fileno(), state.fileno()))
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.stdin.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            process.stdin.write(b"c")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), b"4\n")
            links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
            self.assertNotIn(self.path("left"), links)

    def test_a_copy_keeps_nothing_that_was_made_ahead_of_it(self):
        """A snapshot whose template asks something of KVM takes none of it."""
        def check(process):
            links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
            self.assertEqual((links.count("anon_inode:kvm-vm"), links.count("/dev/kvm")), (1, 0), links)
            tasks = Path(f"/proc/{process.pid}/task")
            names = {(task / "comm").read_text(encoding="utf-8").strip() for task in tasks.iterdir()}
            self.assertEqual(names & {"mayfly_kvm", "mayfly_cpuid"}, set())

        for number, template in enumerate(({}, {"kvm_capabilities": ["!56"]})):
            files = Files(self.folder, str(number))
            with self.subTest(template=template):
                vm = self.start()
                vm.do("PUT", "/cpu-config", template)
                vm.boot().create(files)
                loaded = self.restored(files)
                self.assertEqual(loaded.count(), 1)
                check(loaded.process)
                copy = Running("restore", files.state, files.memory, stdin=subprocess.PIPE)
                self.addCleanup(copy.process.kill)
                copy.send(b"c")
                copy.until(b"1\n")
                check(copy.process)
                copy.process.send_signal(signal.SIGTERM)
                self.expect(copy.end(), 0)

    def test_the_shell_is_told_what_stands_against_it(self):
        self.taken()
        contents = self.files.contents()
        for arguments, code, said in (
                (["none", self.files.memory], 152, "none"),
                ([self.files.memory, self.files.state], 152, self.files.memory),
                ([self.files.state, self.files.state], 152, self.files.state),
                ([self.files.state, self.files.memory, "--disk", "disk9=x"], 152, "disk9"),
                ([self.files.state, self.files.memory, "--tap", "net9=x"], 152, "net9"),
                ([self.files.state, self.files.memory, "--working-set", "none"], 152, "none"),
                ([self.files.state, self.files.memory, "--metadata", "none"], 153, "--metadata"),
                ([self.files.state, self.files.memory, "--metadata", self.files.state], 153, "--metadata"),
                ([self.files.state, self.files.memory, "--log-path", self.files.memory], 153, "--log-path"),
                ([self.files.state, self.files.memory, "--boot-trace", self.files.state], 153, "--boot-trace")):
            with self.subTest(arguments=arguments):
                ended = subprocess.run([program(), "restore", *arguments], capture_output=True, text=True, timeout=HANG,
                                       stdin=subprocess.DEVNULL, cwd=self.folder, check=False)
                self.assertEqual((ended.returncode, ended.stdout), (code, ""), ended.stderr)
                self.assertIn(said, ended.stderr)
        self.assertEqual(self.files.contents(), contents)

    def test_registers_of_four_processors_their_waits_and_a_pending_timer_are_kept(self):
        original = self.taken((b"a", b"holding\n"), vcpu_count=4)
        for vm in (self.restored(), original, self.restored()):
            if vm is original:
                vm.resume()
            self.assertEqual(vm.ask(b"v", b"\n"), b"PASS\n")
            self.assertEqual(vm.count(), 4)

    def test_the_whole_vector_registers_are_kept(self):
        vm = self.start().boot(vcpu_count=2)
        vm.send(b"y")
        try:
            vm.until(b"holding\n")
        except AssertionError:
            self.skipTest("this KVM interprets, and does not know instructions of AVX")
        vm.create(self.files)
        self.assertEqual(self.restored().ask(b"v", b"\n"), b"PASS\n")

    def test_a_halted_guest_is_woken_by_the_timer_that_it_had_armed(self):
        for _ in range(10):  # a host that stands still may let it ring before the pause
            original = self.taken((b"t", b"armed\n"))
            if not select.select([original.process.stdout], [], [], 0)[0]:
                break
        for vm in (self.restored(), self.restored(), original):
            if vm is original:
                vm.resume()
            vm.seen = b""
            vm.until(b"timer\n")
            self.assertEqual(vm.count(), 4)

    def test_the_pit_goes_on_ticking(self):
        original = self.taken((b"p", b"...."))
        for vm in (self.restored(), original):
            if vm is original:
                vm.resume()
            vm.seen = b""
            vm.until(b"....")
            vm.ask(b"c", b"4\n")

    def test_what_was_typed_and_not_yet_read_is_read_by_each_copy(self):
        original = self.start().boot()
        original.ask(b"f", b"")
        original.send(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # more than the port's 16
        original.until(b"full\n")
        original.create(self.files)
        for vm in (self.restored(), self.restored()):
            vm.until(b"\n")
            self.assertIn(vm.seen, (b"0123456789ABCDE\n", b"0123456789ABCDEF\n"))  # the port had the first letter, too
            self.assertEqual(vm.count(), 1)
        original.resume()
        original.until(b"\n0123456789ABCDE")

    def test_the_clock_never_goes_back_and_stands_still_meanwhile_unless_it_is_told_to_move(self):
        original = self.taken()
        original.resume()
        before = original.clock()
        begin = time.monotonic_ns()
        original.create(self.files)
        time.sleep(3)
        moved, still = (self.restored(clock_realtime=realtime) for realtime in (True, False))
        stood, went = still.clock() - before, moved.clock() - before
        passed = time.monotonic_ns() - begin
        self.assertGreater(stood, 0)
        self.assertLess(stood, passed - 2_900_000_000)
        if not self.has_realtime():
            self.skipTest("this KVM's clock does not know the host's time of day: clock_realtime moves nothing")
        self.assertGreater(went, 2_900_000_000)
        for vm in (moved, still):
            first, second = vm.clock(), vm.clock()
            self.assertLess(first, second)

    def has_realtime(self):
        """Bit 2 of the clock section's flags: KVM_CLOCK_REALTIME."""
        payload = StateFile(self.files.state).payload(b"clock")
        return struct.unpack_from("<QI", payload)[1] & 4

    def test_many_restores_of_one_snapshot_at_once_all_count_for_themselves(self):
        self.taken().kill()
        copies = [self.restored() for _ in range(12)]
        for number in range(4, 8):
            self.assertEqual([vm.count() for vm in copies], [number] * len(copies))


class Devices(SnapshotCase):
    def started(self, *arguments, drives=("disk",), network=None):
        vm = self.start("--metrics-path", self.path("metrics"), *arguments)
        for index, name in enumerate(drives):
            vm.do("PUT", f"/drives/{name}", {"drive_id": name, "path_on_host": self.path(name), "is_root_device": index == 0})
        if network:
            vm.do("PUT", "/network-interfaces/net", {"iface_id": "net", **network})
        return vm

    def tell(self, vm, letters):
        """Each is done as it should be."""
        for letter in letters:
            self.assertEqual(vm.ask(letter.encode(), b"\n"), letter.encode() + b"\n")

    def test_a_disk_goes_on_where_it_was(self):
        for engine in ("Sync", "Async"):
            with self.subTest(engine=engine):
                self.image("disk")
                vm = self.start()
                vm.do("PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": self.path("disk"), "io_engine": engine,
                                              "is_root_device": True, "cache_type": "Writeback", "discard": True})
                vm.boot("devices", until=None)
                self.tell(vm, "bwwrrf")
                vm.create(self.files)
                vm.kill()
                copy = self.restored()
                self.tell(copy, "rwfrdzr")
                copy.create(self.files)
                copy.kill()
                again = self.restored()
                self.tell(again, "rxbrwf")
                again.kill()

    def test_a_copy_gets_a_disk_of_its_own(self):
        self.image("disk", fill=b"\1" * 8192)
        vm = self.started()
        vm.boot("devices", until=None)
        self.tell(vm, "br")
        vm.create(self.files)
        # The original has its disk.
        self.start().refused(("disk", "in use", "--disk disk=IMAGE", "drive_overrides"), "PUT", "/snapshot/load", self.files.load())
        shutil.copy(self.path("disk"), self.path("copy"))
        copy = self.restored(drive_overrides=[{"drive_id": "disk", "path_on_host": self.path("copy")}])
        self.assertEqual(copy.get("/vm/config")["drives"][0]["path_on_host"], self.path("copy"))
        shutil.copy(self.path("disk"), self.path("base"))
        layered = self.restored(drive_overrides=[{"drive_id": "disk", "path_on_host": self.path("base"),
                                                  "overlay": self.path("overlay")}])
        self.assertEqual(layered.get("/vm/config")["drives"][0]["overlay"], self.path("overlay"))
        for which in (copy, layered):
            self.tell(which, "zfr")
        vm.resume()
        self.tell(vm, "r")

        def head(name):
            with open(self.path(name), "rb") as file:
                return file.read(4096)
        self.assertEqual((head("disk"), head("copy")), (b"\1" * 4096, bytes(4096)))
        # What is in an overlay's file is kept by it, and a copy of the copy finds it.
        layered.create(self.files)
        layered.kill()
        self.tell(self.restored(), "r")
        # An empty one would take away what the guest has written.
        another = self.start()
        for overlay in (self.path("empty"), "memory"):
            another.refused(("overlay", "path_on_host"), "PUT", "/snapshot/load",
                            self.files.load(drive_overrides=[{"drive_id": "disk", "overlay": overlay}]))
        self.assertFalse(os.path.exists(self.path("empty")))
        shutil.copy(self.path("overlay"), self.path("full"))
        another.load(self.files, drive_overrides=[{"drive_id": "disk", "overlay": self.path("full")}])
        self.tell(another, "r")

    def test_a_copy_gets_a_tap_of_its_own(self):
        if os.geteuid() != 0:
            self.skipTest("only root makes taps")
        taps = []
        for _ in range(2):
            name = f"mf{os.getpid() % 100000}n{next(TAP_NAMES)}"
            made = subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], capture_output=True, check=False)
            if made.returncode != 0:
                self.skipTest(f"this host makes no taps: {made.stderr!r}")
            self.addCleanup(subprocess.run, ["ip", "link", "del", name], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            taps.append(name)
        self.image("disk")
        vm = self.started(network={"host_dev_name": taps[0], "guest_mac": "06:00:00:00:00:01"})
        vm.boot("devices", until=None)
        self.tell(vm, "bntt")
        vm.create(self.files)
        shutil.copy(self.path("disk"), self.path("copy"))
        own = {"drive_overrides": [{"drive_id": "disk", "path_on_host": self.path("copy")}]}
        # The tap is still the original's.
        second = self.start()
        second.refused((taps[0], "net", "--tap net=TAP", "network_overrides"), "PUT", "/snapshot/load", self.files.load(**own))
        second.load(self.files, network_overrides=[{"iface_id": "net", "host_dev_name": taps[1]}], **own)
        config = second.get("/vm/config")["network-interfaces"][0]
        self.assertEqual((config["host_dev_name"], config["guest_mac"]), (taps[1], "06:00:00:00:00:01"))
        self.tell(second, "trt")
        second.kill()
        third = self.start()
        third.load(self.files, network_overrides=[{"iface_id": "net", "host_dev_name": taps[1], "guest_mac": "06:00:00:00:00:02"}],
                   **own)
        self.assertEqual(third.get("/vm/config")["network-interfaces"][0]["guest_mac"], "06:00:00:00:00:02")
        self.tell(third, "trt")
        third.kill()
        socket_path = self.path("shell.sock")
        fourth = Running("restore", self.files.state, self.files.memory, "--disk", f"disk={self.path('copy')}",
                         "--tap", f"net={taps[1]}", "--mac", "net=06:00:00:00:00:03", "--api-sock", socket_path)
        self.addCleanup(fourth.process.kill)
        api = Connection(socket_path)
        api.connect_once_served(fourth.process)
        api.request("GET", "/vm/config")
        config = json.load(api.getresponse())["network-interfaces"][0]
        api.close()
        self.assertEqual((config["host_dev_name"], config["guest_mac"]), (taps[1], "06:00:00:00:00:03"))
        fourth.process.send_signal(signal.SIGTERM)
        self.expect(fourth.end(), 0)
        vm.resume()
        self.tell(vm, "trt")
        for override, said in (({"iface_id": "none", "host_dev_name": taps[1]}, ("no network interface", "none", "it has: net")),
                               ({"iface_id": "net"}, ("host_dev_name",)),
                               ({"iface_id": "net", "guest_mac": "06:00:00:00:00"}, ("network_overrides[0]", "guest_mac")),
                               ({"iface_id": "net", "guest_mac": "06:00:00:00:{n}"}, ("net", "guest_mac", "{n}")),
                               ({"iface_id": "net", "guest_mac": "01:00:00:00:00:01"}, ("net", "guest_mac", "single")),
                               ({"iface_id": "net", "guest_mac": "00:00:00:00:00:00"}, ("net", "guest_mac", "single"))):
            self.start().refused(said, "PUT", "/snapshot/load", self.files.load(network_overrides=[override], **own))

    def test_the_metadata_service_is_there_and_what_it_tells_is_the_loaders(self):
        self.image("disk")
        vm = self.started(network={"backend": "user"})
        vm.do("PUT", "/mmds/config", {"network_interfaces": ["net"], "version": "V2"})
        vm.do("PUT", "/mmds", {"name": "the original"})
        vm.boot("devices", until=None)
        self.tell(vm, "bn")
        vm.create(self.files)
        vm.kill()
        silent = self.start()
        silent.load(self.files)
        silent.refused("none yet", "GET", "/mmds")
        self.assertEqual(silent.get("/vm/config")["mmds-config"]["version"], "V2")
        silent.kill()
        told = self.start()
        told.load(self.files, metadata={"name": "a copy"})
        self.assertEqual(told.get("/mmds"), {"name": "a copy"})
        told.kill()
        socket_path = self.path("shell.sock")
        shell = Running("restore", self.files.state, self.files.memory, "--metadata", self.write("metadata", '{"name": "a file"}'),
                        "--api-sock", socket_path)
        self.addCleanup(shell.process.kill)
        end = time.monotonic() + HANG
        while not os.path.exists(socket_path) and shell.process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        api = Connection(socket_path)
        api.request("GET", "/mmds", headers={"Accept": "application/json"})
        self.assertEqual(json.load(api.getresponse()), {"name": "a file"})
        api.close()
        shell.process.send_signal(signal.SIGTERM)
        self.expect(shell.end(), 0)
        before = self.start()
        before.do("PUT", "/mmds", {"name": "put before"})
        before.load(self.files)
        self.assertEqual(before.get("/mmds"), {"name": "put before"})
        self.tell(before, "tst")

    def test_a_copy_has_the_configuration_of_its_original(self):
        self.image("disk")
        self.image("data")
        template = {"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "ecx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}
        vm = self.started(drives=("disk", "data"), network={
            "backend": "user", "guest_mac": "06:00:00:00:00:07", "mtu": 1400,
            "rx_rate_limiter": {"ops": {"size": 1000, "refill_time": 100, "one_time_burst": 7}}})
        vm.do("PUT", "/cpu-config", template)
        vm.do("PUT", "/mmds/config", {"network_interfaces": ["net"], "version": "V2"})
        vm.boot("devices", until=None, smt=True, vcpu_count=2)
        self.tell(vm, "b")
        vm.do("PATCH", "/drives/disk", {"drive_id": "disk", "rate_limiter": {"bandwidth": {"size": 10000000, "refill_time": 50}}})
        vm.create(self.files)
        config = vm.get("/vm/config")
        vm.kill()
        copy = self.start("--metrics-path", self.path("metrics2"), "--id", "another")
        copy.load(self.files)
        found = copy.get("/vm/config")
        self.assertEqual(found, config)
        self.tell(copy, "rw")

    def test_a_drive_or_an_override_that_does_not_fit_is_refused_by_name_and_the_next_load_may_be_right(self):
        self.image("disk")
        vm = self.started()
        vm.boot("devices", until=None)
        self.tell(vm, "bw")
        vm.create(self.files)
        vm.kill()
        self.image("small", 1 << 19)
        copy = self.start()
        for override, said in (
                ({"drive_id": "disk", "path_on_host": self.path("small")}, ("disk", "small", "sectors")),
                ({"drive_id": "other", "path_on_host": self.path("disk")}, ("no drive", "other")),
                ({"drive_id": "disk", "path_on_host": self.path("none")}, ("none", "No such file")),
                ({"drive_id": "disk", "path_on_host": self.files.memory}, (self.files.memory,)),
                ({"drive_id": "disk"}, ("overridden",)),
                ({"drive_id": "disk", "path": "x"}, ("path",)),
                ({"path_on_host": "x"}, ("drive_id",))):
            with self.subTest(override=override):
                copy.refused(said, "PUT", "/snapshot/load", self.files.load(drive_overrides=[override]))
                self.assertEqual(copy.get("/")["state"], "Not started")
                self.assertEqual(copy.get("/vm/config")["drives"], [])
        copy.refused(("drive_overrides", "disk", "more than once"), "PUT", "/snapshot/load", self.files.load(
            drive_overrides=[{"drive_id": "disk", "path_on_host": self.path(name)} for name in ("small", "disk")]))
        os.rename(self.path("disk"), self.path("away"))
        copy.refused(("disk", "No such file"), "PUT", "/snapshot/load", self.files.load())
        os.rename(self.path("away"), self.path("disk"))
        copy.load(self.files)
        self.tell(copy, "rw")

    def test_a_drive_whose_changes_are_in_memory_is_not_saved(self):
        vm = self.start()
        vm.do("PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": self.image("disk"), "is_root_device": True,
                                      "overlay": "memory"})
        vm.boot()
        vm.pause()
        vm.refused(("drive disk", "in memory"), "PUT", "/snapshot/create", self.files.create())
        vm.resume()
        self.assertEqual(vm.count(), 1)


class Telling(SnapshotCase):
    def test_events_metrics_and_state_tell_what_happens(self):
        vm = self.start("--metrics-path", self.path("metrics"))
        stream = Stream(vm.socket)
        self.addCleanup(stream.close)
        vm.boot()
        vm.create(self.files)
        self.assertEqual(stream.names(3), ["starting", "running", "paused"])
        latencies = vm.metrics()["latencies_us"]
        self.assertGreater(latencies["full_create_snapshot"], 0)
        self.assertGreater(latencies["pause_vm"], 0)
        self.assertEqual((latencies["load_snapshot"], latencies["diff_create_snapshot"]), (0, 0))
        vm.kill()
        for resume, names in ((True, ["starting", "running"]), (False, ["starting", "running", "paused"])):
            os.remove(self.path("metrics"))
            copy = self.start("--metrics-path", self.path("metrics"))
            events = Stream(copy.socket)
            self.addCleanup(events.close)
            copy.refused("mem", "PUT", "/snapshot/load", {"snapshot_path": self.files.state})
            copy.refused("No such file", "PUT", "/snapshot/load", Files(self.folder, "none").load())
            self.assertEqual(events.names(2), ["starting", "start-failed"])
            copy.load(self.files, resume=resume)
            self.assertEqual(events.names(len(names)), names)
            self.assertEqual(copy.get("/")["state"], "Running" if resume else "Paused")
            self.assertGreater(copy.metrics()["latencies_us"]["load_snapshot"], 0)
            copy.do("PATCH", "/vm", {"state": "Resumed"})
            if not resume:
                self.assertEqual(events.names(1), ["resumed"])
            self.assertEqual(copy.count(), 1)

    def test_a_working_set_is_recorded_and_used_by_later_loads(self):
        self.taken().kill()
        where = {"working_set_path": self.path("set")}
        vm = self.start()
        vm.refused("only after", "PUT", "/snapshot/working-set", where)
        vm.load(self.files, record_working_set=True)
        self.assertEqual(vm.count(), 4)
        vm.do("PUT", "/snapshot/working-set", where)
        vm.refused("no working set", "PUT", "/snapshot/working-set", where)
        ahead = self.start()
        ahead.refused("not both", "PUT", "/snapshot/load",
                      self.files.load(record_working_set=True, **where))
        ahead.load(self.files, **where)
        self.assertEqual([ahead.count(), vm.count()], [4, 5])

    def test_the_shell_has_a_working_set_recorded_and_written(self):
        self.taken().kill()
        socket_path = self.path("own.sock")
        recorded = Running("restore", self.files.state, self.files.memory, "--record-working-set", "--api-sock", socket_path,
                           stdin=subprocess.PIPE)
        self.addCleanup(recorded.process.kill)
        recorded.send(b"c")
        recorded.until(b"4\n")
        # By a path of the caller's folder.
        write = [program(), "working-set", str(recorded.process.pid), "set"]
        subprocess.run(write, cwd=self.folder, check=True, timeout=HANG)
        again = subprocess.run(write, cwd=self.folder, capture_output=True, check=False, timeout=HANG)
        self.assertEqual((again.returncode, again.stdout), (1, b""))
        self.assertIn(b"no working set", again.stderr)
        recorded.process.send_signal(signal.SIGTERM)
        self.expect(recorded.end(), 0)
        ahead = Running("restore", self.files.state, self.files.memory, "--working-set", self.path("set"), stdin=subprocess.PIPE)
        self.addCleanup(ahead.process.kill)
        ahead.send(b"c")
        ahead.until(b"4\n")
        ahead.process.send_signal(signal.SIGTERM)
        self.expect(ahead.end(), 0)

    def test_a_working_set_that_could_not_be_written_is_written_when_it_is_asked_for_again(self):
        self.taken().kill()
        vm = self.start()
        vm.load(self.files, record_working_set=True)
        self.assertEqual(vm.count(), 4)
        where = {"working_set_path": self.path("set")}
        limits = resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE)
        for _ in range(2):
            resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, (16, limits[1]))
            vm.refused((self.path("set"), "File too large"), "PUT", "/snapshot/working-set", where)
            resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, limits)
            vm.refused(("none/", "No such file"), "PUT", "/snapshot/working-set",
                       {"working_set_path": self.path("none/set")})
        vm.do("PUT", "/snapshot/working-set", where)
        vm.refused("no working set", "PUT", "/snapshot/working-set", where)
        self.assertEqual(self.start().load(self.files, **where).count(), 4)

    def test_a_working_set_that_is_none_of_this_snapshot_is_refused_by_name(self):
        self.taken().kill()
        other = Files(self.folder, "other")
        vm = self.start().load(self.files, record_working_set=True)
        self.assertEqual(vm.count(), 4)
        vm.do("PUT", "/snapshot/working-set", {"working_set_path": self.path("set")})
        vm.create(other)
        vm.kill()
        with open(self.path("set"), "rb") as file:
            good = file.read()
        vm = self.start()
        for content, said in ((good[:-8], "damaged"), (good[:20], "20 bytes"), (b"", "0 bytes"), (good[8:], "not a working set"),
                              (good[:40] + bytes([good[40] ^ 1]) + good[41:], "damaged"), (good + good, "damaged")):
            with self.subTest(said=said, size=len(content)):
                with open(self.path("bad"), "wb") as file:
                    file.write(content)
                vm.refused((self.path("bad"), said), "PUT", "/snapshot/load", self.files.load(working_set_path=self.path("bad")))
        vm.refused((self.path("none"), "No such file"), "PUT", "/snapshot/load",
                   self.files.load(working_set_path=self.path("none")))
        vm.refused((self.path("set"), "another snapshot"), "PUT", "/snapshot/load", other.load(working_set_path=self.path("set")))
        self.assertEqual(vm.load(self.files, working_set_path=self.path("set")).count(), 4)

    def test_the_file_says_what_it_is(self):
        self.taken().kill()
        said = subprocess.run([program(), "--describe-snapshot", self.files.state], capture_output=True, text=True, check=True,
                              timeout=HANG).stdout
        self.assertIn("64 MiB", said)
        self.assertRegex(said, "snapshot +Full, [0-9a-f]{32}\n")


class Refusals(SnapshotCase):
    """Of PUT /snapshot/create: the former snapshot and the guest are as they were."""

    def goes_on(self, vm, contents):
        self.assertEqual(self.files.contents(), contents)
        self.assertEqual(sorted(name for name in os.listdir(self.folder) if name.endswith(".partial")), [])
        vm.resume()
        self.assertEqual(vm.count(), 4)
        self.assertEqual(self.restored().count(), 4)

    def test_calls_at_the_wrong_time(self):
        vm = self.start()
        vm.refused("only after", "PUT", "/snapshot/create", self.files.create())
        vm.boot()
        vm.refused("paused", "PUT", "/snapshot/create", self.files.create())
        vm.refused("only before", "PUT", "/snapshot/load", self.files.load())
        self.assertFalse(os.path.exists(self.files.state))

    def test_bodies_that_are_none(self):
        vm = self.taken()
        contents = self.files.contents()
        for body, said in ((self.files.create(snapshot_type="Half"), "snapshot_type"), (self.files.create(version="1"), "version"),
                           (self.files.create(live="yes"), "live"), ({"snapshot_path": "x"}, "mem_file_path"),
                           ({"mem_file_path": "x"}, "snapshot_path"), ({}, "snapshot_path"), ([], ""),
                           ({"snapshot_path": 1, "mem_file_path": "x"}, "snapshot_path"),
                           ({"snapshot_path": "", "mem_file_path": "x"}, "")):
            with self.subTest(body=body):
                vm.refused(said, "PUT", "/snapshot/create", body)
        self.goes_on(vm, contents)

    def test_paths_that_hold_something_else(self):
        self.image("disk")
        vm = self.start("--log-path", self.path("log"), "--metrics-path", self.path("metrics"))
        vm.do("PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": self.path("disk"), "is_root_device": True,
                                      "overlay": self.path("overlay")})
        vm.do("PUT", "/serial", {"serial_out_path": self.path("serial")})
        vm.do("PUT", "/boot-source", {"kernel_image_path": shutil.copy(guest("snapshot"), self.path("kernel"))})
        vm.do("PUT", "/actions", {"action_type": "InstanceStart"})
        while self.size("serial") < len("ready\n"):
            time.sleep(0.01)
        vm.create(self.files)
        contents = self.files.contents()
        os.mkdir(self.path("folder"))
        os.mkfifo(self.path("fifo"))
        os.symlink(self.files.state, self.path("link"))
        os.symlink(self.path("disk"), self.path("link-to-disk"))
        os.link(self.path("disk"), self.path("hard-link-to-disk"))
        names = ("disk", "overlay", "kernel", "log", "metrics", "serial", "folder", "fifo", "link", "link-to-disk",
                 "hard-link-to-disk", "folder/", "none/file")
        sizes = [self.size(name) for name in names[:3]]
        for name in names:
            for field in ("snapshot_path", "mem_file_path"):
                with self.subTest(name=name, field=field):
                    vm.refused(name.split("/")[0], "PUT", "/snapshot/create",
                               {**Files(self.folder, "new").create(), field: self.path(name)})
        for path in (self.files.state, self.path("folder/../vm.state"), self.path("new")):
            vm.refused("two files", "PUT", "/snapshot/create",
                       {"snapshot_path": path if "new" in path else self.files.state, "mem_file_path": path})
        self.assertEqual([self.size(name) for name in names[:3]], sizes)
        self.assertEqual(self.files.contents(), contents)
        self.assertFalse(os.path.exists(self.path("new.mem")) or os.path.exists(self.path("new.state")))
        vm.create(self.files)
        vm.resume()
        vm.send(b"q")
        self.expect(vm.end(), 0)

    def size(self, name):
        return os.path.getsize(self.path(name)) if os.path.exists(self.path(name)) else -1

    def test_no_space_left(self):
        if os.geteuid() != 0:
            self.skipTest("only root mounts a small file system")
        os.mkdir(self.path("small"))
        mount = 'mount -t tmpfs -o size=640k small "$0" && exec "$@"'
        vm = self.start(before=("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, self.path("small")))
        vm.boot()
        self.assertEqual([vm.count() for _ in range(3)], [1, 2, 3])
        inside, outside = (Files(folder) for folder in (self.path("small"), f"/proc/{vm.process.pid}/root{self.path('small')}"))
        vm.create(inside)
        contents = outside.contents()
        left = self.fill(os.path.dirname(outside.state))
        for _ in range(3):
            vm.refused(("snapshot", "No space left"), "PUT", "/snapshot/create", inside.create())
            self.assertEqual(outside.contents(), contents)
        self.assertEqual(sorted(os.listdir(os.path.dirname(outside.state))), ["filler", "vm.mem", "vm.state"])
        self.assertEqual(vm.get("/")["state"], "Paused")
        vm.resume()
        self.assertEqual(vm.count(), 4)
        os.remove(left)
        vm.create(inside)
        self.assertEqual(self.restored(outside).count(), 5)

    def fill(self, folder):
        """Leaves less room than the state of a microVM takes."""
        path = os.path.join(folder, "filler")
        with open(path, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return path


POLYNOMIAL = 0xC96C5795D7870F42


def crc64(data):
    """CRC-64/XZ."""
    crc = (1 << 64) - 1
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ ((1 << 64) - 1)


def crc_of_byte(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


class StateFile:
    """A state file as docs/snapshot-format.md has it, to be changed so that its checksums still hold."""

    HEADER = 64

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = bytearray(file.read())
        self.sections = []  # (name, offset, length of the contents)
        at = self.HEADER
        while at < len(self.bytes):
            name, _, _, _, length, _ = struct.unpack_from("<8sIHHQQ", self.bytes, at)
            self.sections.append((name.rstrip(b"\0"), at, length))
            at += 32 + length

    def find(self, wanted):
        return next((at, length) for name, at, length in self.sections if name == wanted)

    def payload(self, name):
        at, length = self.find(name)
        return bytes(self.bytes[at + 32:at + 32 + length])

    def cpuid(self):
        """(leaf, offset) of each entry of the first processor; its registers follow at 12."""
        at, _ = self.find(b"vcpu")
        count, = struct.unpack_from("<I", self.bytes, at + 32 + 4)
        for where in range(at + 40, at + 40 + 28 * count, 28):
            yield struct.unpack_from("<I", self.bytes, where)[0], where

    def sealed(self):
        """The bytes, with every checksum made anew."""
        for _, at, length in self.sections:
            covered = self.bytes[at:at + 24] + self.bytes[at + 32:at + 32 + length]
            struct.pack_into("<Q", self.bytes, at + 24, crc64(covered))
        struct.pack_into("<Q", self.bytes, self.HEADER - 8, crc64(self.bytes[:self.HEADER - 8]))
        return bytes(self.bytes)


class Loading(SnapshotCase):
    """What cannot be loaded is refused by name, and the process is then as good as new."""

    def setUp(self):
        super().setUp()
        self.taken().kill()

    def refused_then_good(self, vm, cases):
        for body, said in cases:
            with self.subTest(said=said, body=body):
                vm.refused(said, "PUT", "/snapshot/load", body)
                self.assertEqual(vm.get("/")["state"], "Not started")
        vm.load(self.files)
        self.assertEqual(vm.count(), 4)

    def test_bodies_that_are_none(self):
        good = self.files.load()
        none = {key: value for key, value in good.items() if key != "mem_backend"}
        self.refused_then_good(self.start("--mmds-size-limit", "100"), [
            (none, "mem_backend"), ({**good, "mem_file_path": self.files.memory}, "mem_backend"),
            ({**good, "mem_backend": {"backend_type": "File"}}, "backend_path"),
            ({**good, "mem_backend": {"backend_path": self.files.memory}}, "backend_type"),
            ({**good, "mem_backend": {"backend_type": "Disk", "backend_path": "x"}}, "backend_type"),
            ({**good, "mem_backend": {**good["mem_backend"], "size": 1}}, "size"),
            ({**good, "unknown": 1}, "unknown"), ({**good, "huge_pages": "1G"}, "huge_pages"),
            ({**good, "resume_vm": 1}, "resume_vm"), ({**good, "network_overrides": {}}, "network_overrides"),
            ({**good, "network_overrides": [{"iface_id": "x"}]}, "network_overrides[0]"),
            ({**good, "network_overrides": [{"iface_id": "x", "host_dev_name": "y"}]}, "no network interface"),
            ({**good, "metadata": {"large": "x" * 200}}, "metadata"), ({}, "snapshot_path"),
        ])

    def test_not_after_a_part_of_another_machine_was_put(self):
        for method, path, body in (
                ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64}),
                ("PATCH", "/machine-config", {"vcpu_count": 1}),
                ("PUT", "/boot-source", {"kernel_image_path": guest("snapshot")}),
                ("PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": self.image("disk"), "is_root_device": False}),
                ("PUT", "/network-interfaces/net", {"iface_id": "net", "backend": "user"})):
            with self.subTest(path=path):
                vm = self.start()
                vm.do(method, path, body)
                vm.refused("its own machine", "PUT", "/snapshot/load", self.files.load())
                vm.boot()
                self.assertEqual(vm.count(), 1)
                vm.kill()

    def test_log_metrics_serial_port_processor_and_metadata_may_be_put_before(self):
        vm = self.start()
        vm.do("PUT", "/logger", {"log_path": self.path("log"), "level": "Debug"})
        vm.do("PUT", "/metrics", {"metrics_path": self.path("metrics")})
        vm.do("PUT", "/serial", {"serial_out_path": self.path("serial")})
        vm.do("PUT", "/cpu-config", {"cpuid_modifiers": []})
        vm.do("PUT", "/mmds", {"a": 1})
        vm.load(self.files)
        vm.send(b"cq")
        self.expect(vm.end(), 0)
        with open(self.path("serial"), "rb") as file:
            self.assertEqual(file.read(), b"4\n")

    def test_not_twice(self):
        vm = self.start()
        vm.load(self.files)
        vm.refused("only before", "PUT", "/snapshot/load", self.files.load())
        self.assertEqual(vm.count(), 4)

    def test_files_that_are_no_snapshot(self):
        vm = self.start()
        cases = []
        for name in ("none", ".", "api0.sock"):
            path = self.path(name)
            cases += [({**self.files.load(), "snapshot_path": path}, path),
                      ({**self.files.load(), "mem_backend": {"backend_type": "File", "backend_path": path}}, path)]
        os.mkfifo(self.path("fifo"))
        for path in ("/dev/null", self.path("fifo"), guest("snapshot"), self.files.memory):
            cases.append(({**self.files.load(), "snapshot_path": path}, path))
        for path in ("/dev/null", self.path("fifo"), self.files.state):
            cases.append(({**self.files.load(), "mem_backend": {"backend_type": "File", "backend_path": path}}, path))
        cases.append(({**self.files.load(), "mem_backend": {"backend_type": "Uffd", "backend_path": self.path("none")}},
                      self.path("none")))
        self.refused_then_good(vm, cases)

    def test_memory_of_another_size(self):
        cases = []
        for change in (-4096, -1, 1, 4096):
            path = shutil.copy(self.files.memory, self.path(f"mem{change}"))
            os.truncate(path, os.path.getsize(path) + change)
            cases.append(({**self.files.load(), "mem_backend": {"backend_type": "File", "backend_path": path}}, path))
        self.refused_then_good(self.start(), cases)

    def damaged(self, cases):
        """One process is given each (name, bytes, texts of the refusal), then a good one; another one then boots."""
        path = self.path("damaged")
        vm = self.start()
        for name, content, said in cases:
            with open(path, "wb") as file:
                file.write(content)
            with self.subTest(damage=name):
                vm.refused(said or path, "PUT", "/snapshot/load", {**self.files.load(), "snapshot_path": path})
                self.assertEqual(vm.get("/")["state"], "Not started")
        vm.load(self.files)
        self.assertEqual(vm.count(), 4)
        other = self.start()
        other.refused(cases[-1][2] or path, "PUT", "/snapshot/load", {**self.files.load(), "snapshot_path": path})
        other.boot(vcpu_count=2)
        self.assertEqual(other.count(), 1)

    def test_a_state_file_that_is_cut_off_or_goes_on(self):
        whole = bytes(StateFile(self.files.state).bytes)
        ends = {0, 1, 7, 8, 15, 16, 63, 64, 65, 95, 96, len(whole) - 1, len(whole) // 2}
        for _, at, length in StateFile(self.files.state).sections:
            ends |= {at, at + 16, at + 32, at + 32 + length // 2}
        self.damaged([*((f"{end} bytes", whole[:end], ()) for end in sorted(ends)), ("more", whole + b"\0", ("follows",)),
                      ("twice", whole + whole, ("follows",))])

    def test_a_state_file_with_one_bit_changed_in_any_of_its_parts(self):
        state = StateFile(self.files.state)
        places = {*range(StateFile.HEADER)}
        for _, at, length in state.sections:
            places |= {*range(at, at + 32), at + 32, at + 32 + length // 2, at + 31 + length}
        cases = []
        for place in sorted(places):
            content = bytearray(state.bytes)
            content[place] ^= 1 << place % 8
            cases.append((f"byte {place}", bytes(content), ()))
        self.damaged(cases)

    def test_a_state_file_whose_checksums_hold_and_whose_contents_do_not(self):
        def changed(offset, code, value, section=None, seal=True):
            state = StateFile(self.files.state)
            at = offset if section is None else state.find(section)[0] + offset
            struct.pack_into("<" + code, state.bytes, at, value)
            return state.sealed() if seal else bytes(state.bytes)

        vendor = StateFile(self.files.state).bytes[17]
        foreign = StateFile(self.files.state)
        name, number = (b"GenuineIntel", 1) if vendor != 1 else (b"AuthenticAMD", 2)
        foreign.bytes[17] = number
        for leaf, where in foreign.cpuid():
            if leaf in (0, 0x80000000):
                for place, part in ((16, name[:4]), (24, name[4:8]), (20, name[8:])):
                    foreign.bytes[where + place:where + place + 4] = part
        cases = [
            ("newer major", changed(8, "H", 2), ("newer", "2.0.0")), ("newer minor", changed(10, "H", 99), ("newer", "99")),
            ("older major", changed(8, "H", 0), ("too old",)),
            ("another architecture", changed(16, "B", 2), ("architecture",)),
            ("another vendor", changed(17, "B", number), ("processor",)), ("a foreign one", foreign.sealed(), ("vendor",)),
            ("more processors", changed(48, "I", 2), ("vCPU",)), ("more memory", changed(32, "Q", 1 << 40), ("memory",)),
            ("too many sections", changed(20, "I", 5000), ("sections",)),
            ("newer section", changed(12, "H", 9, b"vcpu"), ("vcpu",)),
            ("unknown section", changed(0, "8s", b"unknown", b"power"), ("power",)),
            ("another's name", changed(0, "8s", b"power", b"serial"), ("serial",)),
            ("not of whole pages", changed(32 + 4, "Q", 1, b"memory"), ("memory",)),
            ("no such bool", changed(32 + 4, "B", 7, b"machine"), ("machine",)),
        ]
        # A CPUID that promises what no processor has, every feature of leaf 7 among it: refused for what is missing.
        state = StateFile(self.files.state)
        for leaf, where in state.cpuid():
            if leaf == 1:
                struct.pack_into("<I", state.bytes, where + 20, 0xFFFFFFFF)
        cases.append(("features that are missing here", state.sealed(), (self.path("damaged"), "CPUID", "ECX")))
        self.damaged(cases)


class Handler:
    """A page fault handler: one thread that serves the pages of a memory file as they are missed."""

    COPY, EVENT_FAULT, EVENT_REMOVE = 0xC028AA03, 0x12, 0x15
    ZEROPAGE = 0xC020AA04

    def __init__(self, socket_path, memory_path, pace=0, most=1 << 62):
        """`pace`: seconds for each page; `most`: so many are served."""
        self.pace, self.most, self.refused = pace, most, threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(socket_path)
        self.listener.listen()
        with open(memory_path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.regions, self.served, self.connection, self.uffd = [], set(), None, -1
        self.ended = threading.Event()
        self.problem = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            if not select.select([self.listener], [], [], HANG)[0]:
                raise AssertionError("nobody connects")
            self.connection = self.listener.accept()[0]
            message, descriptors, _, _ = socket.recv_fds(self.connection, 65536, 4)
            self.regions = json.loads(message)
            [self.uffd] = descriptors
            buffer = ctypes.create_string_buffer(4096)
            while not self.ended.is_set():
                if select.select([self.uffd], [], [], 0.05)[0]:
                    try:
                        self.serve(os.read(self.uffd, 32), buffer)
                    except BlockingIOError:
                        pass
        except Exception as problem:  # pylint: disable=broad-except
            self.problem = problem

    def serve(self, event, buffer):
        if event[0] != self.EVENT_FAULT:
            return
        if len(self.served) >= self.most:
            self.refused.set()
            return
        address = struct.unpack_from("<Q", event, 16)[0] & ~4095
        for region in self.regions:
            offset = address - region["base_host_virt_addr"]
            if 0 <= offset < region["size"]:
                start = region["offset"] + offset
                buffer.raw = self.memory[start:start + 4096]
                time.sleep(self.pace)
                request = array.array("Q", [address, ctypes.addressof(buffer), 4096, 0, 0])
                try:
                    fcntl.ioctl(self.uffd, self.COPY, request)
                except (FileExistsError, ProcessLookupError):  # or the monitor has ended
                    pass
                self.served.add(start)
                return
        raise AssertionError(f"a fault at {address:#x}, in none of {self.regions}")

    def end(self):
        self.ended.set()
        self.thread.join()
        for each in (self.listener, self.connection):
            if each:
                each.close()
        if self.uffd >= 0:
            os.close(self.uffd)
        if self.problem:
            raise self.problem


class PageFaults(SnapshotCase):
    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest("only root may handle the kernel's page faults by userfaultfd")

    def load_from(self, handler_socket):
        return {**self.files.load(), "mem_backend": {"backend_type": "Uffd", "backend_path": handler_socket}}

    def handled(self, **more):
        path = self.path(f"uffd{next(self.numbers)}.sock")
        handler = Handler(path, self.files.memory)
        self.addCleanup(handler.end)
        vm = self.start()
        vm.do("PUT", "/snapshot/load", {**self.load_from(path), **more})
        return vm, handler

    def test_a_handler_brings_every_page(self):
        self.taken((b"a", b"holding\n"), vcpu_count=4)
        vm, handler = self.handled()
        self.assertEqual(vm.count(), 4)
        self.assertEqual(vm.ask(b"v", b"\n"), b"PASS\n")
        self.assertEqual(sum(region["size"] for region in handler.regions), 64 << 20)
        self.assertEqual([region["page_size"] for region in handler.regions], [4096])
        self.assertGreater(len(handler.served), 3)
        self.assertLess(len(handler.served), 4096)

    def test_a_snapshot_of_a_microvm_whose_pages_a_handler_brings_is_whole(self):
        self.taken()
        vm, _ = self.handled()
        self.assertEqual(vm.count(), 4)
        second = Files(self.folder, "second")
        vm.create(second)
        vm.kill()
        copy = self.restored(second)
        self.assertEqual(copy.count(), 5)
        copy.kill()
        self.files = second
        vm, _ = self.handled(resume_vm=False)
        third = Files(self.folder, "third")
        vm.do("PUT", "/snapshot/create", third.create())
        self.expect_same_memory(third, second, but_for=2)

    def test_a_handler_that_is_not_there_or_hangs_up_fails_the_load_only(self):
        self.taken().kill()
        vm = self.start()
        left = self.path("left.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(left)
        for path, said in ((self.path("none"), "No such file"), (left, "refused"), ("x" * 200, "a socket's path"), ("", "path")):
            vm.refused(("handler", said), "PUT", "/snapshot/load", self.load_from(path))
        vm.load(self.files)
        self.assertEqual(vm.count(), 4)

    def silent(self, after=0, **more):
        """A microVM that is being loaded, by a thread, from a handler that serves so many pages; that, its answers, and
        the handler, once it has been asked for a page that it does not serve."""
        handler = Handler(self.path(f"uffd{next(self.numbers)}.sock"), self.files.memory, most=after)
        self.addCleanup(handler.end)
        vm = self.start()
        thread, answers = vm.call_aside("PUT", "/snapshot/load", {**self.load_from(handler.listener.getsockname()), **more})
        self.assertTrue(handler.refused.wait(HANG))
        return vm, handler, thread, answers

    def test_a_handler_that_serves_no_page_fails_the_load_only_and_holds_up_other_calls_no_longer(self):
        self.taken().kill()
        vm, handler, thread, answers = self.silent()
        other = Connection(vm.socket)
        self.addCleanup(other.close)
        other.request("GET", "/")
        answer = other.getresponse()
        self.assertEqual((answer.status, json.loads(answer.read())["state"]), (200, "Not started"))
        thread.join()
        [(status, answer)] = answers
        self.assertEqual(status, 400, answer)
        for said in ("page fault handler", handler.listener.getsockname(), f"process {os.getpid()}", "10 s"):
            self.assertIn(said, answer["fault_message"])
        vm.load(self.files)
        self.assertEqual(vm.count(), 4)

    def test_a_handler_that_serves_no_page_does_not_keep_the_process_from_ending(self):
        self.taken().kill()
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                vm, _, thread, answers = self.silent()
                vm.process.send_signal(number)
                self.expect(vm.end(), 0)
                thread.join()
                self.assertIn("the monitor is to end", answers[0][1]["fault_message"])

    def test_a_guest_that_waits_for_a_page_does_not_keep_the_process_from_ending(self):
        self.taken().kill()
        vm, handler, thread, answers = self.silent(after=4)
        thread.join()
        self.assertEqual(answers, [(204, None)])
        self.assertEqual(len(handler.served), 4)
        vm.process.send_signal(signal.SIGTERM)
        self.assertIn(vm.end().code, (0, 1))  # a KVM before Linux 6.2 does not hear of it

    def test_a_handler_that_dies_fails_the_load_or_ends_its_guest(self):
        self.taken().kill()
        for most, number in ((0, signal.SIGSEGV), (4, None), (4, signal.SIGKILL)):
            with self.subTest(served=most, signal=number):
                path = self.path(f"uffd{next(self.numbers)}.sock")
                child = os.fork()
                if child == 0:
                    handler = Handler(path, self.files.memory, most=most)
                    handler.refused.wait(HANG)
                    if number:
                        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                        os.kill(os.getpid(), number)
                    os._exit(0)
                while not os.path.exists(path):
                    time.sleep(0.01)
                vm = self.start()
                thread, answers = vm.call_aside("PUT", "/snapshot/load", self.load_from(path))
                os.waitpid(child, 0)
                if most == 0:
                    thread.join()
                    self.assertEqual(answers[0][0], 400, answers)
                    self.assertIn(f"process {child} has ended", answers[0][1]["fault_message"])
                    vm.load(self.files)
                    self.assertEqual(vm.count(), 4)
                    vm.send(b"q")
                self.expect(vm.end(), 1 if most else 0, err=("closed its connection", "page fault handler"))
                thread.join()

    def test_a_handler_that_closes_its_connection_and_goes_on_serves(self):
        self.taken().kill()
        vm, handler = self.handled()
        handler.connection.shutdown(socket.SHUT_RDWR)
        for number in range(4, 8):
            self.assertEqual(vm.count(), number)
            time.sleep(1)
        vm.send(b"q")
        self.expect(vm.end(), 0, err="closed its connection")


class CutShort(SnapshotCase):
    """A memory file of which something is cut off while a microVM runs from it."""

    def test_it_is_not_saved_as_if_it_were_whole_and_the_former_snapshot_stays(self):
        self.taken().kill()
        other = Files(self.folder, "other")
        shutil.copy(self.files.memory, self.path("copy"))
        vm = self.start()
        backend = {"backend_type": "File", "backend_path": self.path("copy")}
        vm.do("PUT", "/snapshot/load", {**self.files.load(), "mem_backend": backend})
        self.assertEqual(vm.count(), 4)
        vm.create(other)
        contents = other.contents()
        for size in ((64 << 20) - 4096, 4096, 0):
            os.truncate(self.path("copy"), size)
            vm.refused((self.path("copy"), f"{size} bytes"), "PUT", "/snapshot/create", other.create())
            self.assertEqual(other.contents(), contents)
        self.assertEqual(self.restored(other).count(), 5)
        vm.resume()
        self.assertIn(vm.end().code, (1, 149))


class Interrupted(SnapshotCase):
    """What ends the monitor, or would, in the middle of a call."""

    def test_a_request_to_end_does_not_wait_for_memory_that_takes_long_to_write(self):
        if os.geteuid() != 0:
            self.skipTest("only root may handle the kernel's page faults by userfaultfd")
        vm = self.taken()
        contents = self.files.contents()
        vm.kill()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=signal_number):
                # A handler makes the memory as slow as one likes.
                handler = Handler(self.path(f"uffd{next(self.numbers)}.sock"), self.files.memory, pace=0.0003)
                self.addCleanup(handler.end)
                vm = self.start()
                backend = {"backend_type": "Uffd", "backend_path": handler.listener.getsockname()}
                vm.do("PUT", "/snapshot/load", {**self.files.load(resume=False), "mem_backend": backend})
                other = Files(self.folder, "other")
                thread, answers = vm.call_aside("PUT", "/snapshot/create", other.create())
                before = len(handler.served)
                while len(handler.served) < before + 100:
                    time.sleep(0.01)
                vm.process.send_signal(signal_number)
                self.assertEqual(vm.process.wait(HANG), 0)
                self.assertLess(len(handler.served), (64 << 20) // 4096)
                thread.join()
                [(status, answer)] = answers
                self.assertEqual(status, 400)
                self.assertIn("is ending", answer["fault_message"])
                self.assertFalse([name for name in os.listdir(self.folder) if "other" in name])
        self.assertEqual(self.files.contents(), contents)


if __name__ == "__main__":
    main(__doc__)
