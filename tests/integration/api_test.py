#!/usr/bin/python3
"""Drives the monitor over its control API, with bare guests on this host's /dev/kvm.

  api_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

A host without a usable /dev/kvm cannot run them: that is said, and the exit code is 77 (skipped).
"""

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import time
import unittest

from bare_guests import HANG, Case, Connection, Running, guest, main, mayfly

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class ApiCase(Case):
    def start(self, *arguments, socket="api.sock", **keywords):
        self.socket = self.path(socket)
        self.vm = Running("--api-sock", self.socket, *arguments, **keywords)
        self.addCleanup(self.kill)
        self.api = Connection(self.socket)
        self.api.connect_once_served(self.vm.process)
        self.addCleanup(self.api.close)

    def kill(self):
        self.vm.process.kill()
        self.vm.process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        for pipe in (self.vm.process.stdout, self.vm.process.stderr):
            if pipe:
                pipe.close()

    def call(self, method, path, body=None):
        """The status and the JSON of the answer, None without one."""
        text = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        self.api.request(method, path, body=text)
        answer = self.api.getresponse()
        content = answer.read()
        if answer.status == 204:
            self.assertIsNone(answer.getheader("Content-Length"))
            self.assertEqual(content, b"")
        return answer.status, json.loads(content) if content else None

    def do(self, method, path, body):
        self.assertEqual(self.call(method, path, body), (204, None), f"{method} {path} {body}")

    def refused(self, text, method, path, body=None):
        status, answer = self.call(method, path, body)
        self.assertEqual(status, 400, answer)
        self.assertIn(text, answer["fault_message"])

    def get(self, path):
        status, answer = self.call("GET", path)
        self.assertEqual(status, 200, answer)
        return answer

    def boot(self, name, **machine):
        self.do("PUT", "/boot-source", {"kernel_image_path": guest(name)})
        self.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 32, **machine})
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})

    def image(self, name, size=1 << 20):
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        return self.path(name)


class Life(ApiCase):
    def test_a_microvm_is_set_up_started_paused_resumed_and_ends_by_itself(self):
        self.start()
        self.assertEqual(self.get("/")["state"], "Not started")
        self.boot("echo", vcpu_count=2)
        self.vm.until(b"ready\n")
        self.assertEqual(self.get("/")["state"], "Running")
        for state, named in (("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running"), ("Resumed", "Running")):
            self.do("PATCH", "/vm", {"state": state})
            self.assertEqual(self.get("/")["state"], named)
        self.vm.process.send_signal(signal.SIGTERM)
        self.expect(self.vm.end(), 0)
        self.assertFalse(os.path.exists(self.socket))

    def test_the_log_says_where_calls_are_waited_for(self):
        for arguments, said in ((), ": waiting for calls\n"), (("--config-file", self.config(guest("spin"))), "\n"):
            self.start(*arguments)
            self.get("/")
            self.vm.process.terminate()
            self.expect(self.vm.end(), 0, err=f"control API at {self.socket}{said}")

    def test_a_path_that_is_taken_is_an_error_that_says_whether_anybody_is_there(self):
        self.start()
        self.expect(mayfly("--api-sock", self.socket), 153, b"", ("--api-sock", self.socket, "another process serves"))
        self.get("/")
        self.vm.process.kill()
        self.vm.process.wait()
        for _ in range(2):
            self.expect(mayfly("--api-sock", self.socket), 153, b"", (self.socket, "left over", "remove the file"))

    def test_a_guest_that_powers_off_ends_the_monitor_and_its_socket(self):
        self.start()
        self.boot("power_off")
        self.expect(self.vm.end(), 0, b"hello\n")
        self.assertFalse(os.path.exists(self.socket))

    def test_a_paused_guest_runs_no_further_until_it_is_resumed(self):
        self.start()
        self.do("PUT", "/metrics", {"metrics_path": self.path("metrics")})
        self.do("PUT", "/serial", {"serial_out_path": "/dev/null"})

        def written():
            self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
            with open(self.path("metrics"), encoding="utf-8") as file:
                return json.loads(file.readlines()[-1])["uart"]["write_count"]

        self.boot("flood")
        while written() == 0:
            pass
        self.do("PATCH", "/vm", {"state": "Paused"})
        written()
        self.assertEqual([written() for _ in range(20)], [0] * 20)
        self.do("PATCH", "/vm", {"state": "Resumed"})
        while written() == 0:
            pass

    def test_a_guest_that_listens_is_asked_to_shut_down_and_one_that_does_not_is_named(self):
        self.start(stdin=subprocess.PIPE)
        self.refused("only after", "PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        self.boot("shutdown_request")
        self.vm.until(b"closed\n")
        self.refused("does not listen", "PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        self.vm.send(b"x")
        self.vm.until(b"open\n")
        self.do("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        self.expect(self.vm.end(), 0, b"closed\nopen\nPASS\n")

    def test_a_configuration_file_starts_at_once_and_the_api_serves_what_is_left(self):
        config = self.config(guest("spin"), **{"machine-config": {"vcpu_count": 2, "mem_size_mib": 64}})
        self.start("--config-file", config, "--id", "vm-7")
        self.vm.until(b"spinning\n")
        self.assertEqual(self.get("/")["id"], "vm-7")
        self.assertEqual(self.get("/")["state"], "Running")
        self.assertEqual(self.get("/machine-config")["mem_size_mib"], 64)
        self.refused("only before", "PUT", "/actions", {"action_type": "InstanceStart"})
        self.refused("only before", "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})

    def test_what_get_vm_config_gives_is_a_configuration_file_of_the_same_machine(self):
        self.start()
        self.do("PUT", "/drives/root", {"drive_id": "root", "path_on_host": self.image("disk"), "is_root_device": True,
                                        "cache_type": "Writeback", "io_engine": "Async",
                                        "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}})
        self.do("PUT", "/network-interfaces/net", {"iface_id": "net", "backend": "user", "guest_mac": "06:00:00:00:00:01",
                                                   "forward": ["127.0.0.1/18080:80"]})
        self.boot("spin", vcpu_count=2)
        first = self.get("/vm/config")
        self.kill()
        config = self.write("again.json", json.dumps(first))
        self.start("--config-file", config)
        self.assertEqual(self.get("/vm/config"), first)

    def test_metrics_and_log_go_where_the_calls_say(self):
        self.start("--id", "vm-7")
        self.do("PUT", "/logger", {"log_path": self.path("log"), "level": "debug", "show_level": True})
        self.do("PUT", "/metrics", {"metrics_path": self.path("metrics"), "emit_id": True})
        self.refused("set already", "PUT", "/metrics", {"metrics_path": self.path("other")})
        self.boot("spin")
        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
        with open(self.path("metrics"), encoding="utf-8") as file:
            line = json.loads(file.readlines()[-1])
        self.assertEqual(line["id"], "vm-7")
        self.assertEqual(line["put_api_requests"]["actions_count"], 2)
        self.assertEqual(line["put_api_requests"]["metrics_fails"], 1)
        with open(self.path("log"), encoding="utf-8") as file:
            self.assertIn("/metrics refused", file.read())

    def test_serial_output_goes_where_it_is_put(self):
        self.start()
        self.do("PUT", "/serial", {"serial_out_path": self.path("serial")})
        self.boot("power_off")
        self.expect(self.vm.end(), 0, b"")
        with open(self.path("serial"), "rb") as file:
            self.assertEqual(file.read(), b"hello\n")


class Stream:
    """A client of GET /events."""

    def __init__(self, path, last_event_id=None):
        self.connection = Connection(path)
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        self.connection.request("GET", "/events", headers=headers)
        self.answer = self.connection.getresponse()

    def next(self):
        """The next event as (id, name, data), None at the stream's end."""
        fields = {}
        while line := self.answer.readline():
            line = line.decode().rstrip("\r\n")
            if not line:
                if "data" in fields:
                    return int(fields["id"]), fields["event"], json.loads(fields["data"])
                fields = {}
            elif not line.startswith(":"):
                field, _, value = line.partition(":")
                fields[field] = value.removeprefix(" ")
        return None

    def names(self, count):
        return [self.next()[1] for _ in range(count)]

    def rest(self):
        return list(iter(self.next, None))

    def close(self):
        self.answer.close()
        self.connection.close()


class Events(ApiCase):
    def follow(self, last_event_id=None):
        stream = Stream(self.socket, last_event_id)
        self.addCleanup(stream.close)
        return stream

    def test_a_client_follows_a_life_from_its_start_to_its_exit_code(self):
        self.start("--id", "vm-7")
        stream = self.follow()
        self.assertEqual(stream.answer.getheader("Content-Type").split(";")[0], "text/event-stream")
        begin = time.time() * 1e6
        self.boot("boot_mark")
        events = stream.rest()
        self.assertEqual([name for _, name, _ in events], ["starting", "running", "boot-mark", "ended"])
        self.assertEqual([number for number, _, _ in events], [1, 2, 3, 4])
        for _, name, data in events:
            self.assertEqual((data["event"], data["id"]), (name, "vm-7"))
        times = [data["time_us"] for _, _, data in events]
        self.assertEqual(times, sorted(times))
        self.assertLess(abs(times[0] - begin), HANG * 1e6)
        self.assertEqual((events[-1][2]["outcome"], events[-1][2]["exit_code"]), ("guest-power-off", 0))
        self.expect(self.vm.end(), 0)

    def test_pauses_are_told_once_each_and_a_signal_as_a_stop(self):
        self.start()
        stream = self.follow()
        self.boot("spin")
        for state in ("Paused", "Paused", "Resumed", "Resumed", "Paused"):
            self.do("PATCH", "/vm", {"state": state})
        self.assertEqual(stream.names(5), ["starting", "running", "paused", "resumed", "paused"])
        self.vm.process.send_signal(signal.SIGTERM)
        [(_, name, data)] = stream.rest()
        self.assertEqual((name, data["outcome"], data["exit_code"]), ("ended", "stopped", 0))
        self.expect(self.vm.end(), 0)

    def test_failures_and_resets_are_told_with_the_exit_code_of_the_process(self):
        for name, outcome, code in (("triple_fault", "triple-fault", 1), ("reset_i8042", "guest-reset", 0)):
            with self.subTest(guest=name):
                self.start()
                stream = self.follow()
                self.boot(name)
                last = stream.rest()[-1]
                self.assertEqual((last[1], last[2]["outcome"], last[2]["exit_code"]), ("ended", outcome, code))
                self.expect(self.vm.end(), code)

    def test_a_start_that_fails_is_told_with_its_reason(self):
        self.start()
        stream = self.follow()
        self.do("PUT", "/boot-source", {"kernel_image_path": self.write("junk", "no kernel")})
        self.refused("kernel image", "PUT", "/actions", {"action_type": "InstanceStart"})
        self.boot("spin")
        events = [stream.next() for _ in range(4)]
        self.assertEqual([name for _, name, _ in events], ["starting", "start-failed", "starting", "running"])
        self.assertIn("kernel image", events[1][2]["detail"])

    def test_a_client_that_comes_late_or_again_gets_what_it_has_missed(self):
        config = self.config(guest("spin"))
        self.start("--config-file", config)
        first = self.follow()
        self.assertEqual(first.names(2), ["starting", "running"])
        first.close()
        self.do("PATCH", "/vm", {"state": "Paused"})
        self.assertEqual(self.follow(last_event_id=2).names(1), ["paused"])
        self.assertEqual(self.follow(last_event_id="what").names(3), ["starting", "running", "paused"])
        self.do("PATCH", "/vm", {"state": "Resumed"})
        self.assertEqual(self.follow().names(4), ["starting", "running", "paused", "resumed"])

    def test_clients_that_leave_or_do_not_read_hold_up_nothing(self):
        self.start()
        streams = [self.follow() for _ in range(3)]
        self.boot("spin")
        streams[0].close()
        self.assertEqual(streams[1].names(2), ["starting", "running"])
        for _ in range(200):
            self.do("PATCH", "/vm", {"state": "Paused"})
            self.do("PATCH", "/vm", {"state": "Resumed"})
            self.assertEqual(streams[1].names(2), ["paused", "resumed"])
        self.vm.process.send_signal(signal.SIGTERM)
        self.assertEqual(streams[1].rest()[-1][1], "ended")
        self.expect(self.vm.end(), 0)


class Exposition:
    """Prometheus' text format 0.0.4, read strictly: what that page allows, no more."""

    NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
    LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
    VALUE = re.compile(r"[0-9]+(\.[0-9]+)?")

    def __init__(self, text):
        self.types = {}  # by name
        self.samples = {}  # (name, labels as sorted pairs): value
        if not text.endswith("\n"):
            raise ValueError("the last line has no end")
        current = None
        helped = set()
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                current, _, sentence = line.removeprefix("# HELP ").partition(" ")
                if not self.NAME.fullmatch(current) or not sentence.strip() or current in helped:
                    raise ValueError(line)
                helped.add(current)
            elif line.startswith("# TYPE "):
                name, kind = line.removeprefix("# TYPE ").split(" ")
                if name != current or name in self.types or kind not in ("counter", "gauge"):
                    raise ValueError(line)
                if (kind == "counter") != name.endswith("_total") or name.endswith(("_count", "_sum", "_bucket", "_us")):
                    raise ValueError(f"not as names should be: {line}")
                self.types[name] = kind
            else:
                self.sample(line, current)
        if set(self.types) != helped or {name for name, _ in self.samples} != helped:
            raise ValueError("a name without a type or without a sample")

    def sample(self, line, current):
        name = self.NAME.match(line)
        if name is None or name.group() != current or name.group() not in self.types:
            raise ValueError(f"not where it belongs: {line}")
        at, labels = name.end(), []
        if line[at] != "{":
            raise ValueError(line)
        while line[at] != "}":
            label = self.LABEL.match(line, at + 1)
            if label is None:
                raise ValueError(line)
            labels.append(label.groups())
            at = label.end()
            if line[at] not in ",}":
                raise ValueError(line)
        key = (name.group(), tuple(sorted(labels)))
        if line[at + 1] != " " or not self.VALUE.fullmatch(line[at + 2:]) or key in self.samples:
            raise ValueError(line)
        if len(dict(labels)) != len(labels):
            raise ValueError(f"a label twice: {line}")
        self.samples[key] = float(line[at + 2:])

    def value(self, name, **labels):
        [value] = [value for (its, pairs), value in self.samples.items()
                   if its == name and labels.items() <= dict(pairs).items()]
        return value


class Metrics(ApiCase):
    def exposition(self):
        self.api.request("GET", "/metrics")
        answer = self.api.getresponse()
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.getheader("Content-Type").startswith("text/plain; version=0.0.4"))
        return Exposition(answer.read().decode())

    def lines(self, path):
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def start_with_devices(self, *arguments):
        self.start("--id", "vm-7", *arguments)
        self.do("PUT", "/drives/root", {"drive_id": "root", "path_on_host": self.image("disk"), "is_root_device": True})
        self.do("PUT", "/drives/data", {"drive_id": "data", "path_on_host": self.image("data"), "is_root_device": False})
        self.do("PUT", "/network-interfaces/eth", {"iface_id": "eth", "backend": "user"})

    def test_every_field_of_a_line_is_in_the_text_as_well(self):
        self.start_with_devices("--metrics-path", self.path("metrics"))
        self.boot("spin")
        self.vm.until(b"spinning\n")
        text = self.exposition()
        names = set(text.types)
        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
        line = self.lines(self.path("metrics"))[-1]
        for group, fields in line.items():
            if not isinstance(fields, dict) or group in ("block", "net"):
                continue
            kind, _, device = group.partition("_") if group.startswith(("block_", "net_")) else (group, "", "")
            unit = kind.endswith("_us")
            for field, value in fields.items():
                with self.subTest(group=group, field=field):
                    base = f"mayfly_{kind.removesuffix('_us')}_{field.removesuffix('_count').removesuffix('_us')}"
                    if isinstance(value, dict):
                        base = base.removesuffix("_agg")
                        expected = {base + "_min_seconds", base + "_max_seconds", base + "_seconds_total"}
                    else:
                        expected = {base + "_seconds"} if unit or field.endswith("_us") else {base + "_total", base} & names
                    self.assertTrue(expected and expected <= names, expected)
                    label = {"block": "drive", "net": "interface"}.get(kind) if device else None
                    for name in expected:
                        self.assertIsNotNone(text.value(name, id="vm-7", **({label: device} if label else {})))

    def test_counts_are_those_of_the_whole_life_and_what_lines_tell_stays_the_same(self):
        self.start_with_devices("--metrics-path", self.path("metrics"))
        self.boot("echo")
        self.vm.until(b"ready\n")
        total = 0
        for _ in range(3):
            before = self.exposition().value("mayfly_uart_write_total")
            self.exposition()
            self.assertEqual(self.exposition().value("mayfly_uart_write_total"), before)
            self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
            self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
            lines = self.lines(self.path("metrics"))
            self.assertEqual(sum(line["uart"]["write_count"] for line in lines), before)
            self.assertEqual(lines[-1]["put_api_requests"]["actions_count"], 1)
            total += 2
            self.assertEqual(self.exposition().value("mayfly_put_api_requests_actions_total"), total + 1)
        self.assertGreater(before, 0)

    def test_the_state_is_told_and_there_is_an_answer_in_every_one(self):
        self.start("--id", "vm-7")
        for step, state in ((lambda: None, "Not started"), (lambda: self.boot("spin"), "Running"),
                            (lambda: self.do("PATCH", "/vm", {"state": "Paused"}), "Paused")):
            step()
            text = self.exposition()
            for other in ("Not started", "Running", "Paused"):
                self.assertEqual(text.value("mayfly_vm_state", state=other), int(other == state))
        self.assertEqual(text.value("mayfly_vm_info", id="vm-7"), 1)
        self.assertGreater(text.value("mayfly_latencies_pause_vm_seconds"), 0)
        self.refused("no body", "GET", "/metrics", {})

    def test_the_parser_of_these_tests_is_strict(self):
        head = "# HELP a_total Help\n# TYPE a_total counter\n"
        self.assertEqual(Exposition(head + 'a_total{x="\\"\\n"} 5\n').types, {"a_total": "counter"})
        for wrong in (head, head + 'a_total{x="1"} 5', head + 'b_total{x="1"} 5\n', head + 'a_total{x="1"} x\n',
                      head + 'a_total{x="1"} 5\n' * 2, head + 'a_total{x="1",x="2"} 5\n', head * 2 + 'a_total{x="1"} 5\n',
                      head + 'a_total{x=1} 5\n', head + 'a_total{x="\\y"} 5\n', head + 'a_total{x="1"}  5\n',
                      head.replace("counter", "gauge") + 'a_total{x="1"} 5\n', head.replace("Help", "") + 'a_total{x="1"} 5\n'):
            with self.subTest(wrong=wrong), self.assertRaises(ValueError):
                Exposition(wrong)

    def test_the_dashboard_asks_for_nothing_that_there_is_not(self):
        self.start_with_devices()
        names = set(self.exposition().types)
        with open(os.path.join(ROOT, "resources", "grafana", "mayfly.json"), encoding="utf-8") as file:
            dashboard = json.load(file)
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        queries += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
        self.assertGreater(len(queries), 30)
        for query in queries:
            used = set(re.findall(r"\bmayfly_[a-z0-9_]+", query))
            self.assertTrue(used and used <= names, f"{query}: {used - names}")
        panels = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(panels), len(set(panels)))


class Documentation(ApiCase):
    def commands(self):
        """The curl commands of docs/metrics.md, by their path."""
        with open(os.path.join(ROOT, "docs", "metrics.md"), encoding="utf-8") as file:
            blocks = re.findall(r"^ {4}curl .*(?:\n {4}.*)*", file.read(), re.M)
        return [(re.search(r"http://localhost(/\S+)", block).group(1), "PUT" in block, block) for block in blocks]

    def run_command(self, block):
        done = subprocess.run(["sh", "-ec", block], cwd=self.folder, capture_output=True, timeout=HANG, check=False)
        self.assertEqual(done.returncode, 0, done)
        self.assertNotIn(b"fault_message", done.stdout)
        return done.stdout

    @unittest.skipUnless(shutil.which("curl"), "no curl")
    def test_the_commands_of_the_page_about_metrics_work_as_written(self):
        self.start("--id", "vm-7", socket="vm.sock", cwd=self.folder)
        commands = self.commands()
        self.assertEqual([path for path, _, _ in commands],
                         ["/logger", "/metrics", "/actions", "/metrics", "/metrics", "/events", "/serial"])
        for path, puts, block in commands:
            if puts and path != "/actions":
                self.run_command(block)
        self.boot("flood")
        self.refused("only before", "PUT", "/serial", {})  # which is logged
        for path, puts, block in commands:
            if path == "/events":
                # exec: so that it is curl which is ended.
                with subprocess.Popen(["sh", "-c", "exec " + block.strip()], cwd=self.folder, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL) as curl:
                    self.addCleanup(curl.kill)
                    lines = [curl.stdout.readline() for _ in range(6)]
                    curl.kill()
                self.assertIn(b"event: running\n", lines)
            elif not puts or path == "/actions":
                self.run_command(block)
        with open(self.path("vm-7.prom"), encoding="utf-8") as file:
            self.assertIn("mayfly_vm_info", Exposition(file.read()).types)
        for name in ("vm.log", "vm.metrics", "vm.serial"):
            self.assertGreater(os.path.getsize(self.path(name)), 0, name)
        with open(self.path("vm.metrics"), encoding="utf-8") as file:
            line = json.loads(file.readlines()[-1])
        self.assertEqual((line["id"], line["properties"]), ("vm-7", {"rack": "r12"}))


class Start(ApiCase):
    def test_a_start_that_fails_changes_nothing_and_can_be_tried_again(self):
        self.start()
        self.refused("no boot source", "PUT", "/actions", {"action_type": "InstanceStart"})
        self.do("PUT", "/drives/d", {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": False})
        self.do("PUT", "/boot-source", {"kernel_image_path": self.write("junk", "no kernel")})
        before = self.get("/vm/config")
        for _ in range(3):
            self.refused("kernel image", "PUT", "/actions", {"action_type": "InstanceStart"})
        self.assertEqual(self.get("/vm/config"), before)
        self.assertEqual(self.get("/")["state"], "Not started")
        self.boot("spin")
        self.vm.until(b"spinning\n")

    def test_files_are_those_that_were_there_when_they_were_put(self):
        self.start()
        os.link(guest("spin"), self.path("kernel")) if os.stat(guest("spin")).st_dev == os.stat(
            self.folder).st_dev else subprocess.run(["cp", guest("spin"), self.path("kernel")], check=True)
        self.do("PUT", "/boot-source", {"kernel_image_path": self.path("kernel")})
        self.do("PUT", "/drives/d", {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": False})
        os.unlink(self.path("kernel"))
        os.unlink(self.path("disk"))
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})
        self.vm.until(b"spinning\n")

    def test_an_interface_with_a_forwarded_port_can_be_put_again(self):
        self.start()
        network = {"iface_id": "n", "backend": "user", "forward": ["127.0.0.1/18081:80"]}
        self.do("PUT", "/network-interfaces/n", network)
        self.do("PUT", "/network-interfaces/n", {**network, "mtu": 1400})
        self.assertEqual(self.get("/vm/config")["network-interfaces"][0]["mtu"], 1400)

    def test_what_the_microvm_is_made_of_is_never_written_to(self):
        self.start("--metrics-path", self.path("metrics"))
        self.do("PUT", "/boot-source", {"kernel_image_path": guest("spin")})
        self.do("PUT", "/drives/d", {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": False})
        self.refused("image of drive d", "PUT", "/logger", {"log_path": self.path("disk")})
        self.refused("image of drive d", "PUT", "/serial", {"serial_out_path": self.path("disk")})
        self.refused("kernel image", "PUT", "/serial", {"serial_out_path": guest("spin")})
        self.refused("no other device", "PUT", "/serial", {"serial_out_path": "/dev/kmsg"})
        self.do("PUT", "/logger", {"log_path": self.path("log")})
        for name, role in (("log", "the log"), ("metrics", "the metrics")):
            self.refused(role, "PUT", "/drives/e", {"drive_id": "e", "path_on_host": self.path(name), "is_root_device": False})
            self.refused(role, "PUT", "/boot-source", {"kernel_image_path": self.path(name)})
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})
        self.refused("the log", "PATCH", "/drives/d", {"drive_id": "d", "path_on_host": self.path("log")})

    def test_a_socket_that_is_left_over_or_another_file_is_an_error_that_names_it(self):
        for make in (lambda path: socket.socket(socket.AF_UNIX).bind(path), lambda path: self.write("s", "text")):
            make(self.path("s"))
            with self.subTest(kind=stat.S_IFMT(os.lstat(self.path("s")).st_mode)):
                self.expect(mayfly("--api-sock", self.path("s")), 153, b"", self.path("s"))
                self.assertTrue(os.path.exists(self.path("s")))
            os.unlink(self.path("s"))

    def test_the_socket_is_for_this_user_alone(self):
        self.start()
        self.assertEqual(stat.S_IMODE(os.stat(self.socket).st_mode), 0o600)


class Metadata(ApiCase):
    def test_metadata_is_put_merged_and_read_at_any_time(self):
        self.start()
        self.refused("none yet", "GET", "/mmds")
        self.refused("none yet", "PATCH", "/mmds", {"a": 1})
        self.do("PUT", "/mmds", {"latest": {"meta-data": {"ami-id": "x", "gone": 1}}})
        self.boot("spin")
        self.do("PATCH", "/mmds", {"latest": {"meta-data": {"gone": None, "new": [1, 2]}}})
        wanted = {"latest": {"meta-data": {"ami-id": "x", "new": [1, 2]}}}
        self.assertEqual(self.get("/mmds"), wanted)
        self.refused("", "PUT", "/mmds", "{")
        self.assertEqual(self.call("PUT", "/mmds", {"x": "y" * 51300})[0], 413)
        self.assertEqual(self.call("PATCH", "/mmds", {"x": "y" * 51180})[0], 413)
        self.assertEqual(self.get("/mmds"), wanted)
        self.do("PUT", "/mmds", '{"a":' * 99 + "1" + "}" * 99)

    def test_the_service_is_configured_for_interfaces_that_are_there(self):
        self.start()
        config = {"network_interfaces": ["n"], "version": "V2", "ipv4_address": "169.254.170.2", "imds_compat": True}
        self.refused("n", "PUT", "/mmds/config", config)
        self.do("PUT", "/network-interfaces/n", {"iface_id": "n", "backend": "user"})
        self.assertIsNone(self.get("/vm/config")["mmds-config"])
        self.do("PUT", "/mmds/config", config)
        self.assertEqual(self.get("/vm/config")["mmds-config"], config)
        for field, wrong in (("version", "V3"), ("ipv4_address", "10.0.0.1"), ("ipv4_address", "x"), ("imds_compat", 1),
                             ("network_interfaces", []), ("network_interfaces", "n"), ("network_interfaces", [1]),
                             ("network_interfaces", ["m"]), ("more", 1)):
            self.refused(field, "PUT", "/mmds/config", {**config, field: wrong})
        self.assertEqual(self.get("/vm/config")["mmds-config"], config)
        self.boot("spin")
        self.refused("only before", "PUT", "/mmds/config", config)

    def test_a_file_is_the_metadata_at_first(self):
        self.start("--metadata", self.write("metadata", '{"a": {"b": "c"}}'), "--mmds-size-limit", "30")
        self.assertEqual(self.get("/mmds"), {"a": {"b": "c"}})
        self.assertEqual(self.call("PATCH", "/mmds", {"d": "e" * 30})[0], 413)
        for content in ("{", '{"a": "%s"}' % ("x" * 60000)):
            path = self.write("wrong", content)
            self.expect(mayfly("--api-sock", self.path("s"), "--metadata", path), 153, b"", f"--metadata {path}: metadata: ")
        self.expect(mayfly("--api-sock", self.path("s"), "--metadata", self.path("none")), 153, b"", "--metadata")


class Live(ApiCase):
    def test_a_drive_gets_another_image_and_other_limits(self):
        self.start()
        self.do("PUT", "/drives/d", {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": False,
                                     "rate_limiter": {"ops": {"size": 5, "refill_time": 100}}})
        self.boot("spin")
        self.do("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": self.image("larger", 4 << 20)})
        self.do("PATCH", "/drives/d", {"drive_id": "d", "rate_limiter": {"bandwidth": {"size": 9, "refill_time": 1},
                                                                         "ops": {"size": 0, "refill_time": 0}}})
        drive = self.get("/vm/config")["drives"][0]
        self.assertEqual(drive["path_on_host"], self.path("larger"))
        self.assertEqual(drive["rate_limiter"], {"bandwidth": {"size": 9, "refill_time": 1}})
        before = self.get("/vm/config")
        self.refused("missing", "PATCH", "/drives/d", {"drive_id": "d", "path_on_host": self.path("missing")})
        self.refused('no drive "e"; there are: d', "PATCH", "/drives/e", {"drive_id": "e"})
        self.refused("path", "PATCH", "/drives/d", {"drive_id": "d", "path": "/x"})
        self.refused("drive d: ", "PATCH", "/drives/d", {"drive_id": "d", "path_on_host": self.path("disk"), "rate_limiter": {
            "ops": {"size": 1, "refill_time": 1 << 63}}})
        self.assertEqual(self.get("/vm/config"), before)

    def test_an_interface_gets_other_limits(self):
        self.start()
        self.do("PUT", "/network-interfaces/n", {"iface_id": "n", "backend": "user"})
        self.boot("spin")
        limit = {"bandwidth": {"size": 1000, "refill_time": 10, "one_time_burst": 7}}
        self.do("PATCH", "/network-interfaces/n", {"iface_id": "n", "rx_rate_limiter": limit})
        network = self.get("/vm/config")["network-interfaces"][0]
        self.assertEqual(network["rx_rate_limiter"], limit)
        self.assertIsNone(network["tx_rate_limiter"])
        self.refused('no network interface "m"; there are: n', "PATCH", "/network-interfaces/m", {"iface_id": "m"})


class Outputs(ApiCase):
    def log(self, name="log"):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def fifo(self, name):
        os.mkfifo(self.path(name))
        return self.path(name)

    def cause_a_line(self, mark):
        """A refusal, which the log tells of at level Info."""
        self.refused("there is no", "GET", f"/{mark}")
        self.refused(mark, "PUT", "/actions", {"action_type": mark})

    def test_a_log_line_shows_what_was_asked_for(self):
        self.start("--id", "vm-7")
        self.do("PUT", "/logger", {"log_path": self.path("log"), "level": "info"})
        origin = r"[a-z_0-9/]+\.(?:cc|h):[0-9]+"
        for fields, pattern in (({"show_level": False, "show_log_origin": False}, ""), ({"show_level": True}, ":INFO"),
                                ({"show_log_origin": True}, ":INFO:" + origin), ({"show_level": False}, ":" + origin)):
            self.do("PUT", "/logger", fields)
            self.cause_a_line("plain")
            last = self.log().splitlines()[-1]
            self.assertRegex(last, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[vm-7:[a-z_]+" + pattern + r"\] .+plain")

    def test_levels_leave_out_what_is_less_severe(self):
        self.start()
        self.do("PUT", "/logger", {"log_path": self.path("log")})
        for level, shown in (("Error", False), ("warn", False), ("WARNING", False), ("Info", True), ("debug", True),
                             ("Trace", True), ("Off", False)):
            with self.subTest(level=level):
                self.do("PUT", "/logger", {"level": level})
                self.cause_a_line(f"at_{level}")
                self.assertEqual(f"at_{level}" in self.log(), shown)
        self.refused("loud", "PUT", "/logger", {"level": "loud"})

    def test_a_module_is_all_that_is_logged(self):
        self.start()
        self.do("PUT", "/logger", {"log_path": self.path("log"), "level": "Info", "module": "devices"})
        self.cause_a_line("elsewhere")
        self.do("PUT", "/logger", {"module": "api/router.cc"})
        self.cause_a_line("there")
        self.assertNotIn("elsewhere", self.log())
        self.assertIn("there", self.log())

    def test_a_logger_that_is_put_again_changes_what_is_named_and_a_refused_one_nothing(self):
        self.start()
        self.do("PUT", "/logger", {"log_path": self.path("log"), "level": "Info", "show_level": True})
        self.refused("missing", "PUT", "/logger", {"log_path": self.path("missing/log"), "show_level": False})
        self.cause_a_line("first")
        self.do("PUT", "/logger", {"log_path": self.path("other")})
        self.cause_a_line("second")
        self.assertRegex(self.log(), r":INFO\] .*first")
        self.assertNotIn("second", self.log())
        self.assertRegex(self.log("other"), r":INFO\] .*second")

    def test_fifos_that_nobody_reads_hold_up_neither_the_api_nor_the_guest(self):
        self.start()
        self.do("PUT", "/logger", {"log_path": self.fifo("log"), "level": "Debug", "show_level": True,
                                   "show_log_origin": True})
        self.do("PUT", "/metrics", {"metrics_path": self.fifo("metrics")})
        self.do("PUT", "/serial", {"serial_out_path": self.fifo("serial")})
        self.boot("flood")
        for _ in range(50):  # more lines of metrics than a FIFO holds
            self.call("PUT", "/actions", {"action_type": "FlushMetrics"})
            self.do("PATCH", "/vm", {"state": "Paused"})
            self.do("PATCH", "/vm", {"state": "Resumed"})
        self.refused("takes no more", "PUT", "/actions", {"action_type": "FlushMetrics"})
        text = self.metrics_text()
        self.assertGreater(text.value("mayfly_logger_missed_metrics_total"), 0)
        before = text.value("mayfly_vcpu_exit_io_out_total")
        self.until(lambda: self.metrics_text().value("mayfly_vcpu_exit_io_out_total") > before + 1000)
        self.until(lambda: self.metrics_text().value("mayfly_uart_rate_limiter_dropped_bytes_total") > 0)
        self.vm.process.send_signal(signal.SIGTERM)
        self.expect(self.vm.end(), 0)

    def test_readers_that_leave_end_nothing_and_others_may_come(self):
        self.start()
        readers = [os.open(self.fifo(name), os.O_RDONLY | os.O_NONBLOCK) for name in ("log", "metrics", "serial")]
        self.do("PUT", "/logger", {"log_path": self.path("log"), "level": "Info"})
        self.do("PUT", "/metrics", {"metrics_path": self.path("metrics")})
        self.do("PUT", "/serial", {"serial_out_path": self.path("serial")})
        self.boot("flood")
        self.cause_a_line("before")
        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
        log, line, output = (self.read_some(reader) for reader in readers)
        self.assertIn(b"before", log)
        self.assertTrue(line.startswith(b"{"), line[:80])
        self.assertIn(b"x", output)
        for reader in readers:
            os.close(reader)
        self.cause_a_line("after")
        self.do("PUT", "/actions", {"action_type": "FlushMetrics"})
        for name, expected in (("log", b"after"), ("metrics", b"{"), ("serial", b"x")):
            reader = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK)
            self.addCleanup(os.close, reader)
            with self.subTest(name=name):
                self.assertIn(expected, self.read_some(reader))
        self.assertEqual(self.get("/")["state"], "Running")

    def test_a_rate_limiter_of_the_serial_port_drops_what_is_too_much(self):
        self.start()
        self.refused("serial", "PUT", "/serial", {"rate_limiter": {"size": 1, "refill_time": 2**63}})
        self.do("PUT", "/serial", {"serial_out_path": self.path("serial"),
                                   "rate_limiter": {"size": 100, "refill_time": 3600_000, "one_time_burst": 50}})
        self.boot("flood")
        self.until(lambda: self.metrics_text().value("mayfly_uart_rate_limiter_dropped_bytes_total") > 1000)
        self.vm.process.send_signal(signal.SIGTERM)
        self.expect(self.vm.end(), 0, b"")
        # A second's refill is a thirtieth of a byte.
        self.assertIn(os.path.getsize(self.path("serial")), range(150, 160))

    def metrics_text(self):
        self.api.request("GET", "/metrics")
        return Exposition(self.api.getresponse().read().decode())

    @staticmethod
    def until(condition):
        end = time.monotonic() + HANG
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("never")
            time.sleep(0.005)

    @staticmethod
    def read_some(reader):
        """What a FIFO gives at first."""
        if not select.select([reader], [], [], HANG)[0]:
            raise AssertionError("nothing to read")
        return os.read(reader, 1 << 20)


class Hostile(ApiCase):
    def raw(self, data):
        """What the server answers before it closes, or within a moment."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(HANG)
            client.connect(self.socket)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := client.recv(65536):
                    answer += chunk
            return answer

    @staticmethod
    def malformed():
        def request(line=b"PUT /machine-config HTTP/1.1", headers=(), body=b""):
            return b"\r\n".join([line, b"Host: localhost", *headers, b"", body])

        for method, target, version in itertools.product(
                (b"PUT", b"PATCH", b"get", b"BREW", b"", b"\xff"), (b"/nowhere", b"/drives/a%20b", b"", b"*", b"/\0", b"//"),
                (b"HTTP/1.1", b"HTTP/9.9", b"HTTP/1", b"", b"SMTP")):
            yield request(b" ".join((method, target, version)), [b"Content-Length: 2"], b"{}")
        for length in (b"-1", b"+2", b"0x2", b"2 2", b"2,2", b"", b"99999999999999999999", b"51201", b"4294967298", b"\xd9\xa2"):
            yield request(headers=[b"Content-Length: " + length], body=b"{}")
        for body in (b"{", b"[]", b"null", b"0", b'"x"', b"{}" * 2, b'{"vcpu_count":1e999}', b"\xff\xfe", b'{"a":' * 4000,
                     b'{"vcpu_count":1,"vcpu_count":1}', b'{"\\ud800":1}', b"\0", b'{"vcpu_count":18446744073709551616}'):
            yield request(headers=[b"Content-Length: %d" % len(body)], body=body)
        for header in (b"Transfer-Encoding: chunked", b"Content-Length: 2\r\nContent-Length: 3", b"no colon", b": empty",
                       b"X: " + b"y" * 20000, b"X\0: y", b" folded: y"):
            yield request(headers=[header], body=b"{}")
        yield b"\r\n" * 5000
        yield b"\0" * 5000
        yield b"GET / HTTP/1.1\n\n\n" * 3

    def test_more_than_200_malformed_requests_change_nothing_and_the_microvm_goes_on(self):
        self.start()
        self.boot("echo")
        before = self.get("/vm/config")
        self.api.close()
        tried = 0
        for data in self.malformed():
            answer = self.raw(data)
            tried += 1
            with self.subTest(data=data[:80]):
                status = answer.split(b" ", 2)[1:2]
                self.assertTrue(answer == b"" or status[0] in (b"400", b"413"), answer[:200])
        self.assertGreater(tried, 200)
        self.assertEqual(self.get("/vm/config"), before)
        self.assertEqual(self.get("/")["state"], "Running")

    def test_every_field_of_every_call_is_checked(self):
        self.start()
        self.do("PUT", "/boot-source", {"kernel_image_path": guest("spin")})
        before = self.get("/vm/config")
        good = {
            "/machine-config": {"vcpu_count": 1, "mem_size_mib": 32, "smt": False, "huge_pages": "None"},
            "/boot-source": {"kernel_image_path": guest("spin"), "boot_args": "x", "initrd_path": guest("spin")},
            "/drives/d": {"drive_id": "d", "path_on_host": self.image("disk"), "is_root_device": True, "is_read_only": True,
                          "cache_type": "Unsafe", "io_engine": "Sync", "partuuid": "x"},
            "/network-interfaces/n": {"iface_id": "n", "backend": "user", "guest_mac": "06:00:00:00:00:01", "mtu": 1500},
            "/logger": {"log_path": self.path("log"), "level": "Info", "show_level": True, "module": "api"},
            "/metrics": {"metrics_path": self.path("metrics")},
            "/serial": {"serial_out_path": self.path("serial")},
            "/actions": {"action_type": "InstanceStart"},
        }
        for path, body in good.items():
            for field, wrong in itertools.product(body, ({"x": 1}, [1], -1, 1.5, "", "\u0000")):
                if isinstance(body[field], str) and wrong == "" and field in ("boot_args", "module"):
                    continue  # empty is a value of theirs
                if field == "partuuid" and wrong == "":
                    continue
                with self.subTest(path=path, field=field, wrong=wrong):
                    status, answer = self.call("PUT", path, {**body, field: wrong})
                    self.assertEqual(status, 400, answer)
                    if field not in ("drive_id", "iface_id"):
                        self.assertTrue(field in answer["fault_message"] or str(wrong) in answer["fault_message"], answer)
            with self.subTest(path=path, field="unknown"):
                self.refused("frobs", "PUT", path, {**body, "frobs": 1})
        self.assertEqual(self.get("/vm/config"), before)

    def test_a_thousand_calls_on_one_connection_and_on_a_thousand_leave_no_descriptor_and_no_memory(self):
        self.start()
        self.boot("spin")

        def usage():
            return len(os.listdir(f"/proc/{self.vm.process.pid}/fd")), self.vm.anonymous_kib()

        def calls(count, again):
            for _ in range(count):
                self.get("/vm/config")
                if again:
                    self.api.close()

        calls(50, True)
        calls(50, False)
        descriptors, memory = usage()
        calls(1000, False)
        calls(1000, True)
        self.get("/")
        after_descriptors, after_memory = usage()
        self.assertEqual(after_descriptors, descriptors)
        self.assertLess(after_memory, memory + 256)  # KiB


class Ending(ApiCase):
    def test_the_monitor_ends_with_clients_connected_and_a_call_under_way(self):
        self.start()
        self.boot("spin")
        idle = Connection(self.socket)
        self.addCleanup(idle.close)
        idle.request("GET", "/")
        idle.getresponse().read()
        half = socket.socket(socket.AF_UNIX)
        self.addCleanup(half.close)
        half.connect(self.socket)
        half.sendall(b"PUT /vm HTTP/1.1\r\nContent-Le")
        self.vm.process.send_signal(signal.SIGTERM)
        self.expect(self.vm.end(), 0)
        self.assertFalse(os.path.exists(self.socket))

    def test_a_monitor_that_was_never_started_ends_at_a_signal(self):
        self.start()
        self.vm.process.send_signal(signal.SIGINT)
        self.expect(self.vm.end(), 0, b"")


if __name__ == "__main__":
    main(__doc__)
