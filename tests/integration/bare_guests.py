"""What the tests with bare guests share: starting the monitor, and a case with a folder of its own."""

import argparse
import contextlib
import http.client
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HANG = 60  # seconds after which only a hang is left as a cause

MAYFLY = ""
GUESTS = ""


def program():
    return MAYFLY


def guest(name):
    return os.path.join(GUESTS, name + ".elf")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __str__(self):
        return f"exit code {self.code}\nstdout: {self.out!r}\nstderr: {self.err!r}"


def output_of(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=True).stdout.decode()


def mayfly(*arguments, stdin=subprocess.DEVNULL, data=None, env=None, cwd=None):
    done = subprocess.run([MAYFLY, *arguments], stdin=None if data is not None else stdin, input=data,
                          capture_output=True, timeout=HANG, env=env, cwd=cwd, check=False)
    return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def run_guest(name, *arguments, **keywords):
    return mayfly("run", "--kernel", guest(name), *arguments, **keywords)


class Running:
    """A microVM under way, with its output read as it comes."""

    def __init__(self, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=None, command=None):
        """`command` is what becomes the monitor, where that is not started as it is."""
        self.process = subprocess.Popen([*(command or [MAYFLY]), *arguments], stdin=stdin, stdout=stdout,
                                        stderr=subprocess.PIPE, cwd=cwd)
        self.seen = b""

    def until(self, text):
        end = time.monotonic() + HANG
        while text not in self.seen:
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise AssertionError(f"no {text!r} in {self.seen!r}; stderr: {self.process.stderr.read()!r}")
            self.seen += data
        return self

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def anonymous_kib(self):
        """The memory that is this process's alone, but for written pages of its program's."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    def end(self):
        code = self.process.wait(HANG)
        err = self.process.stderr.read().decode(errors="replace")
        self.process.stderr.close()
        if self.process.stdout:
            self.seen += self.process.stdout.read()
            self.process.stdout.close()
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        return Result(code, self.seen, err)


class Connection(http.client.HTTPConnection):
    """Python's own HTTP client, over a UNIX socket; keeps the connection alive."""

    def __init__(self, path):
        super().__init__("localhost", timeout=HANG)
        self.unix_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HANG)
        try:
            self.sock.connect(self.unix_path)
        except OSError:
            self.close()
            raise

    def connect_once_served(self, process):
        """By `process`, whose error output is a pipe."""
        end = time.monotonic() + HANG
        while True:
            try:
                self.connect()
                return
            except (FileNotFoundError, ConnectionRefusedError):  # not there yet; there, but nobody listens yet
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    raise AssertionError(f"no API: {process.stderr.read()!r}") from None
                time.sleep(0.002)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory()) if hasattr(self, "enterContext") else None
        if self.folder is None:
            directory = tempfile.TemporaryDirectory()
            self.addCleanup(directory.cleanup)
            self.folder = directory.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(content)
        return self.path(name)

    def config(self, kernel, **sections):
        sections = {"boot-source": {"kernel_image_path": kernel}, "drives": [], **sections}
        return self.write("vm.json", json.dumps(sections))

    def expect(self, result, code, out=None, err=()):
        self.assertEqual(result.code, code, str(result))
        if out is not None:
            self.assertEqual(result.out, out, str(result))
        for text in [err] if isinstance(err, str) else err:
            self.assertIn(text, result.err)


def main(description, without_kvm=()):
    """Runs the tests named on the command line; those of the classes `without_kvm` also where there is no /dev/kvm."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", required=True)
    parser.add_argument("--guests", required=True)
    options, rest = parser.parse_known_args()
    global MAYFLY, GUESTS
    MAYFLY, GUESTS = os.path.abspath(options.mayfly), os.path.abspath(options.guests)
    named = [word.split(".")[0] for word in rest if not word.startswith("-")]
    needs_kvm = not named or not set(named) <= set(without_kvm)
    if needs_kvm and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("SKIP: this host has no /dev/kvm" if not os.path.exists("/dev/kvm") else
              "SKIP: this user may not use /dev/kvm (mayfly doctor says what to do about it)")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
