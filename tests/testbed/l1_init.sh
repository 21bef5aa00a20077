#!/bin/busybox sh
# shellcheck shell=dash
# First process of the testbed's virtual machine: loads KVM, then does what the host asks for on the serial line.
#
#   kernel command line   testbed=serve   run the cases that are asked for, one after the other
#                         testbed=attach  run one command on the serial line itself, as on a terminal; the kernel's
#                                         own messages then go to the second one
#   host to here          "run NAME": run /cases/NAME; "quit"
#   here to host          "@ready"; "@begin NAME"; "@end NAME OFFSET SIZE": a tar archive of the case's folder lies
#                         there on the result disk; "@alive" every two seconds; "@error TEXT"
/bin/busybox mkdir -p /proc /sys /tmp /dev /cases
/bin/busybox --install -s /bin
export PATH=/bin HOME=/

# What runs here may make namespaces, or shut itself in by pivot_root, as passt does: neither can be done where the root
# is the initramfs itself, nor in a mere chroot. So this goes on in a mount of it that lies on top of it.
if [ "${1:-}" != inside ]; then
    mkdir /inside
    mount -o bind / /inside
    cd /inside || exit
    mount -o move . /
    exec chroot . /init inside
fi

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 pts /dev/pts
mount -t tmpfs shm /dev/shm
mkdir -p /etc
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' > /etc/passwd

say() { echo "$*" > /dev/console; }

for module in $(cat /modules/load); do
    insmod "/modules/$module.ko" || say "@error cannot load module $module"
done
# The kernel names the disk's device node when its driver has found it.
for try in 1 2 3 4 5 6 7 8 9 10; do
    [ -b /dev/vda ] && [ -c /dev/kvm ] && break
    sleep 0.1
done
[ -c /dev/kvm ] || say "@error no /dev/kvm"
[ -b /dev/vda ] || say "@error no result disk"

disk_offset=0
# Appends a tar archive of /cases/$1 to the result disk; $stored says where it lies.
store() {
    tar -C /cases -cf /tmp/result.tar "$1"
    size=$(stat -c %s /tmp/result.tar)
    dd if=/tmp/result.tar of=/dev/vda bs=65536 seek=$((disk_offset / 65536)) conv=notrunc,fsync 2> /tmp/dd.log ||
        say "@error result disk: $(cat /tmp/dd.log)"
    stored="$disk_offset $size"
    disk_offset=$(((disk_offset + size + 65535) / 65536 * 65536))
    rm -f /tmp/result.tar
}

serve() {
    stty -F /dev/ttyS0 -echo -onlcr
    case " $(cat /proc/cmdline) " in
        *" testbed.heartbeat=0 "*) ;;
        *) while sleep 2; do say "@alive"; done & ;;
    esac
    say "@ready"
    while read -r verb name; do
        case $verb in
            run)
                say "@begin $name"
                run_case "/cases/$name" || say "@error run_case failed for $name"
                store "$name"
                say "@end $name $stored"
                rm -rf "/cases/$name"
                ;;
            quit) break ;;
        esac
    done < /dev/ttyS0
}

attach() {
    cd /cases/attach || return
    setsid -c sh -c './attach < /dev/ttyS0 > /dev/ttyS0 2>&1; echo "exit $?" > result'
    store attach
}

case " $(cat /proc/cmdline) " in
    *" testbed=attach "*) attach ;;
    *) serve ;;
esac
reboot -f
