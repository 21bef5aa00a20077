# shellcheck shell=bash

demo_help() {
  cat <<'HELP'
Usage: tools/devtool demo [--auto] [--verbose] [--cpus N] [--memory SIZE] [--job NAME[,NAME...]]

Boots Debian's own cloud kernel, unmodified, in a microVM. On a terminal it ends in a shell inside the microVM;
without a terminal, or with --auto, the guest says what it is and powers itself off.

The host's KVM is used where it has hardware virtualization; elsewhere the whole runs inside QEMU, which emulates such
a host (slower). Nothing is installed but the packages that building and booting take; the kernel
is downloaded once, unpacked, and kept in ~/.cache/mayfly.

  --auto         no shell: run the guest's `tour` and power off
  --verbose      show the guest kernel's own messages
  --cpus N       virtual processors (default 1)
  --memory SIZE  guest memory (default 512M)
  --job NAMES    what the guest does, instead of the shell or the tour: see resources/guest/init/init.sh
                 (info shows the whole machine; implies --auto)

Exit code: that of mayfly: 0 where the guest powered itself off.
HELP
}

demo_main() {
  local auto=0 quiet="quiet" cpus=1 memory=512M job=""
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
  if [[ ! -t 0 || ! -t 1 ]]; then auto=1; fi
  if [[ -z "$job" ]]; then
    if ((auto)); then job=tour; else job=shell; fi
  fi

  step "demo, 1 of 4: packages"
  ensure_packages build
  ensure_guest_packages
  step "demo, 2 of 4: mayfly itself"
  build_preset release mayfly
  step "demo, 3 of 4: Debian's kernel and a small user space"
  local kernel initramfs
  kernel="$(python3 resources/guest/debian_kernel.py)/vmlinux" || fail "$EXIT_FAILED" "there is no kernel to boot"
  initramfs="$(python3 resources/guest/initramfs.py busybox)" || fail "$EXIT_FAILED" "there is no user space to boot"
  step "demo, 4 of 4: the microVM, on $(linux_tier)"
  if ! ((auto)); then note "a shell follows: end it with poweroff or Control-D, the microVM by force with Control-A x"; fi

  local cmdline="console=ttyS0 reboot=k panic=-1${quiet:+ $quiet} mayfly.job=$job" code=0
  python3 tests/testbed/testbed.py attach "$RELEASE_PROGRAM" run --kernel "$kernel" --initrd "$initramfs" \
    --cpus "$cpus" --memory "$memory" --cmdline "$cmdline" || code=$?
  if ((code == 0)); then
    step "the guest has ended by itself, and mayfly with 0"
  else
    warn "mayfly ended with $code"
  fi
  exit "$code"
}
