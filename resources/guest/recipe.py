"""What every guest recipe shares: the cache, its locks, progress lines and Debian's packages.

A recipe turns inputs (its own files, a Debian package version) into a directory of artifacts. The directory's
name carries a hash of the inputs, so a changed input is a new directory and an unchanged one costs nothing.
It is filled under a temporary name and renamed when whole: an interrupted build leaves nothing that looks built.

Standard library only: this has to run on a bare Debian with /usr/bin/python3.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class RecipeError(Exception):
    """Something the reader of the message can act on: printed without a traceback."""


def say(text):
    """Progress goes to stderr: stdout carries only the path that was asked for."""
    print(f"[{Path(sys.argv[0]).stem}] {text}", file=sys.stderr, flush=True)


def cache_root():
    own = os.environ.get("MAYFLY_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mayfly"


def digest(*inputs):
    """Hash of the inputs: a Path counts with its content, anything else with its text."""
    total = hashlib.sha256()
    for item in inputs:
        data = item.read_bytes() if isinstance(item, Path) else str(item).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on `path`, waiting for (and naming) whoever has it. Dies with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building this; waiting for {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached(name, key, build):
    """The directory of artifact `name` with input hash `key`; calls build(directory) where it is not there yet."""
    home = cache_root() / name
    final = home / key
    if final.is_dir():
        return final
    with locked(home / f"{key}.lock"):
        if final.is_dir():  # built by the process that was waited for
            return final
        partial = home / f".{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of an interrupted build; the lock says nobody is in it
        partial.mkdir(parents=True)
        started = time.monotonic()
        say(f"building {name} (once; kept in {final})")
        try:
            build(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(final)
        say(f"{name} is ready after {time.monotonic() - started:.0f} s")
    return final


def need_tools(*tools):
    """Fails with the packages to install where a program is missing. Each entry is "program" or "program=package"."""
    pairs = [tool.split("=") for tool in tools]
    missing = [pair[-1] for pair in pairs if not shutil.which(pair[0], path=search_path())]
    if missing:
        raise RecipeError("missing programs; install them with: apt-get install " + " ".join(dict.fromkeys(missing)))


def search_path():
    """PATH with the sbin folders, which Debian leaves out for users."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def run(command, variables=None, **options):
    """Runs a program to its end and returns its stdout; a failure carries the command and what it said."""
    environment = dict(os.environ, LC_ALL="C", PATH=search_path(), **(variables or {}))
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=environment, check=False, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise RecipeError(f"{' '.join(str(w) for w in command)} failed ({done.returncode}): {said[-2000:]}")
    return done.stdout


def static_program(source, *headers):
    """The program of the one file in C `source`, and what it includes, compiled once, that runs in any Linux of this
    architecture."""
    def build(directory):
        need_tools("cc=gcc")
        run(["cc", "-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-o", directory / source.stem, source])

    return cached(f"program-{source.stem}", digest(source, *headers), build) / source.stem


def debian_dependency(package, pattern):
    """The package matching `pattern` that a Debian metapackage of this release depends on."""
    need_tools("apt-cache=apt", "apt-get=apt")
    text = run(["apt-cache", "depends", package]).decode()
    for line in text.splitlines():
        found = re.match(r"\s*Depends: (" + pattern + r")$", line)
        if found:
            return found[1]
    raise RecipeError(f"apt knows no {package} that depends on {pattern}: is this Debian 12 or 13, "
                      "and has `apt-get update` been run?")


def debian_version(package):
    """The version of `package` that apt would install."""
    return debian_versions([package])[package]


def debian_versions(packages):
    """package -> the version that apt would install, of each."""
    text = run(["apt-cache", "policy", *packages]).decode()
    found = dict(re.findall(r"^(\S+):\n.*\n  Candidate: (\S+)$", text, re.M))
    for package in packages:
        if found.get(package, "(none)") == "(none)":
            raise RecipeError(f"apt has no candidate for {package}: is the name right, and has `apt-get update` "
                              "been run?")
    return {package: found[package] for package in packages}


def debian_unpack(package, version, directory):
    """Downloads `package` and unpacks (never installs) it into `directory`."""
    need_tools("dpkg-deb=dpkg")
    directory.mkdir(parents=True, exist_ok=True)
    say(f"downloading {package} {version}")
    # Sandbox::User: as root apt would switch to a user that may not write here, and warn that it did not.
    run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"], cwd=directory)
    archives = list(directory.glob("*.deb"))
    if len(archives) != 1:
        raise RecipeError(f"expected one package in {directory}, found {len(archives)}")
    run(["dpkg-deb", "-x", archives[0], directory])
    archives[0].unlink()


def main(description, build, **flags):
    """A recipe's command line: builds, then prints the artifact directory. `flags` become positional choices."""
    options = parser(description)
    for flag, choices in flags.items():
        options.add_argument(flag, choices=choices, help="which one to build")
    return build_and_print(build, options.parse_args())


def parser(description):
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Prints the path of the artifacts on stdout, progress on stderr. Built once and kept in "
               "$MAYFLY_CACHE_DIR, $XDG_CACHE_HOME/mayfly or ~/.cache/mayfly; removing that folder is always safe.")


def build_and_print(build, options):
    """Calls build(option=value, ...) and prints what it returns; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that what is half made goes
    try:
        print(build(**vars(options)))
    except RecipeError as problem:
        say(f"error: {problem}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half made is left")
        return 130
    return 0
