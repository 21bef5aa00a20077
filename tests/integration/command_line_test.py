#!/usr/bin/python3
"""The manual page and the shells' completion: made from the options, complete, and what their readers take.

  command_line_test.py --mayfly BINARY --build FOLDER [unittest's own arguments]

It starts no microVM. Completion is tried in those of bash, zsh and fish that are there.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

SUBCOMMANDS = ["run", "restore", "doctor", "template", "clone", "ps", "pause", "resume", "stop", "metrics", "config", "snapshot", "working-set",
               "merge", "completion"]

MAYFLY = ""
BUILD = ""


def output(*command, **keywords):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, **keywords).stdout


def man_page():
    return os.path.join(BUILD, "src/mayfly/mayfly.1")


def help_of(*command):
    return output(MAYFLY, *command, "--help")


def flags_of(*command):
    """The flags that a help text lists, not those that it mentions."""
    return re.findall(r"^  (?:-\w,)?(--[a-z-]+)", help_of(*command), re.M)


class Help(unittest.TestCase):
    def test_every_subcommand_is_listed_and_has_a_help_of_its_own(self):
        top = help_of()
        for name in SUBCOMMANDS:
            with self.subTest(name=name):
                self.assertRegex(top, rf"(?m)^  {name} ")
                self.assertIn(f"Usage: mayfly {name}", help_of(name))


    def test_what_comes_next_is_named(self):
        for name, words in (("snapshot", ("mayfly restore STATE MEMORY", "mayfly merge")), ("ps", ("Template", "mayfly clone NAME")),
                            ("stop", ("template", "its clones live on"))):
            text = re.sub(r"\s+", " ", help_of(name))
            for word in words:
                with self.subTest(name=name, word=word):
                    self.assertIn(word, text)


class Snapshots(unittest.TestCase):
    STATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fuzz/corpus/snapshot")

    def test_a_state_is_described_from_the_version_of_its_format_on(self):
        text = output(MAYFLY, "--describe-snapshot", os.path.join(self.STATES, "two_vcpus"))
        self.assertEqual(text.splitlines()[0], output(MAYFLY, "--snapshot-version").strip())
        self.assertRegex(text, r"(?m)^vCPUs +2$")

    def test_what_cannot_be_described_is_said_and_why(self):
        for path, why in ((os.path.join(self.STATES, "text"), "it is no snapshot of a microVM's state"),
                          ("/nonexistent", "No such file or directory"), ("/dev/zero", "")):
            with self.subTest(path=path):
                ended = subprocess.run([MAYFLY, "--describe-snapshot", path], capture_output=True, text=True, timeout=60)
                self.assertEqual((ended.returncode, ended.stdout), (153, ""))
                self.assertIn("--describe-snapshot: ", ended.stderr)
                self.assertIn(why, ended.stderr)


class ManPage(unittest.TestCase):
    def setUp(self):
        with open(man_page(), encoding="ascii") as file:
            self.page = file.read()

    def test_every_flag_and_subcommand_is_in_it(self):
        sections = dict(zip(["", *SUBCOMMANDS], re.split(r"(?m)^\.SS .*\n", self.page)))
        self.assertEqual(len(sections), len(SUBCOMMANDS) + 1)
        for name, section in sections.items():
            flags = flags_of(*([name] if name else []))
            self.assertIn("--help", flags)
            for flag in flags:
                with self.subTest(command=name, flag=flag):
                    self.assertIn("\\fB" + flag.replace("-", "\\-") + "\\fR", section)

    def test_exit_statuses_are_in_it(self):
        statuses = self.page[self.page.index(".SH EXIT STATUS"):self.page.index(".SH ENVIRONMENT")]
        for status in ("0", "1", "152", "153", "148, 149, 150, 154, 156, 157", "151"):
            self.assertIn(f".TP\n\\fB{status}\\fR\n", statuses)

    def test_what_surrounds_the_program_is_in_it(self):
        self.assertEqual(re.findall(r"(?m)^\.SH (.*)", self.page),
                         ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT",
                          "FILES", "SEE ALSO"])
        self.assertEqual(self.page.count("\\fB\\-h\\fR, \\fB\\-\\-help\\fR"), len(SUBCOMMANDS) + 1)
        for word in ("MAYFLY_KERNEL", "XDG_DATA_HOME", "/usr/share/mayfly/kernel", "/dev/kvm", "passt (1)"):
            self.assertIn(word, self.page)

    def test_groff_has_nothing_to_warn_of(self):
        if not shutil.which("groff"):
            self.skipTest("groff is not installed")
        done = subprocess.run(["groff", "-man", "-Tutf8", "-P-cbou", "-ww", man_page()], capture_output=True, text=True, timeout=60,
                              check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("--boot-protocol auto|pvh|linux64", done.stdout)


class Completion(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        # The names of running microVMs come from a stand-in, all else from the program.
        self.write("mayfly", f'#!/bin/sh\n[ "$1" = ps ] || exec {MAYFLY} "$@"\n[ "$2" = --quiet ] && '
                   '{ [ "$3" = --templates ] && echo tem || { echo web && echo 17; }; }\n')
        os.chmod(os.path.join(self.folder, "mayfly"), 0o755)
        self.write("kernel image", "")
        self.environment = dict(os.environ, PATH=self.folder + ":" + os.environ["PATH"], HOME=self.folder)

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    def bash(self, *words):
        """What bash offers for the last of the words, split as its line editor splits them."""
        script = ('source <(mayfly completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
                  '_mayfly mayfly; printf "%s\\n" "${COMPREPLY[@]}"')
        found = output("bash", "--norc", "-c", script, "bash", "mayfly", *words, env=self.environment, cwd=self.folder)
        return found.split("\n")[:-1]

    def test_a_file_that_must_not_become_so_long_is_an_error_of_the_host(self):
        with open(os.path.join(self.folder, "script"), "wb") as script:
            done = subprocess.run([MAYFLY, "completion", "bash"], stdout=script, check=False,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
        self.assertEqual(done.returncode, 1)

    def test_bash_offers_subcommands_and_flags(self):
        offered = self.bash("")
        self.assertTrue(set(SUBCOMMANDS) <= set(offered), offered)
        self.assertEqual(self.bash("resu"), ["resume"])
        self.assertEqual(self.bash("--no-a"), ["--no-api"])
        for name in SUBCOMMANDS:
            with self.subTest(name=name):
                self.assertEqual(sorted(self.bash(name, "--")), sorted(flags_of(name)))

    def test_bash_offers_values(self):
        self.assertEqual(self.bash("run", "--boot-protocol", ""), ["auto", "pvh", "linux64"])
        self.assertEqual(self.bash("run", "--boot-protocol", "=", "l"), ["linux64"])
        self.assertEqual(self.bash("run", "--boot-protocol", "="), ["auto", "pvh", "linux64"])
        self.assertEqual(self.bash("--level", "De"), ["Debug"])
        self.assertEqual(self.bash("run", "--kernel", "ker"), ["kernel image"])
        self.assertEqual(self.bash("run", "--cpus", ""), [""])
        self.assertEqual(self.bash("completion", ""), ["bash", "zsh", "fish"])

    def test_bash_offers_the_names_of_running_microvms(self):
        for name in ("pause", "resume", "stop", "metrics", "config"):
            self.assertEqual(self.bash(name, ""), ["web", "17"])
        self.assertEqual(self.bash("stop", "--now", "w"), ["web"])

    def test_bash_offers_what_each_argument_is(self):
        for words in (("restore",), ("restore", "vm.state"), ("restore", "--disk", "disk1", "=", "x", ":", "overlay", "s"),
                      ("restore", "--id", "x", "s"), ("restore", "--id", "=", "x", "s"), ("restore", "--paused", "s"),
                      ("template",), ("template", "s"), ("working-set", "web"), ("snapshot", "web"), ("snapshot", "--live", "web", "s"),
                      ("merge",), ("merge", "a"), ("merge", "a", "b", "c")):
            with self.subTest(words=words):
                self.assertEqual(self.bash(*words, "ker"), ["kernel image"])
        for name in ("restore", "clone"):
            for words in (("--disk", "disk1", "=", "ker"), ("--disk", "=", "disk1", "=", "ker")):
                with self.subTest(name=name, words=words):
                    self.assertEqual(self.bash(name, *words), ["kernel image"])
            self.assertIn("kernel image", self.bash(name, "--disk", "disk1", "="))
            self.assertEqual(self.bash(name, "--disk", "ker"), [""])
            self.assertEqual(self.bash(name, "--tap", "net1", "=", "ker"), [""])
        self.assertEqual(self.bash("snapshot", ""), ["web", "17"])
        self.assertEqual(self.bash("snapshot", "--diff", ""), ["web", "17"])
        self.assertEqual(self.bash("clone", ""), ["tem"])
        self.assertEqual(self.bash("clone", "-n", "3", ""), ["tem"])
        for words in (("restore", "s", "m"), ("clone", "tem"), ("snapshot", "web", "s", "m"), ("pause", "web")):
            with self.subTest(words=words):
                self.assertEqual(self.bash(*words, ""), [""])

    def test_zsh_takes_the_script(self):
        if not shutil.which("zsh"):
            self.skipTest("zsh is not installed")
        script = ("autoload -U compinit && compinit -u -D; source <(mayfly completion zsh); print $_comps[mayfly];"
                  "compadd() { print -- ${(P)@[-1]} }; _mayfly_microvms; _mayfly_templates")
        self.assertEqual(output("zsh", "-f", "-c", script, env=self.environment), "_mayfly\nweb 17\ntem\n")

    def test_fish_offers_subcommands_values_and_names(self):
        if not shutil.which("fish"):
            self.skipTest("fish is not installed")

        def offered(line):
            script = f"mayfly completion fish | source; complete -C '{line}'"
            found = output("fish", "--no-config", "-c", script, env=self.environment, cwd=self.folder)
            return [each.split("\t")[0] for each in found.splitlines()]
        self.assertTrue(set(SUBCOMMANDS) <= set(offered("mayfly ")))
        self.assertEqual(set(offered("mayfly run --boot-protocol ")), {"auto", "pvh", "linux64"})
        self.assertEqual(set(offered("mayfly stop ")), {"web", "17"})
        self.assertEqual(set(offered("mayfly clone ")), {"tem"})
        self.assertIn("kernel image", " ".join(offered("mayfly restore ker")).replace("\\", ""))
        self.assertEqual(set(offered("mayfly ps --")), set(flags_of("ps")))


class Installation(unittest.TestCase):
    def test_the_program_comes_with_its_manual_page_and_completions(self):
        with tempfile.TemporaryDirectory() as folder:
            output("cmake", "--install", BUILD, "--prefix", folder)
            self.assertIn("mayfly", output(os.path.join(folder, "bin/mayfly"), "--version"))
            for name in ("man/man1/mayfly.1", "bash-completion/completions/mayfly", "zsh/site-functions/_mayfly",
                         "fish/vendor_completions.d/mayfly.fish", "man/man8/jailer.8"):
                self.assertGreater(os.path.getsize(os.path.join(folder, "share", name)), 1000, name)
            self.assertIn("jailer", output(os.path.join(folder, "bin/jailer"), "--version"))
            self.assertIn("mayfly-seccomp", output(os.path.join(folder, "bin/mayfly-seccomp"), "--help"))


class Jailer(unittest.TestCase):
    def test_the_manual_page_has_every_flag_of_the_help(self):
        flags = set(re.findall(r"^  (--[a-z-]+)", output(os.path.join(BUILD, "jailer/jailer"), "--help"), re.M))
        self.assertGreater(len(flags), 15)
        with open(os.path.join(os.path.dirname(__file__), "../../jailer/jailer.8"), encoding="utf-8") as file:
            page = file.read()
        options = page[page.index(".SH OPTIONS"):page.index(".SH FILES")].replace("\\-", "-")
        described = {one or other for one, other in re.findall(r"^\\fB(--[a-z-]+)|, \\fB(--[a-z-]+)", options, re.M)}
        self.assertEqual(described, flags)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", required=True)
    parser.add_argument("--build", required=True)
    options, rest = parser.parse_known_args()
    global MAYFLY, BUILD
    MAYFLY, BUILD = os.path.abspath(options.mayfly), os.path.abspath(options.build)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)


if __name__ == "__main__":
    main()
