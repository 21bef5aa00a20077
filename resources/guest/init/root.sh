#!/bin/busybox sh
# shellcheck shell=dash
# First process of a kernel whose disk and network drivers are modules: loads them, mounts the file system that the
# kernel's command line names by root=, and hands over to the init there.
/bin/busybox mkdir -p /bin /dev /proc /sys /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec < /dev/console > /dev/console 2>&1

while read -r module; do
    insmod "/modules/$module.ko" || echo "initramfs: cannot load the module $module"
done < /modules/load

root="" init=/sbin/init type="" options=ro
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        rootflags=*) options=$options,${word#rootflags=} ;;
        rw) options=$options,rw ;;
        ro) options=$options,ro ;;
    esac
done

# Without an init program to fall back on there is nothing to do but to say why; the kernel's panic= decides the rest.
give_up() {
    echo "initramfs: $*"
    exit 1
}

[ -n "$root" ] || give_up "the kernel's command line has no root="
# A disk is there when its driver has found it, in a while that nobody knows: look for up to 10 seconds.
tries=0
while :; do
    case $root in
        UUID=* | LABEL=*) device=$(findfs "$root" 2> /dev/null) ;;
        *) device=$root ;;
    esac
    [ -b "$device" ] && break
    tries=$((tries + 1))
    [ $tries -lt 200 ] || give_up "there is no block device $root; there are: $(cd /sys/block && echo *)"
    usleep 50000
done
mkdir /target
mount -o "$options" -t "${type:-ext4}" "$device" /target || give_up "cannot mount $root"
mount --move /dev /target/dev
mount --move /proc /target/proc
mount --move /sys /target/sys
exec switch_root /target "$init"
