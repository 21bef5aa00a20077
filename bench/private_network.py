"""A network namespace of our own, so that a benchmark can make taps without touching the host's."""

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def enter():
    """Moves this process there, as root or, where the host lets ordinary users, as root of a user namespace."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    user, group = os.geteuid(), os.getegid()
    if unshare(CLONE_NEWNET) == 0:
        return
    if unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"no network namespace of our own: {os.strerror(code)}")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def make_tap(name):
    """A tap that is up and on which nobody but its user sends anything."""
    for command in (["ip", "tuntap", "add", "dev", name, "mode", "tap"],
                    ["sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1"], ["ip", "link", "set", name, "up"]):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0 and command[0] != "sysctl":  # a host may be without IPv6
            raise OSError(f"no tap of our own: {' '.join(command)}: {done.stderr.strip()}")
