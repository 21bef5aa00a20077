#!/usr/bin/env python3
"""Shows that each check of the house can fail: small trees that break its rule, and one that keeps it."""

import argparse
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import arrows
import conformance
import house
import project_text
import promises
import readmes
import release_program

COMPILER = "g++"

ROOMS = """\
base src/base:
memory src/memory: base
kvm src/kvm: base memory
bus src/devices/bus: base
serial src/devices/serial: base bus
api src/api: base
"""


class Tree(unittest.TestCase):
    """A project in a temporary folder."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def assert_found(self, problems, *fragments):
        problems = list(problems)
        self.assertEqual(len(problems), len(fragments), problems)
        for problem, fragment in zip(problems, fragments):
            self.assertIn(fragment, problem)


class Arrows(Tree):
    def rooms(self, text=ROOMS):
        self.write("rooms.txt", text)
        return house.read_rooms(self.root / "rooms.txt")

    def setUp(self):
        super().setUp()
        for header, *included in (("base/error.h",), ("memory/guest_memory.h", "base/error.h"),
                                  ("kvm/vm.h", "base/error.h", "memory/guest_memory.h"),
                                  ("devices/bus/bus.h", "base/error.h"), ("api/routes.h", "base/error.h"),
                                  ("devices/serial/line.h", "base/error.h", "devices/bus/bus.h")):
            self.write(f"src/{header}", "".join(f'#include "{name}"\n' for name in included))
        self.write("tests/support/fake.h", "#pragma once\n")

    def includes(self, path, *included):
        self.write(path, "".join(f"#include {name}\n" for name in included))
        return arrows.check(self.root, self.rooms())

    def test_includes_along_the_arrows_pass(self):
        self.assert_found(self.includes("src/devices/serial/serial.cc", '"devices/bus/bus.h"', '"base/error.h"',
                                        "<vector>"))

    def test_an_include_of_a_room_that_is_no_dependency_is_found(self):
        self.assert_found(self.includes("src/memory/memory.cc", '"base/error.h"', '"kvm/vm.h"'),
                          'memory.cc:2: "kvm/vm.h": memory does not depend on kvm')

    def test_an_include_of_a_dependencys_dependency_is_found(self):
        self.assert_found(self.includes("src/memory/memory.cc"))
        self.write("src/api/routes.h", '#include "memory/guest_memory.h"\n')
        self.assert_found(arrows.check(self.root, self.rooms(ROOMS.replace("api: base", "api: kvm"))),
                          "src/api: depends on kvm", 'routes.h:1: "memory/guest_memory.h": api does not depend on memory')

    def test_a_dependency_that_no_file_includes_is_found(self):
        unused = ROOMS.replace("api: base", "api: base kvm")
        problem = "src/api: depends on kvm, of which no file of api includes a header"
        self.assert_found(arrows.check(self.root, self.rooms(unused)), problem)
        self.write("src/api/routes_test.cc", '#include "support/fake.h"\n')
        self.assert_found(arrows.check(self.root, self.rooms(unused)), problem)
        self.write("tests/support/fake.h", '#include "kvm/vm.h"\n#include "support/fake.h"\n')
        self.assert_found(arrows.check(self.root, self.rooms(unused)))

    def test_an_architecture_is_known_in_its_folders_in_tests_and_behind_the_door_only(self):
        self.write("src/memory/x86_64/ranges.h", "#pragma once\n")
        for path in ("src/memory/x86_64/ranges.cc", "src/kvm/x86_64/vm.cc", "src/kvm/vm_test.cc", "src/kvm/arch.h"):
            self.assert_found(self.includes(path, '"memory/x86_64/ranges.h"'))
        self.assert_found(self.includes("src/kvm/vm.cc", '"memory/x86_64/ranges.h"'), "of one architecture")

    def test_an_include_not_spelled_from_src_on_is_found(self):
        self.assert_found(self.includes("src/kvm/vm.cc", '"vm.h"'), "spelled from src/ on")

    def test_kvm_headers_in_a_device_are_found(self):
        self.assert_found(self.includes("src/devices/serial/serial.cc", "<linux/kvm.h>"), "KVM's own types")

    def test_json_outside_the_api_is_found_and_inside_passes(self):
        self.assert_found(self.includes("src/base/error.cc", "<nlohmann/json.hpp>"), "JSON")
        (self.root / "src/base/error.cc").unlink()
        self.assert_found(self.includes("src/api/routes.cc", "<nlohmann/json.hpp>"))

    def test_a_lock_that_nobody_checks_is_found_and_where_it_is_wrapped_passes(self):
        self.assert_found(self.includes("src/base/error.cc", "<mutex>", "<condition_variable>"), "locks", "locks")
        (self.root / "src/base/error.cc").unlink()
        self.assert_found(self.includes("src/base/mutex.h", "<mutex>", "<condition_variable>"))

    def test_an_http_library_outside_its_door_is_found(self):
        self.assert_found(self.includes("src/api/routes.cc", "<httplib.h>"), "HTTP")

    def test_test_support_in_shipped_code_is_found_and_in_a_unit_test_passes(self):
        self.assert_found(self.includes("src/base/error.cc", '"support/fake.h"'), "only unit tests")
        (self.root / "src/base/error.cc").unlink()
        self.assert_found(self.includes("src/base/error_test.cc", '"support/fake.h"'))

    def order(self, text):
        return arrows.check_order(self.rooms(text))

    def test_the_jailer_knows_base_only(self):
        self.write("jailer/main.cc", '#include "kvm/vm.h"\n#include "base/error.h"\n')
        self.assert_found(self.order(ROOMS + "jailer jailer: base kvm\n"),
                          "jailer: depends on kvm; it may know base only")
        self.assert_found(arrows.check(self.root, self.rooms(ROOMS + "jailer jailer: base\n")),
                          "jailer does not depend on kvm")

    def test_a_dependency_up_the_order_is_found(self):
        self.assert_found(self.order(ROOMS.replace("base src/base:", "base src/base: memory")),
                          "src/base: depends on memory, which does not stand below base")

    def test_a_dependency_between_devices_is_found(self):
        self.assert_found(self.order(ROOMS + "i8042 src/devices/i8042: base serial\n"),
                          "src/devices/i8042: depends on serial")

    def test_a_room_without_a_place_and_a_dependency_that_is_no_room_are_found(self):
        self.assert_found(self.order(ROOMS + "attic src/attic: base\n"), "has no place")
        self.assert_found(self.order(ROOMS.replace("api: base", "api: base attic")), "which is no room")

    def test_a_file_outside_every_room_is_found(self):
        self.write("src/loose.cc", "")
        self.assert_found(arrows.check(self.root, self.rooms()), "belongs to no room")


class ProjectText(Tree):
    def text(self, text, path="src/base/x.cc"):
        self.write(path, text)
        return project_text.check(self.root)

    def test_reasons_pass(self):
        unfinished, silenced = project_text.UNFINISHED, project_text.SILENCED
        self.assert_found(self.text(f"// {unfinished}(needs Linux 6.2): use it\n"
                                    f"f();  // {silenced}(bugprone-use-after-move): what is tested\n"
                                    f"// {silenced}END(bugprone-use-after-move)\n"))

    def test_unfinished_work_without_a_reason_is_found(self):
        unfinished = project_text.UNFINISHED
        self.assert_found(self.text(f"// {unfinished}: later\n"), "needs its reason")
        self.assert_found(self.text(f"// {unfinished}()\n"), "needs its reason")
        self.assert_found(self.text("// FIX" + "ME\n"), "do it")

    def test_a_silenced_linter_without_check_or_reason_is_found(self):
        silenced = project_text.SILENCED
        self.assert_found(self.text(f"f();  // {silenced}\n"), "names the check")
        self.assert_found(self.text(f"f();  // {silenced}(bugprone-use-after-move)\n"), "names the check")
        self.assert_found(self.text(f"// {silenced}NEXTLINE: because\n"), "names the check")

    def test_a_cast_without_a_safety_comment_is_found(self):
        self.assert_found(self.text("a();\nreturn reinterpret_cast<int*>(p);\n"), "x.cc:2: reinterpret_cast")
        self.assert_found(self.text("std::atomic_thread_fence(order);\n"), "atomic_thread_fence")
        self.assert_found(self.text("// SAFETY: too far\n\n\n\nconst_cast<int*>(p);\n"), "const_cast")

    def test_a_safety_comment_on_the_line_or_above_passes(self):
        self.assert_found(self.text("const_cast<int*>(p);  // SAFETY: p was never const\n"))
        self.assert_found(self.text("// SAFETY: one\nauto* x =\n    f(\n    const_cast<int*>(p));\n"))
        self.assert_found(self.text("// SAFETY: a long\n// reason\n// of\n// five\n// lines\nconst_cast<int*>(p);\n"))
        self.assert_found(self.text("// SAFETY: all\n" + "const_cast<int*>(p);\n" * 6))
        scoped = "void f() {\n  // SAFETY (of the casts here): checked\n  a();\n  b();\n  c();\n  const_cast<int*>(p);\n}\n"
        self.assert_found(self.text(scoped))
        self.assert_found(self.text(scoped + "\n\n\n\nconst_cast<int*>(q);\n"), "const_cast")
        self.assert_found(self.text("// SAFETY:\nconst_cast<int*>(q);\n"), "const_cast")
        self.assert_found(self.text("// not code: const_cast<int*>(p)\n"))


class Readmes(Tree):
    def test_a_missing_and_an_endless_readme_are_found(self):
        self.write("src/base/README.md", "# base\n")
        self.write("src/kvm/README.md", "line\n" * (readmes.PAGE + 1))
        rooms = {"src/base": ("base", []), "src/kvm": ("kvm", []), "src/api": ("api", [])}
        self.assert_found(readmes.check(self.root, rooms), "more than a page", "src/api: no README.md")


class Promises(Tree):
    HEAD = "| promise | figure | held by |\n|---|---|---|\n"

    def promise(self, held_by):
        self.write("SPECIFICATION.md", f"{self.HEAD}| it works | yes | {held_by} |\n")
        self.write("docs/threat-model.md", f"| who | what |\n|---|---|\n| all | nothing |\n\n{self.HEAD}| it | is | `ci tsan` |\n")
        self.write("bench/boot.py", "")
        self.write("tools/lib/fuzz.sh", "")
        self.write(".ci/run", "stage tsan tools/devtool test --preset tsan\n")
        return promises.check(self.root, {"base.Error.named", "release.size"})

    def test_promises_that_something_holds_pass(self):
        self.assert_found(self.promise("`test base.Error.named`, `test release.*`, `bench boot --check`"))
        self.assert_found(self.promise("`devtool fuzz --seconds 600`, `ci tsan`"))

    def test_a_promise_that_nothing_holds_is_found(self):
        self.assert_found(self.promise("good will"), "names no `test`")
        self.assert_found(self.promise("`test base.Error.gone`"), "there is no test base.Error.gone")
        self.assert_found(self.promise("`bench boot`, `bench start --check`"), "there is no bench start --check")
        self.assert_found(self.promise("`devtool coverage`"), "there is no devtool coverage")
        self.assert_found(self.promise("`ci asan`"), "there is no ci asan")

    def test_a_missing_or_empty_specification_is_found(self):
        self.assert_found(promises.check(self.root, set()), "there is no SPECIFICATION.md", "there is no docs/threat-model.md")
        self.write("SPECIFICATION.md", self.HEAD)
        self.write("docs/threat-model.md", "| who | what |\n|---|---|\n| all | nothing |\n")
        self.assert_found(promises.check(self.root, set()), "SPECIFICATION.md: promises nothing",
                          "docs/threat-model.md: promises nothing")

    def test_tests_of_other_builds_are_read_from_cmake(self):
        self.assertEqual(promises.looped_tests("foreach(check size now)\n  add_test(NAME release.${check} COMMAND x"),
                         [("release", ["size", "now"])])


class Conformance(Tree):
    HEAD = "| section | a device | held by |\n|---|---|---|\n"

    def row(self, row):
        self.write("docs/virtio-conformance.md", f"{self.HEAD}{row}\n")
        return conformance.check(self.root, {"virtio.Queue.named", "virtio.Both/Queue.named/0"})

    def test_demands_that_a_test_holds_or_that_say_why_none_does_pass(self):
        self.assert_found(self.row("| 2.7.4.1 | MUST NOT assume | `test virtio.Queue.named`, `test virtio.*Queue.named*` |"))
        self.assert_found(self.row("| 2.1 | MUST wait | untested: no clock |"))

    def test_a_demand_that_nothing_holds_is_found(self):
        self.assert_found(self.row("| 2.1 | MUST wait | `test virtio.Queue.gone` |"), "there is no test virtio.Queue.gone")
        self.assert_found(self.row("| 2.1 | MUST wait | good will |"), "names no `test`")
        self.assert_found(self.row("| 2.1 | MUST wait | untested: |"), "names no `test`")

    def test_a_row_of_another_form_is_found(self):
        self.assert_found(self.row("| 2.1 | may wait | `test virtio.Queue.named` |"), "is no row")
        self.assert_found(self.row("| two | MUST wait | `test virtio.Queue.named` |"), "is no row")
        self.assert_found(self.row("| 2.1 | MUST wait |"), "is no row")

    def test_a_missing_or_empty_page_is_found(self):
        self.assert_found(conformance.check(self.root, set()), "there is no docs/virtio-conformance.md")
        self.assert_found(self.row(""), "demands nothing")


class ReleaseProgram(Tree):
    HARDENED = ("-O2 -fPIE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fcf-protection=full "
                "-static-pie -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack")
    PLAIN = ("-O0 -fno-PIE -no-pie -U_FORTIFY_SOURCE -fno-stack-protector -fcf-protection=none "
             "-Wl,-z,norelro -Wl,-z,lazy -Wl,-z,execstack")
    SOURCE = """
#include <cstdio>
#include <unistd.h>
int main(int argc, char** argv) {
  char buffer[64];
  const long got = read(argc > 3 ? 0 : -1, buffer, static_cast<unsigned long>(argc) * 8);
  return std::printf("%s %ld\\n", argv[argc - 1], got) < 0;
}
"""

    def compile(self, flags):
        self.write("program.cc", self.SOURCE)
        program = self.root / "program"
        subprocess.run([COMPILER, *flags.split(), "-o", str(program), str(self.root / "program.cc")], check=True,
                       stderr=subprocess.PIPE)
        return program

    def test_a_hardened_program_passes_and_runs_alone(self):
        program = self.compile(self.HARDENED)
        self.assert_found(release_program.hardening(program))
        self.assert_found(release_program.size(program, release_program.MAXIMUM_KIB * 1024))
        try:
            self.assert_found(release_program.empty_chroot(program))
        except SystemExit as skipped:
            self.assertEqual(skipped.code, 77)

    def test_every_lack_of_a_plain_program_is_found(self):
        problems = " ".join(release_program.hardening(self.compile(self.PLAIN)))
        for lack in ("not position independent", "a dynamic loader", "it needs libc", "no RELRO", "BIND_NOW",
                     "a segment (GNU_STACK) is both", "no stack protector", "no FORTIFY", "no landing pad"):
            self.assertIn(lack, problems)

    def test_flags_missing_from_a_static_program_are_found(self):
        for flag, lack in (("-fstack-protector-strong", "no stack protector"), ("-D_FORTIFY_SOURCE=2", "no FORTIFY"),
                           ("-fcf-protection=full", "no landing pad")):
            without = self.HARDENED.replace(flag, "-fno-stack-protector" if "stack" in flag else "")
            self.assert_found(release_program.hardening(self.compile(without)), lack)

    def test_a_program_that_is_too_big_is_found(self):
        program = self.compile(self.PLAIN)
        self.assert_found(release_program.size(program, 4096), "more than 4096")

    def test_a_program_that_needs_other_files_fails_in_an_empty_chroot(self):
        try:
            self.assert_found(release_program.empty_chroot(self.compile(self.PLAIN)), "ended with")
        except SystemExit as skipped:
            self.assertEqual(skipped.code, 77)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", default=COMPILER)
    options, rest = parser.parse_known_args()
    COMPILER = options.compiler
    unittest.main(argv=sys.argv[:1] + rest)
