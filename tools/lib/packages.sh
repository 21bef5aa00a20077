# shellcheck shell=bash
# The Debian packages that each task needs, and installing those that are missing. The names hold for Debian 12
# (bookworm) and 13 (trixie).

# What compiling the project and its unit tests takes, and python3 for the project's own checks. GCC optimises at link
# time by way of make: without it on one core only, and with a warning.
readonly PACKAGES_build="g++ cmake ninja-build make ccache python3 libexpected-dev libcli11-dev nlohmann-json3-dev
  liburing-dev libseccomp-dev libgtest-dev libgmock-dev libbenchmark-dev"
# What a Linux guest is made of: a kernel's payload to unpack, an initramfs to pack.
readonly PACKAGES_guest="busybox-static cpio xz-utils lz4 zstd"
# An image of a root file system for it.
readonly PACKAGES_image="mmdebstrap fakeroot e2fsprogs debian-archive-keyring"
# The network of a guest without a tap.
readonly PACKAGES_network="passt"
# The processor that the guest runs on where the host has no hardware virtualization.
readonly PACKAGES_emulator="qemu-system-x86"
# Building the small guest kernel from Debian's source package.
readonly PACKAGES_kernel="gcc make flex bison bc libelf-dev libssl-dev xz-utils"
# The ACPI compiler that checks our tables; what a network without root is tested with, and the interfaces' tool; what
# reads the API's description, and the client that its page shows; what has the jailer's system calls fail.
readonly PACKAGES_test="acpica-tools passt iproute2 python3-yaml curl strace"
# What the devices are measured beside, and what counts their system calls; taps to measure with.
readonly PACKAGES_bench="fio strace iproute2"
readonly PACKAGES_style="clang-format clang-tidy clang shellcheck"
readonly PACKAGES_fuzz="clang llvm libclang-rt-dev"
readonly PACKAGES_coverage="gcovr"

readonly PACKAGE_GROUPS="build guest image network emulator kernel test bench style fuzz coverage"

# packages_of GROUP...: their names, one a line, each once.
packages_of() {
  local group variable
  for group in "$@"; do
    variable="PACKAGES_$group"
    xargs -n 1 <<<"${!variable}"
  done | sort -u
}

# Of the packages named on stdin, those that are not installed.
missing_packages() {
  local installed
  installed="$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | sort -u)"
  comm -13 <(printf '%s\n' "$installed") -
}

# Runs apt-get as root, without questions; its output goes to the log named first.
apt_get() {
  local log="$1" as_root=()
  shift
  if ((EUID != 0)); then
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null >>"$log" 2>&1
}

# ensure_packages GROUP...: installs what is missing of these groups; free of cost where nothing is. What is compiled
# also takes a header that no package has in the form needed.
ensure_packages() {
  install_missing "$@"
  if [[ " $* " == *" build "* ]]; then ensure_httplib; fi
}

install_missing() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    warn "this is not a Debian: devtool installs nothing here. It needs the equivalents of:" \
      "$(packages_of "$@" | paste -sd' ')"
    return
  fi
  local missing=() log
  mapfile -t missing < <(packages_of "$@" | missing_packages)
  if ((${#missing[@]} == 0)); then
    return
  fi
  if [[ -n "${MAYFLY_NO_INSTALL:-}" ]]; then
    fail "$EXIT_MACHINE" "missing packages (MAYFLY_NO_INSTALL is set, so they are left out): ${missing[*]}"
  fi
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    fail "$EXIT_MACHINE" "packages are missing and there is neither root nor sudo. As root, run:" \
      "apt-get install --no-install-recommends ${missing[*]}"
  fi
  mkdir -p -- "$ROOT/build/log"
  log="$ROOT/build/log/apt.log"
  : >"$log"
  step "installing these packages and what they depend on: ${missing[*]}"
  note "(takes a minute or a few; apt's own output: $log)"
  apt_get "$log" update || warn "apt-get update met a problem; going on with the lists that are there"
  if ! apt_get "$log" install --no-install-recommends -- "${missing[@]}"; then
    tail -n 25 -- "$log" >&2
    fail "$EXIT_MACHINE" "apt-get could not install them; its last words are above"
  fi
  note "installed: $(grep -c '^Setting up ' "$log" || true) packages"
}

# ensure_preset_packages PRESET: the groups that building it takes.
ensure_preset_packages() {
  case "$1" in
    fuzz) ensure_packages build fuzz ;;
    coverage) ensure_packages build coverage ;;
    *) ensure_packages build ;;
  esac
}

# ensure_package_lists PACKAGE: fetches apt's lists where they do not know the package.
ensure_package_lists() {
  command -v apt-cache >/dev/null || return 0
  if [[ -n "$(apt-cache madison "$1" 2>/dev/null)" || -n "${MAYFLY_NO_INSTALL:-}" ]]; then
    return
  fi
  step "fetching apt's package lists, to look up $1"
  mkdir -p -- "$ROOT/build/log"
  apt_get "$ROOT/build/log/apt.log" update || warn "apt-get update met a problem; see build/log/apt.log"
}
