#!/bin/sh
# shellcheck shell=dash
# What init does first: the file systems, the network, the web server. Heeds these words of the kernel's command line:
#   ip=...           as the kernel's own (Documentation/admin-guide/nfs/nfsroot.rst): a static address, dhcp, or off;
#                    without it the network is set up by DHCP
#   ro               the root file system stays read-only
#   mayfly.run=FILE  no shell: run this script and power off; of a block device its first 64 KiB, zero bytes left out
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# An initramfs has mounted these already; some kernels mount /dev themselves.
[ -e /proc/cmdline ] || mount -t proc proc /proc
[ -e /sys/class ] || mount -t sysfs sys /sys
[ -e /dev/ttyS0 ] || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp

script="" address=dhcp writable=yes
for word in $(cat /proc/cmdline); do
    case $word in
        ip=*) address=${word#ip=} ;;
        ro) writable="" ;;
        rw) writable=yes ;;
        mayfly.run=*) script=${word#mayfly.run=} ;;
    esac
done
# A read-only disk refuses it; everything here works without.
if [ -n "$writable" ]; then mount -o remount,rw / 2> /dev/null; fi

hostname -F /etc/hostname
ip link set lo up

# The static form's fields: address:server:gateway:netmask:hostname:device:autoconf:dns:dns
static() {
    local client gateway mask name device dns other
    IFS=: read -r client _ gateway mask name device _ dns other _ <<WORDS
$1
WORDS
    device=${device:-eth0}
    [ -e "/sys/class/net/$device" ] || return
    if [ -n "$name" ]; then hostname "$name"; fi
    # The kernel may have done it already, and has not if it was built without.
    ip addr flush dev "$device"
    eval "$(busybox ipcalc -p "$client" "${mask:-255.255.255.0}")"
    ip addr add "$client/$PREFIX" broadcast + dev "$device"
    ip link set "$device" up
    if [ -n "$gateway" ]; then ip route add default via "$gateway"; fi
    for server in $dns $other; do echo "nameserver $server"; done > /run/resolv.conf
}

by_dhcp() {
    [ -e /sys/class/net/eth0 ] || return
    ip link set eth0 up
    udhcpc -i eth0 -b -t 5 -T 1 -x "hostname:$(hostname)" -s /etc/dhcp.sh -p /run/udhcpc.pid > /run/udhcpc.log 2>&1
}

case $address in
    off | none) ;;
    dhcp | on | any | both | "" | :*) if [ -n "$script" ]; then by_dhcp; else by_dhcp & fi ;;
    *) static "$address" ;;
esac

. /etc/os-release
mkdir /run/www
cat > /run/www/index.html <<PAGE
<!DOCTYPE html>
<title>$(hostname)</title>
<h1>Hello from $(hostname)</h1>
<p>$PRETTY_NAME with Linux $(uname -r) in a microVM:
$(grep -c ^processor /proc/cpuinfo) processor(s), $(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024)) MiB of memory,
MAC address $(cat /sys/class/net/eth0/address 2> /dev/null || echo none).
Up after $(cut -d ' ' -f 1 /proc/uptime) s.</p>
PAGE
httpd -h /var/www

if [ -z "$script" ]; then exit; fi
if [ -b "$script" ]; then
    head -c 65536 "$script" | tr -d '\0' > /run/script
    script=/run/script
fi
echo "GUEST begin run"
cd /root || exit
sh "$script"
echo "GUEST end run status $?"
poweroff
