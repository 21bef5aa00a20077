# shellcheck shell=dash
# Words for the scripts that guests run: see virtio_test.py. This stands at the head of each.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin  # e2fsprogs before busybox

die() {
    echo "FAILED: $*"
    exit 1
}

same() { [ "$1" = "$2" ] || die "$3: '$1' is not '$2'"; }

sum() { md5sum < "$1" | cut -d ' ' -f 1; }

# What is read next comes from the disk.
forget() {
    sync
    echo 3 > /proc/sys/vm/drop_caches
}

# direct OPERAND...: dd without the page cache.
direct() { dd "$@" 2> /tmp/dd || die "dd $*: $(cat /tmp/dd)"; }

# noise FILE MIB: random bytes, of which the sum is said.
noise() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2> /dev/null; }

# up INTERFACE ADDRESS
up() {
    ip addr add "$2/24" dev "$1"
    ip link set "$1" up
}

# Until a command succeeds, for ten seconds.
patiently() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || die "not in ten seconds: $*"
        usleep 100000
    done
}

mkdir -p /mnt
# The drivers of a kernel that has them as modules.
if [ -e /modules/load ]; then
    while read -r module; do insmod "/modules/$module.ko"; done < /modules/load
    patiently test -e /sys/bus/virtio/drivers
fi

# Standard input that neither says anything nor ends, for `nc`: it hangs up where its own ends.
idle=/tmp/idle
mkfifo $idle

# fetch ADDRESS PORT FILE, send ADDRESS PORT FILE
fetch() { nc "$1" "$2" > "$3" 0<> $idle; }
send() { nc "$1" "$2" < "$3"; }

# What may be a complaint in the kernel's log; virtio_test.py looks closer. The rest is not said: a serial port is slow.
complaints() {
    echo "GUEST begin complaints"
    stty echo < /dev/console || :  # what was said is out before the kernel's last words are
    dmesg -r | grep -iE '^<[0-9]*[0-4]>|warn|bug|oops|trace|acpi|msr|lockup|stall|unstable|error|fail|invalid|corrupt' || :
    echo "GUEST end complaints"
}
