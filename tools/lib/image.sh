# shellcheck shell=bash

image_help() {
  cat <<'HELP'
Usage: tools/devtool image [--output FILE] [--size SIZE] [--include PKG,...] [--exclude PATH,...] [--suite NAME]

Makes an ext4 image of a root file system from Debian's packages, and prints its path. It needs neither root nor
a loop device, takes seconds, and less when made before. Such a guest boots to a root shell on the serial console, takes its
address by DHCP or from ip= on the kernel's command line, and serves /var/www on port 80; `poweroff` ends it.

  --output FILE      the image (default build/root.ext4); a file of this name is replaced
  --size SIZE        of the file system: a number of MiB, or with a suffix: 256M, 2G (default: what the content
                     takes and 16 to 32 MiB more; free space costs nothing on the host's disk)
  --include PKG,...  further packages, with what they depend on: --include python3-minimal,iproute2
  --exclude PATH,... leave these paths out; * stands for anything: --exclude 'usr/share/doc,usr/lib/*/gconv'
  --suite NAME       the Debian release (default: this host's)

The packages are unpacked and not installed: no script of theirs is run, so that one that needs its set-up (users,
alternatives, generated files) wants that done inside the guest. Without --include a guest has libc6 and busybox.
The same packages, files and options give the same image, bit for bit.

Boot it, with a kernel that has the drivers for its disk built in, or with the initial RAM disk that loads them:

  K=$(resources/guest/debian_kernel.py)/vmlinux  I=$(resources/guest/initramfs.py root)
  mayfly run --kernel $K --initrd $I --rootfs build/root.ext4 --net user,forward=8080:80
HELP
}

image_main() {
  # devtool has gone to the project's folder; a FILE is meant where it was called.
  local output="$ROOT/build/root.ext4" options=() called_from="$OLDPWD"
  while (($# > 0)); do
    case "$1" in
      --output)
        output="$(option_value "$@")"
        if [[ "$output" != /* ]]; then output="$called_from/$output"; fi
        shift
        ;;
      --size | --include | --exclude | --suite)
        options+=("$1" "$(option_value "$@")")
        shift
        ;;
      *) usage_error "image has no option '$1'; see tools/devtool image --help" ;;
    esac
    shift
  done
  step "image, 1 of 2: packages"
  ensure_packages guest image
  ensure_package_lists busybox-static
  step "image, 2 of 2: the file system"
  python3 resources/guest/root_image.py --output "$output" "${options[@]}" || fail "$EXIT_FAILED" "there is no image"
  note "$(du -h --apparent-size -- "$output" | cut -f 1), of which $(du -h -- "$output" | cut -f 1) are on the disk"
}
