# shellcheck shell=bash
# What the commands share that run Linux guests.

# What the machine that Linux guests run on is: the testbed decides and words it.
linux_tier() {
  python3 "$ROOT/tests/testbed/testbed.py" status
}

# ensure_guest_packages [GROUP...]: what a Linux guest takes, and the groups named; QEMU only where it stands in for
# the hardware, and the package lists, from which the kernel's package is looked up.
ensure_guest_packages() {
  ensure_packages guest "$@"
  if [[ "$(linux_tier)" != hardware:* ]]; then ensure_packages emulator; fi
  ensure_package_lists linux-image-cloud-amd64
}
