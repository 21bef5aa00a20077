# shellcheck shell=bash

# The jobs that init.sh knows; but for the one whose data is in the large initramfs only.
demo_jobs() {
  sed -n '/^run_job()/,/^}/s/^        \([a-z]*\)) .*/\1/p; /^run_job()/,/^}/s/^        \([a-z]*\))$/\1/p' \
    "$ROOT/resources/guest/init/init.sh" | grep -vx checksum
}

demo_help() {
  cat <<HELP
Usage: tools/devtool demo [--auto] [--verbose] [--cpus N] [--memory SIZE] [--job NAME[,NAME...]]

Boots Debian's own cloud kernel, unmodified, in a microVM with a disk, which holds a small Debian, and a network, and
fetches a page from the web server inside it. On a terminal it ends in a shell inside the microVM; without a terminal,
or with --auto, the guest is powered off once the page has come. The first run takes about two minutes once the
packages are installed, later ones seconds.

The host's KVM is used where it has hardware virtualization: the microVM's network is then that of an ordinary
program (passt), and a port of this host leads to its web server. Elsewhere the whole runs inside QEMU, which emulates
such a host (slower), and it is that host which fetches the page. Nothing is installed but the packages that building
and booting take; kernel and image are made once and kept in ~/.cache/mayfly, and what the guest writes is forgotten.

  --auto         no shell: fetch the page and power off
  --verbose      show the guest kernel's own messages
  --cpus N       virtual processors, 1 to 32 (default 1)
  --memory SIZE  guest memory in MiB, or with a suffix: 512M, 2G (default 512M)
  --job NAMES    no disk and no network, but an initial RAM disk whose first process does this in turn (info shows the
                 whole machine; halt and spin do not end by themselves; implies --auto). There are:
                 $(demo_jobs | paste -sd' ')

Exit code: that of mayfly: 0 where the guest powered itself off or Control-A x ended it.
HELP
}

demo_main() {
  # Without the kernel's errors, too: that it finds no PCI is one to it.
  local auto=0 quiet="quiet loglevel=3" cpus=1 memory=512M job=""
  while (($# > 0)); do
    case "$1" in
      --auto) auto=1 ;;
      --verbose) quiet="" ;;
      --cpus) cpus="$(option_value "$@")"; shift ;;
      --memory) memory="$(option_value "$@")"; shift ;;
      --job) job="$(option_value "$@")"; auto=1; shift ;;
      *) usage_error "demo has no option '$1'; see tools/devtool demo --help" ;;
    esac
    shift
  done
  demo_check "$cpus" "$memory" "$job"
  if [[ ! -t 0 || ! -t 1 ]]; then auto=1; fi

  step "demo, 1 of 4: packages"
  ensure_packages build
  ensure_guest_packages image
  local hardware=0
  if [[ "$(linux_tier)" == hardware:* ]]; then
    hardware=1
    ensure_packages network
  fi
  step "demo, 2 of 4: mayfly itself"
  build_preset release mayfly
  step "demo, 3 of 4: Debian's kernel and a small Debian"
  local kernel initramfs image
  kernel="$(python3 resources/guest/debian_kernel.py)/vmlinux" || fail "$EXIT_FAILED" "there is no kernel to boot"
  local command=("$RELEASE_PROGRAM" run --kernel "$kernel" --cpus "$cpus" --memory "$memory")
  local cmdline="console=ttyS0 reboot=k panic=-1${quiet:+ $quiet}"
  if [[ -n "$job" ]]; then
    initramfs="$(python3 resources/guest/initramfs.py busybox)" || fail "$EXIT_FAILED" "there is no user space to boot"
    cmdline+=" mayfly.job=$job mayfly.marks=off"
  else
    initramfs="$(python3 resources/guest/initramfs.py root)" || fail "$EXIT_FAILED" "there is no initramfs to boot"
    image="$(python3 resources/guest/root_image.py)" || fail "$EXIT_FAILED" "there is no user space to boot"
    local network=tap mode=shell
    if ((auto)); then mode=auto; fi
    if ((hardware)); then
      network="$(demo_free_port)"
    else
      # On a tap nobody gives addresses away.
      cmdline+=" ip=172.16.0.2::172.16.0.1:255.255.255.0::eth0:off"
    fi
    command=("$LIB/demo_host.sh" "$network" "$mode" "$image" "${command[@]}")
  fi
  # The testbed says next where it runs, and why.
  step "demo, 4 of 4: the microVM"
  if ! ((auto)); then
    note "a shell follows: end the microVM with poweroff, by force with Control-A x"
    if ((hardware)); then note "its web server: http://127.0.0.1:$network/"; fi
  fi

  local code=0
  python3 tests/testbed/testbed.py attach "${command[@]}" --initrd "$initramfs" --cmdline "$cmdline" || code=$?
  # mayfly has no such code: the testbed says by it that it failed itself.
  if ((code == 125)); then fail "$EXIT_FAILED" "the microVM could not be run, or served no page; the reason is above"; fi
  step "the microVM has ended; mayfly's exit code is $code"
  exit "$code"
}

# A port of this host that is free, 8080 if it is.
demo_free_port() {
  python3 - <<'PYTHON'
import socket

for port in (8080, 0):
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            print(listener.getsockname()[1])
            break
    except OSError:
        pass
PYTHON
}

# demo_check CPUS MEMORY JOBS: refuses before anything is installed or built what mayfly or the guest would refuse.
demo_check() {
  local cpus="$1" memory="$2" job jobs
  if ! [[ "$cpus" =~ ^[0-9]{1,2}$ ]] || ((10#$cpus < 1 || 10#$cpus > 32)); then
    usage_error "--cpus takes a number from 1 to 32, not '$cpus'"
  fi
  [[ "$memory" =~ ^0*[1-9][0-9]{0,8}[MmGg]?$ ]] ||
    usage_error "--memory takes a number of MiB, or a size such as 512M or 2G, not '$memory'"
  read -r -a jobs <<<"${3//,/ }"
  for job in "${jobs[@]}"; do
    demo_jobs | grep -xF -- "$job" >/dev/null ||
      usage_error "--job: there is no job '$job'; there are: $(demo_jobs | paste -sd' ')"
  done
}
