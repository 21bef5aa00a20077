#!/usr/bin/python3
"""Clones of bare guests on this host's /dev/kvm, by a template and its socket.

  clone_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

The guest own_pattern.S writes a pattern of its VM generation id and looks for anybody else's. A host without a usable
/dev/kvm cannot run it: that is said, and the exit code is 77 (skipped).
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time

from bare_guests import HANG, Case, Connection, guest, main, mayfly, program


def wait_until(case, what, true):
    end = time.monotonic() + HANG
    while not true():
        if time.monotonic() > end:
            case.fail(f"in vain: {what}")
        time.sleep(0.01)


def is_alive(pid):
    """Whether it runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Template:
    def __init__(self, case, *arguments, state="state", memory="memory", socket_name="t.sock", before=(), inherit=(),
                 called_from=None):
        """`before` is what becomes the template, where that is not started as it is; in the folder `called_from` the path of
        its socket is relative."""
        self.case = case
        self.pool = int(arguments[arguments.index("--pool") + 1]) if "--pool" in arguments else 8
        self.socket = case.path(socket_name)
        named = os.path.relpath(self.socket, called_from) if called_from else self.socket
        self.log = case.path(f"template{len(os.listdir(case.folder))}.log")
        with open(self.log, "wb") as log:  # clones keep it open
            self.process = subprocess.Popen(
                [*before, program(), "template", case.path(state), case.path(memory), "--api-sock", named, *arguments],
                cwd=called_from, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, pass_fds=inherit)
        case.addCleanup(self.stop)
        wait_until(case, "the template listens", lambda: self.listens() or self.process.poll() is not None)
        case.assertIsNone(self.process.poll(), "the template has ended")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        out, _ = self.process.communicate(timeout=HANG)
        return self.process.returncode, out, read(self.log)

    def listens(self):
        with socket.socket(socket.AF_UNIX) as caller:
            return caller.connect_ex(self.socket) == 0

    def call(self, method, path, body=None):
        api = Connection(self.socket)
        try:
            api.request(method, path, body=body if body is None or isinstance(body, str) else json.dumps(body))
            answer = api.getresponse()
            return answer.status, json.loads(answer.read() or "null")
        finally:
            api.close()

    def clone(self, **body):
        status, answer = self.call("POST", "/clone", body)
        self.case.assertEqual(status, 200, answer)
        for each in answer["clones"]:
            self.case.addCleanup(kill, each["pid"])
        return answer["clones"]

    def refused(self, text, body, path="/clone", method="POST"):
        status, answer = self.call(method, path, body)
        self.case.assertEqual(status, 400, answer)
        self.case.assertIn(text, answer["fault_message"])
        wait_until(self.case, "nothing but the pool and those that lived is left",
                   lambda: len(self.children()) == self.pool + self.call("GET", "/")[1]["clones"])

    def ask(self, **body):
        """POST /clone without waiting for its answer, which the list has that is returned, once the thread has ended."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.call("POST", "/clone", body)))
        thread.start()
        self.case.addCleanup(thread.join)
        return thread, answers

    def alone(self):
        """That nothing is left but the pool."""
        wait_until(self.case, "nothing but the pool is left", lambda: len(self.children()) == self.pool)
        self.case.assertEqual(self.call("GET", "/clone"), (200, {"clones": []}))

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="utf-8") as file:
            return [int(pid) for pid in file.read().split() if is_alive(pid)]


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class CloneCase(Case):
    LAST_WORD = "kept"  # of a guest whose memory is its own

    def setUp(self):
        super().setUp()
        self.snapshot("own_pattern")

    def call(self, path, method, where, body):
        api = Connection(path)
        try:
            api.request(method, where, body=json.dumps(body))
            answer = api.getresponse()
            content = answer.read()
            self.assertIn(answer.status, (200, 204), content)
        finally:
            api.close()

    def save(self, api, state="state", memory="memory"):
        self.call(api, "PATCH", "/vm", {"state": "Paused"})
        self.call(api, "PUT", "/snapshot/create",
                  {"snapshot_path": self.path(state), "mem_file_path": self.path(memory)})

    def snapshot(self, name, *arguments):
        api = self.path("parent.sock")
        process = subprocess.Popen([program(), "run", "--kernel", guest(name), "--memory", "64M", "--api-sock", api, *arguments],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.assertEqual(process.stdout.readline(), b"ready\n")
            self.save(api)
        finally:
            process.terminate()
            process.communicate(timeout=HANG)

    def ids_of(self, clones):
        """The VM generation ids that the guests said, all different, once each has said its last word."""
        said = []
        for each in clones:
            path = self.path(each["id"] + ".log")
            wait_until(self, f"{each['id']} is done", lambda path=path: read(path).count("\n") == 2)
            self.assertRegex(read(path), rf"\A[0-9a-f]{{16}}\n{self.LAST_WORD}\n\Z")
            said.append(read(path)[:16])
        self.assertEqual(len(set(said)), len(clones))
        return said


class Births(CloneCase):
    def test_clones_diverge_and_never_see_each_others_writes(self):
        template = Template(self)
        clones = template.clone(count=5, serial_out_path=self.path("{id}.log"))
        self.assertEqual([each["id"] for each in clones], [f"template-{n}" for n in range(1, 6)])
        self.ids_of(clones)

    def test_a_hundred_are_born_and_all_differ(self):
        template = Template(self, "--no-clone-api")
        clones = template.clone(count=100, id_prefix="many", serial_out_path=self.path("{id}.log"))
        self.ids_of(clones)
        template.refused("that could resume one", {"resume_vm": False})
        self.assertEqual({each["api_sock"] for each in clones}, {None})
        self.assertEqual(template.call("GET", "/")[1]["clones"], 100)

    def test_a_clones_snapshot_is_cloned(self):
        first = Template(self)
        [parent] = first.clone(serial_out_path=self.path("{id}.log"))
        own = self.ids_of([parent])
        self.save(parent["api_sock"], "state2", "memory2")
        first.stop()
        os.unlink(self.path("template-1.log"))
        kill(parent["pid"])
        second = Template(self, "--name", "second", state="state2", memory="memory2")
        children = second.clone(count=3, serial_out_path=self.path("{id}.log"))
        self.assertEqual(len({*self.ids_of(children), *own}), 4)

    def test_a_clone_has_an_api_as_any_microvm(self):
        template = Template(self)
        [clone] = template.clone(id="web", api_sock=self.path("x-{id}.sock"), resume_vm=False)
        self.assertEqual(clone["api_sock"], self.path("x-web.sock"))
        api = Connection(clone["api_sock"])
        api.request("GET", "/")
        answer = json.loads(api.getresponse().read())
        api.close()
        self.assertEqual((answer["id"], answer["state"]), ("web", "Paused"))
        listed = {row["pid"]: row for row in json.loads(mayfly("ps", "--json").out)}[clone["pid"]]
        self.assertEqual((listed["name"], listed["state"], listed["mem_size_mib"]), ("web", "Paused", 64))
        self.assertEqual(mayfly("stop", "--now", str(clone["pid"])).code, 0)
        self.assertFalse(os.path.exists(clone["api_sock"]))

    def test_the_shell_command_prints_them(self):
        template = Template(self, "--name", f"shell{os.getpid()}")
        done = mayfly("clone", f"shell{os.getpid()}", "-n", "3", "--id-prefix", "sh", "--paused")
        self.assertEqual(done.code, 0, done)
        lines = [line.split() for line in done.out.decode().splitlines()]
        for pid, _, _ in lines:
            self.addCleanup(kill, int(pid))
        self.assertEqual([line[1] for line in lines], ["sh-1", "sh-2", "sh-3"])
        self.assertEqual([line[2] for line in lines], [self.path(f"sh-{n}.sock") for n in (1, 2, 3)])
        self.assertEqual(template.call("GET", "/")[1]["clones"], 3)
        done = mayfly("clone", self.path("nobody.sock"))
        self.assertEqual(done.code, 1, done)
        self.assertIn("nobody.sock", done.err)

    def test_a_replaced_snapshot_file_changes_nothing(self):
        template = Template(self, "--pool", "1")
        for name in ("state", "memory"):
            with open(self.path("other"), "wb") as file:
                file.write(b"another")
            os.rename(self.path("other"), self.path(name))
        self.ids_of(template.clone(count=4, serial_out_path=self.path("{id}.log")))


class Endings(CloneCase):
    def test_the_templates_end_is_not_its_clones(self):
        template = Template(self)
        [clone] = template.clone(serial_out_path=self.path("{id}.log"))
        waiting = [pid for pid in template.children() if pid != clone["pid"]]
        self.assertTrue(waiting)
        self.assertEqual(template.stop(), (0, b"", ""))
        self.assertFalse(os.path.exists(template.socket))
        wait_until(self, "the pool has ended", lambda: not any(map(is_alive, waiting)))
        self.ids_of([clone])
        self.assertTrue(is_alive(clone["pid"]))

    def test_the_shell_lists_a_template_and_ends_it(self):
        name = "t" + os.path.basename(self.folder).replace("_", "-")
        template = Template(self, "--name", name)
        clone = template.clone()[0]

        def rows():
            return {row["pid"]: row for row in json.loads(mayfly("ps", "--json").out)}

        self.assertEqual(rows()[template.process.pid],
                         {"name": name, "pid": template.process.pid, "state": "Template", "vcpu_count": None,
                          "mem_size_mib": None, "socket": template.socket, "problem": None})
        self.assertIn(name, mayfly("ps", "--quiet").out.decode().split())
        self.assertIn(clone["id"], mayfly("ps", "--quiet").out.decode().split())
        templates = mayfly("ps", "--quiet", "--templates").out.decode().split()
        self.assertIn(name, templates)
        self.assertNotIn(clone["id"], templates)
        other = Template(self, "--name", name, socket_name="other.sock")
        self.expect(mayfly("clone", name), 1, b"", ("several templates", template.socket, other.socket))
        numbers = mayfly("ps", "--quiet", "--templates").out.decode().split()
        self.assertIn(str(other.process.pid), numbers)  # as a command takes it
        # Which it is found by: the name of its first clone is taken by one of the other template's.
        self.expect(mayfly("clone", str(other.process.pid)), 1, b"", (f"template {other.process.pid}", f"{name}-1.sock"))
        other.stop()
        for command in ("pause", "resume", "metrics", "config"):
            self.expect(mayfly(command, name), 1, b"", (f"{name} (template, process {template.process.pid})", "no guest"))
        stopped = mayfly("stop", name)
        self.expect(stopped, 0, b"")
        self.assertEqual(stopped.err, "")
        self.assertEqual(template.process.wait(HANG), 0)
        self.assertEqual(rows()[clone["pid"]]["state"], "Running")

    def test_the_shell_names_a_clone_s_socket_from_where_it_is_called(self):
        name = "t" + os.path.basename(self.folder).replace("_", "-")
        template = Template(self, "--name", name, called_from=self.folder)
        for called, cwd in ((name, "/"), (template.socket, "/"), ("./t.sock", self.folder)):
            born = mayfly("clone", called, cwd=cwd)
            self.expect(born, 0)
            pid, _, path = born.out.decode().split()
            self.addCleanup(kill, int(pid))
            self.assertEqual(os.path.dirname(os.path.join(cwd, path)).rstrip("/."), self.folder)
            api = Connection(os.path.join(cwd, path))
            api.request("GET", "/")
            self.assertEqual(api.getresponse().status, 200)
            api.close()
        template.stop()

    def test_a_fork_that_is_left_of_a_template_is_not_taken_for_it(self):
        name = "t" + os.path.basename(self.folder).replace("_", "-")
        template = Template(self, "--name", name)
        wait_until(self, "the pool is full", lambda: template.call("GET", "/")[1]["ready"] == template.pool)
        fork = template.children()[0]
        self.addCleanup(kill, fork)
        os.kill(fork, signal.SIGSTOP)
        template.process.kill()
        template.process.wait()
        self.assertEqual(read(f"/proc/{fork}/cmdline"), f"mayfly\0[fork of template {name}]\0")
        self.assertNotIn(fork, {row["pid"] for row in json.loads(mayfly("ps", "--json").out)})

    def test_what_a_template_was_started_with_is_no_clones(self):
        with open(self.write("secret", "x"), "rb") as file:
            os.set_inheritable(file.fileno(), True)
            template = Template(self, inherit=(file.fileno(),))
            clone = template.clone()[0]
            for pid in (template.process.pid, clone["pid"]):
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                self.assertNotIn(self.path("secret"), links)

    def test_a_killed_template_takes_its_pool_along(self):
        template = Template(self)
        [clone] = template.clone()
        waiting = [pid for pid in template.children() if pid != clone["pid"]]
        template.process.kill()
        wait_until(self, "the pool has ended", lambda: not any(map(is_alive, waiting)))
        self.assertTrue(is_alive(clone["pid"]))

    def test_a_killed_clone_is_reaped_and_its_id_is_free(self):
        template = Template(self, "--pool", "2")
        [clone] = template.clone(id="web")
        kill(clone["pid"])
        wait_until(self, "it is gone, also as a zombie", lambda: not os.path.exists(f"/proc/{clone['pid']}"))
        os.unlink(clone["api_sock"])  # a killed monitor leaves it
        template.clone(id="web")

    def test_killed_places_are_replaced(self):
        template = Template(self, "--pool", "3")
        killed = set(template.children())
        for pid in killed:
            kill(pid)
        wait_until(self, "there are others", lambda: len(set(template.children()) - killed) == 3)
        self.ids_of(template.clone(count=5, serial_out_path=self.path("{id}.log")))

    def test_sigterm_ends_a_clone_in_good_order(self):
        template = Template(self)
        [clone] = template.clone()
        os.kill(clone["pid"], signal.SIGTERM)
        wait_until(self, "it has ended", lambda: not os.path.exists(f"/proc/{clone['pid']}"))
        self.assertFalse(os.path.exists(clone["api_sock"]))


class Refusals(CloneCase):
    def test_hostile_requests_are_refused_and_leave_nothing(self):
        template = Template(self, "--pool", "2")
        template.clone(id="taken", resume_vm=False)
        for text, body in (
                ('the id "taken" is taken', {"id": "taken"}),
                ("serves a socket there", {"id": "other", "api_sock": self.path("taken.sock")}),
                ("no network interface", {"network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap0"}]}),
                ("no drive", {"drive_overrides": [{"drive_id": "root", "path_on_host": "/x"}]}),
                ("serial output", {"serial_out_path": self.path("no/such/folder")}),
                ("take a shorter id_prefix", {"id_prefix": "a" * 64}),
                ("count", {"count": 1000000}),
                ("snapshot_path", {"snapshot_path": self.path("state")}),
                ("the body", "{"),
                ("the body", "[" * 1000)):
            with self.subTest(body=body):
                template.refused(text, body)
        template.refused("there is no /machine-config", {}, path="/machine-config", method="PUT")
        template.refused("PUT is not possible on /clone", {}, method="PUT")
        self.assertEqual(template.call("GET", "/")[1]["clones"], 1)
        template.clone()

    def test_a_clone_has_no_socket_of_the_templates(self):
        def sockets(pid):
            names = set()
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # the template closes a channel meanwhile
                    names.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
            return {name for name in names if name.startswith("socket:")}
        template = Template(self)
        clones = template.clone(count=3)
        of_template = sockets(template.process.pid)
        self.assertTrue(of_template)
        for clone in clones:
            self.assertEqual(sockets(clone["pid"]) & of_template, set())

    def test_the_files_of_the_snapshot_are_no_output_and_stay_as_they_are(self):
        template = Template(self)
        for name in ("memory", "state"):
            template.refused("is a file of the snapshot", {"serial_out_path": self.path(name)})
        template.clone()

    def test_where_no_place_can_be_made_none_is_made_for_ever_and_the_cause_is_told(self):
        template = Template(self, "--pool", "4")
        os.truncate(self.path("memory"), 4096)
        for pid in template.children():
            kill(pid)
        wait_until(self, "it gives up", lambda: "no more are made ahead" in read(template.log))
        wait_until(self, "the last ones have ended", lambda: template.call("GET", "/")[1]["ready"] == 0)
        status, answer = template.call("POST", "/clone", {})
        self.assertEqual(status, 400)
        self.assertIn("memory", answer["fault_message"])

    def test_a_refused_call_leaves_no_files_of_its_own_and_all_others(self):
        template = Template(self)
        self.write("old-2.log", "what was there\n")
        before = sorted(os.listdir(self.folder))
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(self.path("old-4.sock"))
            template.refused("old-4.sock", {"count": 5, "id_prefix": "old", "serial_out_path": self.path("old-{n}.log")})
        os.unlink(self.path("old-4.sock"))
        self.assertEqual(sorted(os.listdir(self.folder)), before)
        self.assertTrue(read(self.path("old-2.log")).startswith("what was there\n"))
        template.refused("no network interface", {"id": "x", "serial_out_path": self.path("x.log"),
                                                  "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap0"}]})
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_all_are_born_or_none(self):
        template = Template(self)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(self.path("b-3.sock"))
            template.refused("b-3.sock", {"count": 5, "id_prefix": "b"})
        self.assertEqual(template.call("GET", "/")[1]["clones"], 0)
        for number in (1, 2, 4, 5):
            self.assertFalse(os.path.exists(self.path(f"b-{number}.sock")), number)

    def test_what_is_no_snapshot_is_no_template(self):
        with open(self.path("junk"), "wb") as file:
            file.write(b"junk" * 100)
        for state, memory, text in (("junk", "memory", "junk"), ("none", "memory", "No such file"), ("state", "junk", "junk")):
            done = mayfly("template", self.path(state), self.path(memory), "--api-sock", self.path("x.sock"))
            self.assertEqual(done.code, 153, done)
            self.assertIn(text, done.err)
            self.assertFalse(os.path.exists(self.path("x.sock")))


class Waiting(CloneCase):
    """A process of the pool that is stopped is one that hangs."""

    def stopped(self, count=1):
        template = Template(self, "--pool", str(count))
        wait_until(self, "the pool is there", lambda: template.call("GET", "/")[1]["ready"] == count)
        children = template.children()
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
            self.addCleanup(kill, pid)  # it does not see the template's end
        return template, children

    def test_a_birth_that_hangs_holds_up_nobody(self):
        template, [hangs] = self.stopped()
        thread, answers = template.ask(id="slow")
        wait_until(self, "it has its order", lambda: template.call("GET", "/")[1]["ready"] == 0)
        self.assertEqual(template.call("GET", "/")[1]["clones"], 0)
        [fast] = template.clone(id="fast")
        self.assertEqual(template.call("POST", "/clone", {"id": "slow"})[0], 400)
        self.assertEqual(template.call("GET", "/clone"), (200, {"clones": [fast]}))
        os.kill(hangs, signal.SIGCONT)
        thread.join()
        [(status, answer)] = answers
        self.assertEqual((status, answer["clones"][0]["pid"]), (200, hangs))
        self.addCleanup(kill, hangs)
        self.assertEqual(len(template.call("GET", "/clone")[1]["clones"]), 2)

    def test_births_that_hang_for_good_are_refused_in_the_end_and_leave_nothing(self):
        template, hang = self.stopped(count=6)
        time.sleep(2)  # a template that has had nothing to do for a while looks at the time again
        template.refused("does not answer", {"count": 4, "serial_out_path": self.path("{id}.log")})
        self.assertFalse(set(map(is_alive, hang[:4])) - {False})
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith("template-")])

    def test_an_order_that_is_too_long_is_refused_and_costs_no_process(self):
        template = Template(self, "--pool", "2")
        wait_until(self, "the pool is there", lambda: template.call("GET", "/")[1]["ready"] == 2)
        children = template.children()
        template.refused("bytes", {"id": "x" * 64, "serial_out_path": "{id}" * 6000})
        self.assertEqual(template.children(), children)
        template.clone(id="short")

    def test_sigterm_is_heard_while_a_birth_hangs(self):
        template, [hangs] = self.stopped()
        thread, answers = template.ask(id="slow", serial_out_path=self.path("slow.log"))
        wait_until(self, "it has its order", lambda: template.call("GET", "/")[1]["ready"] == 0)
        self.assertEqual(template.stop()[0], 0)
        thread.join()
        [(status, answer)] = answers
        self.assertEqual((status, answer["fault_message"]), (503, "This server is ending."))
        self.assertFalse(is_alive(hangs))
        self.assertFalse(os.path.exists(self.path("slow.log")))

    def test_who_hangs_up_leaves_no_clones(self):
        template, [hangs] = self.stopped()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(template.socket)
            body = json.dumps({"count": 3, "id_prefix": "lost", "serial_out_path": self.path("{id}.log")})
            caller.sendall(f"POST /clone HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_until(self, "it has its order", lambda: template.call("GET", "/")[1]["ready"] == 0)
        os.kill(hangs, signal.SIGCONT)
        wait_until(self, "its files are gone", lambda: not any(name.startswith("lost") for name in os.listdir(self.folder)))
        template.alone()
        template.clone(id="lost-1")

    def test_who_closes_its_side_only_gets_its_answer(self):
        template = Template(self)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(HANG)
            caller.connect(template.socket)
            caller.sendall(b"POST /clone HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            caller.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: caller.recv(4096), b""))
        [clone] = json.loads(answer.partition(b"\r\n\r\n")[2])["clones"]
        self.addCleanup(kill, clone["pid"])
        self.assertEqual(template.call("GET", "/clone")[1]["clones"], [clone])


class FileServers(CloneCase):
    """In the template's mount namespace the folder "server" is a FUSE mount whose server, this test, answers nothing but the
    kernel's greeting."""

    MOUNT = 'mount -i -t fuse -o fd="$1",rootmode=40000,user_id=0,group_id=0 none "$2" && shift 2 && exec "$@"'

    def template(self, *arguments):
        if os.geteuid() != 0:
            self.skipTest("only root mounts")
        if not os.path.exists("/dev/fuse"):
            self.skipTest("this host has no FUSE")
        os.mkdir(self.path("server"))
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        self.addCleanup(self.end_server)
        template = Template(self, *arguments, inherit=(self.fuse,), before=(
            "unshare", "--mount", "--propagation", "private",
            "sh", "-c", self.MOUNT, "sh", str(self.fuse), self.path("server")))
        self.addCleanup(self.end_server)  # before the template is waited for
        self.answer_greeting()
        return template

    def answer_greeting(self):
        """FUSE_INIT (linux/fuse.h), without which the kernel sends no other request."""
        _, opcode, unique = struct.unpack_from("<IIQ", os.read(self.fuse, 1 << 16))
        self.assertEqual(opcode, 26)
        answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
        os.write(self.fuse, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)

    def end_server(self):
        """Whoever waits for it gets an error."""
        if self.fuse is not None:
            os.close(self.fuse)
            self.fuse = None

    def await_request(self):
        """Which nobody reads: who has sent it waits."""
        self.assertTrue(select.select([self.fuse], [], [], HANG)[0], "no process asks the server for anything")

    def hanging_birth(self, template):
        thread, answers = template.ask(id="slow", serial_out_path=self.path("server/slow.log"))
        self.await_request()
        return thread, answers

    def hanging_removal(self):
        """A call that has failed when its first clone's file has moved to the server."""
        template = self.template("--pool", "2")
        wait_until(self, "the pool is there", lambda: template.call("GET", "/")[1]["ready"] == 2)
        second = template.children()[1]
        os.kill(second, signal.SIGSTOP)
        os.mkdir(self.path("here"))
        os.symlink(self.path("here"), self.path("out"))
        os.symlink(self.path("server"), self.path("moved"))
        thread, answers = template.ask(count=2, id_prefix="slow", serial_out_path=self.path("out/{id}.log"))
        wait_until(self, "the first has its file", lambda: os.path.exists(self.path("here/slow-1.log")))
        os.rename(self.path("moved"), self.path("out"))
        kill(second)
        self.await_request()
        return template, thread, answers

    def test_one_that_a_birth_waits_for_holds_up_nobody_else(self):
        template = self.template()
        thread, answers = self.hanging_birth(template)
        [fast] = template.clone(id="fast", serial_out_path=self.path("fast.log"))
        self.ids_of([fast])
        self.end_server()
        thread.join()
        [(status, answer)] = answers
        self.assertEqual(status, 400)
        self.assertIn("slow.log", answer["fault_message"])
        self.assertEqual(template.call("GET", "/clone"), (200, {"clones": [fast]}))

    def test_one_that_a_birth_waits_for_does_not_hold_up_the_end(self):
        template = self.template()
        thread, answers = self.hanging_birth(template)
        self.assertEqual(template.stop()[0], 0)
        thread.join()
        self.assertEqual([status for status, _ in answers], [503])

    def test_one_that_a_removal_waits_for_holds_up_nobody_else(self):
        template, thread, answers = self.hanging_removal()
        [fast] = template.clone(id="fast", serial_out_path=self.path("fast.log"))
        self.ids_of([fast])
        status, answer = template.call("POST", "/clone", {"serial_out_path": self.path("out/slow-1.log")})
        self.assertEqual(status, 400)
        self.assertIn("is being removed", answer["fault_message"])
        self.end_server()
        thread.join()
        self.assertEqual([status for status, _ in answers], [400])
        self.assertIn("slow-1.log: may be left", read(template.log))  # who removes it could not

    def test_one_that_a_removal_waits_for_does_not_hold_up_the_end(self):
        template, thread, answers = self.hanging_removal()
        self.assertEqual(template.stop()[0], 0)
        thread.join()
        self.assertEqual([status for status, _ in answers], [503])
        self.assertIn("slow-1.log: may be left", read(template.log))


class Devices(CloneCase):
    """The guest devices.c writes to its disk and sends a frame once it is a clone."""

    DISK = 1 << 20
    LAST_WORD = "g"  # of one that has read back what it wrote, and nothing else

    def setUp(self):
        Case.setUp(self)
        with open(self.path("disk"), "wb") as file:
            file.truncate(self.DISK)
        os.mkdir(self.path("own"))

    def taken(self, letters, *before, network=None):
        api = self.path("parent.sock")
        config = {"boot-source": {"kernel_image_path": guest("devices")}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
                  "drives": [{"drive_id": "disk", "path_on_host": self.path("disk"), "is_root_device": True}],
                  "network-interfaces": [network] if network else []}
        process = subprocess.Popen([*before, program(), "--api-sock", api, "--config-file", self.write("vm.json", json.dumps(config))],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            for letter in letters:
                process.stdin.write(letter)
                process.stdin.flush()
                self.assertEqual(process.stdout.readline(), letter + b"\n")
            process.stdin.write(b"g")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), b"waiting\n")
            self.save(api)
        finally:
            process.terminate()
            process.communicate(timeout=HANG)

    def blocks(self, name):
        """The ids of those whose block is in the file."""
        with open(self.path(name), "rb") as file:
            content = file.read()
        found = set()
        for at in range(0, len(content) - 4095, 512):
            words = struct.unpack_from("<512Q", content, at)
            if words[0] and all(word == (words[0] + index) % (1 << 64) for index, word in enumerate(words)):
                found.add(f"{words[0]:016x}")
        return found

    def test_each_has_an_overlay_of_its_own_and_no_other_sees_what_it_writes(self):
        self.taken([b"b", b"r"])
        template = Template(self)
        clones = template.clone(count=6, serial_out_path=self.path("{id}.log"), drive_overrides=[
            {"drive_id": "disk", "path_on_host": self.path("disk"), "overlay": self.path("{id}.overlay")}])
        for clone, own in zip(clones, self.ids_of(clones)):
            self.assertEqual(self.blocks(clone["id"] + ".overlay"), {own})
        with open(self.path("disk"), "rb") as file:
            self.assertEqual(file.read(), bytes(self.DISK))
        # In memory as well.
        self.ids_of(template.clone(count=3, id_prefix="memory", serial_out_path=self.path("{id}.log"), drive_overrides=[
            {"drive_id": "disk", "path_on_host": self.path("disk"), "overlay": "memory"}]))

    def by_shell(self, template, *arguments):
        """Clones that `mayfly clone` makes, called in the test's folder, which is not the template's."""
        done = mayfly("clone", template.socket, *arguments, cwd=self.folder)
        self.expect(done, 0)
        clones = [dict(zip(("pid", "id"), line.split())) for line in done.out.decode().splitlines()]
        for clone in clones:
            self.addCleanup(kill, int(clone["pid"]))
        return clones

    def test_the_shell_gives_each_a_disk_of_its_own_by_paths_of_its_own_folder(self):
        self.taken([b"b", b"r"])
        template = Template(self)
        clones = self.by_shell(template, "-n", "3", "--serial", "{id}.log", "--disk", "disk=disk:overlay=own/{id}.overlay")
        for clone, own in zip(clones, self.ids_of(clones)):
            self.assertEqual(self.blocks(f"own/{clone['id']}.overlay"), {own})
        self.expect(mayfly("clone", template.socket, "--disk", "none=disk"), 1, b"", ("none",))

    def test_a_refused_call_leaves_no_overlays(self):
        self.taken([b"b"])
        template = Template(self)
        self.write("no-2.overlay", "no overlay\n")
        template.refused("no-2.overlay", {"count": 3, "id_prefix": "no", "drive_overrides": [
            {"drive_id": "disk", "path_on_host": self.path("disk"), "overlay": self.path("no-{n}.overlay")}]})
        self.assertEqual(sorted(name for name in os.listdir(self.folder) if name.startswith("no-")), ["no-2.overlay"])
        self.assertEqual(read(self.path("no-2.overlay")), "no overlay\n")

    def test_each_has_a_tap_of_its_own(self):
        if os.geteuid() != 0:
            self.skipTest("only root makes taps")
        space = f"mayfly-clones-{os.getpid()}"

        def ip(*arguments):
            return subprocess.run(["ip", *arguments], capture_output=True, check=True).stdout
        try:
            ip("netns", "add", space)
        except (OSError, subprocess.CalledProcessError) as problem:
            self.skipTest(f"this host makes no network namespaces: {problem}")
        self.addCleanup(ip, "netns", "del", space)
        for number in range(5):
            ip("-n", space, "tuntap", "add", "dev", f"tap{number}", "mode", "tap")
            ip("-n", space, "link", "set", f"tap{number}", "up")
        inside = ("ip", "netns", "exec", space)
        self.taken([b"b", b"n"], *inside, network={"iface_id": "net", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01"})
        template = Template(self, before=inside)
        own = {"serial_out_path": self.path("{id}.log"), "drive_overrides": [
            {"drive_id": "disk", "path_on_host": self.path("disk"), "overlay": "memory"}]}
        taps = {"network_overrides": [{"iface_id": "net", "host_dev_name": "tap{n}"}]}
        clones = template.clone(count=3, **own, **taps)
        self.ids_of(clones)

        def received():
            links = json.loads(ip("-n", space, "-json", "-statistics", "link"))
            return [link["stats64"]["rx"]["packets"] for number in range(5) for link in links if link["ifname"] == f"tap{number}"]
        wait_until(self, "each has sent a frame", lambda: received() == [0, 1, 1, 1, 0])
        number = len(clones) + 1
        [shells] = self.by_shell(template, "--serial", "{id}.log", "--disk", "disk=disk:overlay", "--tap", "net=tap{n}",
                                 "--mac", "net=06:00:ac:{n}", "--id-prefix", "shells")
        self.ids_of([shells])
        wait_until(self, "it has sent a frame", lambda: received() == [0, 1, 1, 1, 1])
        self.assertEqual(shells["id"], f"shells-{number}")
        api = Connection(self.path(f"shells-{number}.sock"))
        api.request("GET", "/vm/config")
        [interface] = json.load(api.getresponse())["network-interfaces"]
        api.close()
        self.assertEqual((interface["host_dev_name"], interface["guest_mac"]), ("tap4", "06:00:ac:00:00:04"))
        # Two at one tap, or where none is: the first in line is ended as well.
        template.refused("tap1", {**own, "network_overrides": [{"iface_id": "net", "host_dev_name": "tap1"}]})
        template.refused("none", {"count": 2, **own, "network_overrides": [{"iface_id": "net", "host_dev_name": "none"}]})
        self.assertEqual(len(template.call("GET", "/clone")[1]["clones"]), 4)


if __name__ == "__main__":
    main(__doc__)
