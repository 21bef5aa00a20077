#!/usr/bin/python3
"""The commands for microVMs that run already, with bare guests on this host's /dev/kvm, and with stand-ins of a
monitor that hang, lie or do not listen.

  shell_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

A host without a usable /dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import json
import os
import select
import subprocess
import sys
import uuid

from bare_guests import HANG, Case, Running, guest, main, mayfly, program

# A process that /proc shows as `mayfly run ...`; what it does is the variable BEHAVIOUR.
STAND_IN = r"""
import json, os, signal, socket, sys
with open("/proc/self/comm", "w") as file:
    file.write("mayfly")
behaviour = os.environ["BEHAVIOUR"]
if "--api-sock" in sys.argv and behaviour != "poses":
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[sys.argv.index("--api-sock") + 1])
    server.listen(8)
print("ready", flush=True)
if behaviour in ("hangs", "poses"):
    signal.pause()
while True:
    client = server.accept()[0]
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, body = data.split(b"\r\n\r\n", 1)
    length = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while length and len(body) < length[0]:
        body += client.recv(65536)
    path = head.split()[1]
    own = sys.argv[sys.argv.index("--id") + 1] if "--id" in sys.argv else "anonymous-instance"
    answer = {b"/": {"id": "other" if behaviour == "is another" else own, "state": "\x1b[2JRun\nning" if behaviour == "lies" else "Running"},
              b"/machine-config": {"vcpu_count": 3, "mem_size_mib": 96}}.get(path)
    text = "# HELP a b\na 1\n" if path == b"/metrics" else json.dumps(answer)
    status = "204 No Content\r\n\r\n" if path == b"/actions" else f"200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}"
    client.sendall(b"HTTP/1.1 " + status.encode())
    client.close()
    if path == b"/actions" and b"SendCtrlAltDel" in body and behaviour == "obeys":
        sys.exit()
"""


class ShellCase(Case):
    def setUp(self):
        super().setUp()
        # Others may run microVMs of this user meanwhile.
        self.id = "t" + uuid.uuid4().hex

    def keep(self, process):
        def end():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        self.addCleanup(end)
        return process

    def boot(self, *arguments):
        running = Running("run", "--kernel", guest("spin"), "--memory", "32M", *arguments)
        self.keep(running.process)
        return running.until(b"spinning\n")

    def boot_with_api(self, *arguments):
        return self.boot("--id", self.id, "--api-sock", self.path("api.sock"), *arguments)

    def waiting(self):
        """A monitor that serves its control API and whose microVM was not started."""
        process = self.keep(subprocess.Popen([program(), "--id", self.id, "--api-sock", self.path("s")],
                                             stderr=subprocess.PIPE, stdin=subprocess.DEVNULL))
        self.assertTrue(select.select([process.stderr], [], [], HANG)[0], "it says nothing")
        self.assertIn(b"waiting for calls", process.stderr.readline())
        return process

    def stand_in(self, behaviour, *arguments):
        self.write("run", STAND_IN)
        process = subprocess.Popen(["mayfly", "run", *arguments], executable=sys.executable, cwd=self.folder,
                                   env=dict(os.environ, BEHAVIOUR=behaviour), stdout=subprocess.PIPE)
        self.keep(process)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def rows(self):
        result = mayfly("ps", "--json")
        self.expect(result, 0)
        self.assertEqual(result.err, "")
        return {row["pid"]: row for row in json.loads(result.out)}

    def line(self, pid):
        """Of the table, split into its columns."""
        result = mayfly("ps")
        self.expect(result, 0)
        lines = [line.split() for line in result.out.decode("ascii").splitlines()]
        self.assertEqual(lines[0], ["NAME", "PID", "STATE", "VCPUS", "MEMORY", "SOCKET"])
        return next((line for line in lines if line[1] == str(pid)), None)


class Listing(ShellCase):
    def test_a_microvm_is_listed_with_what_it_tells_of_itself_until_it_ends(self):
        running = self.boot_with_api("--cpus", "2")
        pid, path = running.process.pid, self.path("api.sock")
        self.assertEqual(self.line(pid), [self.id, str(pid), "Running", "2", "32M", path])
        self.assertEqual(self.rows()[pid], {"name": self.id, "pid": pid, "state": "Running", "vcpu_count": 2,
                                            "mem_size_mib": 32, "socket": path, "problem": None})
        self.assertIn(self.id, mayfly("ps", "--quiet").out.decode().split())
        running.process.terminate()
        running.process.wait(HANG)
        self.assertNotIn(pid, self.rows())

    def test_one_without_a_control_api_is_listed_with_what_its_command_line_tells(self):
        pid = self.boot("--id", self.id, "--cpus=2").process.pid
        self.assertEqual(self.line(pid), [self.id, str(pid), "-", "2", "32M", "-"])

    def test_one_that_waits_for_its_start_is_listed(self):
        process = self.waiting()
        self.assertEqual(self.rows()[process.pid]["state"], "Not started")

    def test_one_that_hangs_is_listed_as_that_and_the_others_all_the_same(self):
        pids = [self.stand_in("hangs", "--id", self.id, "--api-sock", f"s{index}").pid for index in range(3)]
        running = self.boot("--api-sock", self.path("api.sock"))
        rows = self.rows()
        for index, pid in enumerate(pids):
            self.assertEqual(rows[pid]["socket"], self.path(f"s{index}"))
            self.assertIsNone(rows[pid]["state"])
            self.assertIn("did not answer in time", rows[pid]["problem"])
        self.assertEqual(rows[running.process.pid]["state"], "Running")
        self.assertEqual(self.line(pids[0])[2], "?")

    def test_one_that_names_anothers_socket_is_not_taken_for_it(self):
        real = self.boot_with_api().process.pid
        poser = self.stand_in("poses", "--id", "p" + self.id, "--api-sock", self.path("api.sock")).pid
        rows = self.rows()
        self.assertEqual(rows[real]["state"], "Running")
        self.assertEqual((rows[poser]["state"], rows[poser]["problem"]), (None, f"it is the socket of process {real}"))
        self.expect(mayfly("pause", "p" + self.id), 1, b"", f"it is the socket of process {real}")
        self.assertEqual(self.rows()[real]["state"], "Running")
        self.expect(mayfly("stop", "p" + self.id), 0, b"", f"it is the socket of process {real}; ending it by SIGTERM")
        self.assertNotIn(poser, self.rows())
        self.assertEqual(self.rows()[real]["state"], "Running")

    def test_one_that_answers_by_another_id_is_not_believed(self):
        pid = self.stand_in("is another", "--id", self.id, "--api-sock", "s").pid
        row = self.rows()[pid]
        self.assertEqual((row["state"], row["problem"]), (None, 'it answers as "other"'))

    def test_what_a_process_says_of_itself_reaches_no_terminal_unescaped(self):
        pid = self.stand_in("lies", "--id", self.id, "--api-sock", "\x1b]0;s\x07\n").pid
        self.assertEqual(self.line(pid), [self.id, str(pid), "\\x1b[2JRun\\nning", "3", "96M",
                                          self.path("\\x1b]0;s\\x07\\n")])
        self.assertEqual(self.rows()[pid]["state"], "\x1b[2JRun\nning")
        self.assertNotIn(b"\x1b", mayfly("ps", "--json").out)


class Commands(ShellCase):
    def test_a_microvm_is_paused_and_resumed_by_its_name_or_its_process(self):
        pid = self.boot_with_api().process.pid
        for command, name, state in (("pause", self.id, "Paused"), ("pause", str(pid), "Paused"),
                                     ("resume", str(pid), "Running"), ("resume", self.id, "Running")):
            self.expect(mayfly(command, name), 0, b"")
            self.assertEqual(self.rows()[pid]["state"], state)

    def test_the_configuration_boots_the_same_microvm(self):
        running = self.boot_with_api("--cpus", "2")
        result = mayfly("config", self.id)
        self.expect(result, 0)
        self.assertGreater(result.out.count(b"\n"), 10)
        running.process.terminate()
        running.process.wait(HANG)
        config = self.write("again.json", result.out.decode())
        again = Running("--config-file", config, "--id", self.id, "--api-sock", self.path("again.sock"))
        self.keep(again.process)
        again.until(b"spinning\n")
        self.assertEqual(mayfly("config", self.id).out, result.out)

    def test_metrics_are_printed_as_they_come(self):
        self.stand_in("obeys", "--id", self.id, "--api-sock", "s")
        self.expect(mayfly("metrics", self.id), 0, b"# HELP a b\na 1\n")

    def test_a_name_that_is_nobodys_or_several_is_an_error_that_lists_who_there_is(self):
        first, second = (self.boot("--id", self.id).process.pid for _ in range(2))
        for command in ("pause", "resume", "stop", "metrics", "config"):
            self.expect(mayfly(command, self.id), 1, b"",
                        ("several microVMs", f"{self.id} (process {first})", f"{self.id} (process {second})"))
            self.expect(mayfly(command, "no-" + self.id), 1, b"", ("there is no microVM", f"(process {second})"))
            self.expect(mayfly(command), 153, b"", "NAME")
        self.assertIn(str(first), mayfly("ps", "--quiet").out.decode().split())

    def test_one_without_a_control_api_cannot_be_asked(self):
        self.boot("--id", self.id)
        for command in ("pause", "resume", "metrics", "config"):
            self.expect(mayfly(command, self.id), 1, b"", ("has no control API", "--api-sock"))


class Stopping(ShellCase):
    def test_a_guest_is_asked_to_shut_down_by_the_machine(self):
        running = Running("run", "--kernel", guest("shutdown_request"), "--id", self.id, "--api-sock", self.path("s"),
                          stdin=subprocess.PIPE)
        self.keep(running.process)
        running.until(b"closed\n").send(b"x")
        running.until(b"open\n")
        self.assertEqual(mayfly("stop", self.id).err, "")
        self.expect(running.end(), 0, b"closed\nopen\nPASS\n")

    def test_a_monitor_that_ends_upon_the_request_is_not_signalled(self):
        process = self.stand_in("obeys", "--id", self.id, "--api-sock", "s")
        result = mayfly("stop", self.id)
        self.expect(result, 0, b"")
        self.assertEqual(result.err, "")
        self.assertEqual(process.wait(HANG), 0)

    def test_a_guest_that_does_not_listen_is_ended_after_a_while_which_is_said(self):
        process = self.stand_in("is deaf", "--id", self.id, "--api-sock", "s")
        self.expect(mayfly("stop", self.id, "--timeout", "1"), 0, b"",
                    ("has not shut down within 1 s; ending it by SIGTERM",))
        self.assertEqual(process.wait(HANG), -15)

    def test_what_cannot_be_asked_is_ended_at_once_which_is_said(self):
        running = self.boot_with_api()
        self.expect(mayfly("pause", self.id), 0)
        self.expect(mayfly("stop", self.id), 0, b"", "it is paused; ending it by SIGTERM")
        self.expect(running.end(), 0)
        running = self.boot("--id", self.id)
        self.expect(mayfly("stop", self.id), 0, b"", "it has no control API; ending it by SIGTERM")
        self.expect(running.end(), 0)

    def test_one_that_was_not_started_has_nobody_to_ask_and_is_ended_at_once_which_is_said(self):
        process = self.waiting()
        self.expect(mayfly("stop", self.id), 0, b"",
                    "cannot be asked to shut down: it has no guest, as it has not been started; ending it by SIGTERM")
        self.assertEqual(process.wait(HANG), 0)

    def test_a_monitor_that_hangs_is_ended_all_the_same(self):
        process = self.stand_in("hangs", "--id", self.id, "--api-sock", "s")
        self.expect(mayfly("stop", self.id), 0, b"", "it did not answer in time; ending it by SIGTERM")
        self.assertEqual(process.wait(HANG), -15)

    def test_now_asks_nobody(self):
        running = self.boot_with_api()
        result = mayfly("stop", "--now", self.id)
        self.expect(result, 0, b"")
        self.assertEqual(result.err, "")
        self.expect(running.end(), 0)
        self.assertFalse(os.path.exists(self.path("api.sock")))


if __name__ == "__main__":
    main(__doc__)
