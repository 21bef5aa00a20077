#!/usr/bin/python3
"""Makes an ext4 root file system image for a guest from Debian packages, without root and without mounting anything.

In it are the packages asked for with what they depend on, busybox for everything else (init, shell, DHCP client, web
server), and the files of image/. The packages' own installation scripts are not run: most programs do not mind.
"""

import fnmatch
import io
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import recipe
from recipe import HERE, RecipeError, say

# Dash and bash, because busybox's shell takes its own ip, ping and tar where the real ones are there as well.
BASE_PACKAGES = ("base-files", "bash", "busybox-static", "dash", "netbase")
# What the packages hold and no guest of ours needs; the copyright files stay.
DROPPED = ("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/doc-base",
           "usr/share/initramfs-tools", "usr/share/bash-completion", "usr/share/perl5/Debconf", "var/cache", "var/lib/apt",
           "var/lib/dpkg", "etc/apt", "dev")
# Since Debian 13 packages bring their files in these already.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
FOLDERS = ("dev", "etc/init.d", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64",
           "var/log", "var/tmp", "var/www")
FILES = {"etc/inittab": "inittab", "etc/init.d/start": "start.sh", "etc/dhcp.sh": "dhcp.sh", "etc/profile": "profile",
         "etc/motd": "motd"}
TEXTS = {"etc/hostname": "microvm\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 microvm\n",
         "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
                       "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
         "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nwww-data:x:33:\nnogroup:x:65534:\n",
         "etc/fstab": "/dev/root / ext4 defaults 0 1\n"}
LINKS = {"usr/bin/sh": "dash", "etc/resolv.conf": "/run/resolv.conf", "etc/mtab": "/proc/mounts", "var/run": "/run",
         # Made when the guest starts: it says which one this is.
         "var/www/index.html": "/run/www/index.html"}
DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3)}
EPOCH = 1577836800  # 2020-01-01: the time of every file, so that one input gives one image
PACKAGE_NAME = r"[a-z0-9][a-z0-9+.-]+"
FIRST_INODE = 12  # after the reserved ones and lost+found
MIB = 1 << 20


def build(size=None, include=(), exclude=(), suite=None):
    """The path of the image: of `size` bytes, with the packages of `include` and without the paths of `exclude`."""
    packages = sorted({*BASE_PACKAGES, *include})
    archive = packages_archive(packages, suite or host_suite())
    sources = [HERE / "image" / name for name in sorted(FILES.values())]
    key = recipe.digest(archive.parent.name, str(size), " ".join(exclude), *sources, HERE / "root_image.py", HERE / "recipe.py")
    return recipe.cached("root-image", key, lambda folder: make_image(folder, archive, size, exclude, key)) / "root.ext4"


def host_suite():
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=")[1].strip('"')
    raise RecipeError("this system's release is unknown: name one with --suite")


# --- the packages ------------------------------------------------------------------------------------------------

def packages_archive(packages, suite):
    """A tar archive of the packages' content, with that of all they depend on."""
    own = suite == host_suite()
    # What apt would install today belongs to the key, so that an update comes in; of another suite apt knows nothing.
    versions = recipe.debian_versions(packages) if own else {}
    key = recipe.digest(suite, " ".join(packages), " ".join(versions.values()), HERE / "root_image.py")
    return recipe.cached("root-packages", key,
                         lambda folder: fetch_packages(folder, packages, suite, own)) / "packages.tar.gz"


def fetch_packages(folder, packages, suite, own):
    recipe.need_tools("mmdebstrap", "fakeroot", "apt-get=apt")
    # chrootless and extract: nothing of the packages is executed, so that neither root nor a namespace is needed.
    command = ["fakeroot", "mmdebstrap", "--mode=chrootless", "--variant=extract", f"--include={','.join(packages)}",
               f"--extract-hook=ls \"$1/var/cache/apt/archives\" > {shlex.quote(str(folder / 'downloaded'))}",
               *(f"--aptopt={line}" for line in apt_settings()), suite, str(folder / "packages.tar.gz")]
    sources = host_sources(suite) if own else ""
    if sources:
        command.append("-")
    say(f"fetching {' '.join(packages)} and what they need, of Debian {suite}")
    environment = dict(os.environ, LC_ALL="C", PATH=recipe.search_path(), TMPDIR=str(folder))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          env=environment) as process:
        try:
            process.stdin.write(sources.encode())
            process.stdin.close()
            said = follow(process.stderr)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise RecipeError(f"mmdebstrap failed ({process.returncode}): {said[-2000:].strip()}")


def follow(stream):
    """Shows the longer steps of mmdebstrap; returns all it said."""
    said = []
    for line in stream:
        text = line.decode(errors="replace")
        said.append(text)
        if re.match(r"I: (running apt-get update|downloading packages|extracting archives|creating tarball)", text):
            say("  " + text[3:].rstrip(". \n"))
    return "".join(said)


def host_sources(suite):
    """The lines of a sources.list by which this host's apt gets Debian `suite`; none where it is not plain."""
    known = recipe.run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT) $(CODENAME) $(ORIGIN)",
                        "Created-By: Packages"]).decode()
    lines = []
    for line in known.splitlines():
        words = line.split()
        # Debian's own, and of these what a fresh system has; another's packages are for the host alone.
        if len(words) == 5 and words[4] == "Debian" and words[3] in (suite, f"{suite}-updates", f"{suite}-security"):
            lines.append(f"deb {words[0]} {words[1]} {words[2]}\n")
    return "".join(dict.fromkeys(lines))


def apt_settings():
    """How this host's apt gets to the network: a proxy, above all."""
    settings = recipe.run(["apt-config", "dump"]).decode().splitlines()
    wanted = re.compile(r'Acquire::(http|https|Check-Valid-Until)\b.* "(?!")')
    return [line for line in settings if wanted.match(line)] + ['Acquire::Languages "none";']


# --- the tree ----------------------------------------------------------------------------------------------------

class Tree:
    """The files of an image to be: path -> (its tar header, its data or None)."""

    def __init__(self):
        self.entries = {}
        for folder in FOLDERS:
            self.add_folder(folder)

    def take(self, archive, exclude):
        """Everything of an open tar archive that belongs into an image."""
        for member in archive:
            path = merged(posixpath.normpath(member.name))
            if path in (".", *MERGED) or is_below(path, (*DROPPED, *exclude)):
                continue
            if path.startswith("usr/share/doc/") and member.isfile() and not path.endswith("/copyright"):
                continue
            if member.islnk():
                member.linkname = merged(posixpath.normpath(member.linkname))
            elif member.issym():
                member.linkname = link_target(posixpath.normpath(member.name), member.linkname)
            data = archive.extractfile(member).read() if member.isreg() else None
            self._put(path, member, data)
        for folder, link in [(name, f"usr/{name}") for name in MERGED]:
            if link in self.entries:
                self.add_link(folder, link)

    def add_folder(self, path, mode=0o755):
        if path not in self.entries:
            parent = posixpath.dirname(path)
            if parent:
                self.add_folder(parent)
            self._put(path, header(tarfile.DIRTYPE, 0o1777 if path in ("tmp", "var/tmp") else mode))

    def add_file(self, path, data, mode=0o644):
        info = header(tarfile.REGTYPE, mode)
        info.size = len(data)
        self._put(path, info, data)

    def add_link(self, path, target):
        info = header(tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._put(path, info)

    def add_device(self, path, numbers):
        info = header(tarfile.CHRTYPE, 0o600 if path == "dev/console" else 0o666)
        info.devmajor, info.devminor = numbers
        self._put(path, info)

    def has_program(self, name):
        return any(f"{folder}/{name}" in self.entries for folder in ("usr/bin", "usr/sbin"))

    def write(self, out):
        # A hard link after all that it may point to; otherwise by name, so that one input gives one archive.
        for path in sorted(self.entries, key=lambda path: (self.entries[path][0].islnk(), path)):
            info, data = self.entries[path]
            out.addfile(info, None if data is None else io.BytesIO(data))

    def _put(self, path, info, data=None):
        info.name = path
        info.mtime = EPOCH
        info.uname = info.gname = ""
        info.pax_headers = {}
        self.entries[path] = (info, data)


def header(kind, mode):
    info = tarfile.TarInfo()
    info.type, info.mode = kind, mode
    return info


def merged(path):
    """The path as it is where /bin is a link to /usr/bin, and so on."""
    return f"usr/{path}" if path.split("/")[0] in MERGED else path


def link_target(path, target):
    """What a symbolic link says once its place has moved below /usr: one that climbs would climb too little."""
    if path.split("/")[0] in MERGED and target.startswith(".."):
        return posixpath.normpath(f"/{posixpath.dirname(path)}/{target}")
    return target


def is_below(path, patterns):
    return any(fnmatch.fnmatchcase(path, wanted) or fnmatch.fnmatchcase(path, f"{wanted}/*") for wanted in patterns)


def fill(tree, archive, exclude, applets, downloaded):
    """Puts into the tree what an image of these packages holds; `applets`: what to link to busybox."""
    tree.take(archive, [pattern.strip("/") for pattern in exclude])
    for path, source in FILES.items():
        tree.add_file(path, (HERE / "image" / source).read_bytes(), 0o755 if source.endswith(".sh") else 0o644)
    for path, text in TEXTS.items():
        tree.add_file(path, text.encode())
    for path, target in LINKS.items():
        tree.add_link(path, target)
    for path, numbers in DEVICES.items():
        tree.add_device(path, numbers)
    tree.add_file("etc/packages", "".join(f"{name.removesuffix('.deb')}\n" for name in downloaded).encode())
    for name in applets:
        if not tree.has_program(name):
            tree.add_link(f"usr/{'sbin' if name in ('init', 'poweroff', 'reboot', 'halt') else 'bin'}/{name}",
                          "/usr/bin/busybox")


# --- the image ---------------------------------------------------------------------------------------------------

def make_image(folder, archive, size, exclude, name):
    """Writes root.ext4 into the folder; its UUID follows from `name`."""
    recipe.need_tools("mke2fs=e2fsprogs", "debugfs=e2fsprogs", "fakeroot", "tar")
    tree = Tree()
    downloaded = sorted(name for name in (archive.parent / "downloaded").read_text(encoding="ascii").split()
                        if name.endswith(".deb"))
    with tarfile.open(archive) as packages:
        fill(tree, packages, exclude, busybox_applets(packages, folder), downloaded)
    content = sum((len(data or b"") + 4095) // 4096 * 4096 + 512 for _, data in tree.entries.values())
    least = content + content // 16 + 8 * MIB
    if size is not None and size < least:
        raise RecipeError(f"the content takes {-(-least // MIB)} MiB: a size of {size // MIB} MiB is too small")
    size = size or (least + 32 * MIB - 1) // (16 * MIB) * (16 * MIB)
    say(f"making a file system of {size // MIB} MiB with {len(tree.entries)} files, {content // MIB} MiB")
    with tarfile.open(folder / "tree.tar", "w", format=tarfile.GNU_FORMAT) as out:
        tree.write(out)
    image = folder / "root.ext4"
    with open(image, "wb") as file:
        file.truncate(size)
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"mayfly-root-{name}")
    # Features that the e2fsprogs and kernels of Debian 12 and 13 agree on; the inode tables are written at once,
    # because the guest's kernel would otherwise do it in the background.
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "mayfly-root", "-U", str(identity),
            "-O", "^orphan_file,^metadata_csum_seed", "-E",
            f"hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0,no_copy_xattrs,nodiscard", "-d", "tree", "root.ext4"]
    # One fakeroot for both: it remembers the owners and device nodes that only root may make, and mke2fs asks for them.
    script = f"mkdir tree && tar --numeric-owner -xpf tree.tar -C tree && exec {shlex.join(make)}"
    fixed_clock = {"E2FSPROGS_FAKE_TIME": str(EPOCH)}
    recipe.run(["fakeroot", "sh", "-c", script], cwd=folder, variables=fixed_clock)
    # mke2fs takes these times from the files that it reads, and no archive can set them.
    times = (f"set_inode_field <{number}> {field} @{EPOCH}\n" for number in range(FIRST_INODE, inodes_end(image))
             for field in ("atime", "ctime", "crtime"))
    recipe.run(["debugfs", "-w", "-f", "/dev/stdin", image], input="".join(times).encode(), variables=fixed_clock)
    (folder / "tree.tar").unlink()
    shutil.rmtree(folder / "tree")


def inodes_end(image):
    """The number after that of the last inode in use: they are given in turn, and none has been removed."""
    said = recipe.run(["dumpe2fs", "-h", image]).decode()
    counts = {name: int(re.search(rf"^{name}:\s+(\d+)$", said, re.M)[1]) for name in ("Inode count", "Free inodes")}
    return counts["Inode count"] - counts["Free inodes"] + 1


def busybox_applets(archive, folder):
    """What the image's own busybox can do."""
    member = next((member for member in archive
                   if merged(posixpath.normpath(member.name)) == "usr/bin/busybox"), None)
    if member is None:
        raise RecipeError("the packages hold no busybox")
    program = folder / "busybox"
    program.write_bytes(archive.extractfile(member).read())
    program.chmod(0o755)
    try:
        return recipe.run([program, "--list"]).decode().split()
    finally:
        program.unlink()


# --- the command line --------------------------------------------------------------------------------------------

def parse_size(text):
    found = re.fullmatch(r"([1-9]\d{0,9})([MG])?", text, re.I)
    if not found:
        raise RecipeError(f"'{text}' is no size: a number of MiB, or with a suffix: 256M, 2G")
    size = int(found[1]) * (1024 if (found[2] or "").upper() == "G" else 1) * MIB
    if size > 1 << 44:  # what ext4 takes with blocks of 4 KiB
        raise RecipeError(f"{text} is more than the 16 TiB that the file system can be")
    return size


def parse_names(text, pattern, what):
    names = [name for name in re.split(r"[,\s]+", text) if name]
    for name in names:
        if not re.fullmatch(pattern, name):
            raise RecipeError(f"'{name}' is no {what}")
    return names


def main_build(output, size, include, exclude, suite):
    image = build(parse_size(size) if size else None, parse_names(include, PACKAGE_NAME, "package's name"),
                  parse_names(exclude, r"\S+", "path"), *parse_names(suite or "", r"[a-z][a-z0-9-]*", "release's name")[:1])
    return copy(image, Path(output)) if output else image


def copy(image, target):
    """A copy to write to, whole or not at all: a microVM that runs from the file of this name keeps what it has."""
    if target.exists() and not target.is_file():
        raise RecipeError(f"{target} is there and no plain file")
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recipe.run(["cp", "--sparse=always", "--reflink=auto", image, partial])
        partial.chmod(0o644)
        partial.rename(target)
    except OSError as problem:
        raise RecipeError(f"{target}: {problem.strerror}") from problem
    finally:
        partial.unlink(missing_ok=True)
    return target


def main():
    parser = recipe.parser(__doc__)
    parser.add_argument("--output", metavar="FILE", help="copy the image there; without it the cached one, not to be written to")
    parser.add_argument("--size", help="of the file system: MiB, or 512M, 2G (default: the content and 16 to 32 MiB more)")
    parser.add_argument("--include", default="", metavar="PKG,...", help="further packages")
    parser.add_argument("--exclude", default="", metavar="PATH,...", help="paths to leave out; * stands for anything")
    parser.add_argument("--suite", help="Debian release (default: this host's)")
    return recipe.build_and_print(main_build, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
