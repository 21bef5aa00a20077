#!/bin/busybox sh
# shellcheck shell=dash
# First process of a guest: does the jobs that its kernel command line names, mayfly.job=ONE,TWO,..., in turn.
# Without any it opens a shell. Every job is framed by two lines that a test can look for, but with mayfly.marks=off.
/bin/busybox mkdir -p /bin /dev /proc /sys /tmp /root
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux
mount -t devtmpfs dev /dev 2> /dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
exec < /dev/console > /dev/console 2>&1

show() {
    echo "--- $1"
    cat "$1"
}

run_job() {
    case $1 in
        cpus) echo "online $(cat /sys/devices/system/cpu/online) processors $(grep -c ^processor /proc/cpuinfo)" ;;
        memory) grep -E "System RAM$" /proc/iomem && grep ^MemTotal: /proc/meminfo ;;
        info)
            for file in /proc/cmdline /proc/cpuinfo /proc/iomem /proc/ioports /proc/interrupts /proc/meminfo; do
                show $file
            done
            echo "--- clocksource"
            cat /sys/devices/system/clocksource/clocksource0/current_clocksource
            echo "--- vmgenid"
            ls /sys/bus/*/drivers/vmgenid 2> /dev/null
            echo "--- dmesg"
            dmesg -r
            echo "--- end"
            ;;
        # What whoever made the initramfs put there.
        script) sh /etc/script ;;
        checksum) cd / && md5sum -c payload.md5 ;;
        echo)
            echo "waiting for a line"
            read -r line && echo "heard: $line"
            ;;
        tour)
            uname -sr
            echo "$(grep -c ^processor /proc/cpuinfo) processors, $(($(grep ^MemTotal: /proc/meminfo |
                tr -dc 0-9) / 1024)) MiB of memory, up for $(cut -d ' ' -f 1 /proc/uptime) s"
            ;;
        shell)
            echo
            echo "Welcome to $(uname -sr) in a Mayfly microVM, up after $(cut -d ' ' -f 1 /proc/uptime) s."
            echo "This is busybox; \`poweroff\`, \`reboot\` or Control-D ends the machine."
            echo
            cd /root || return
            ENV=/etc/shell setsid cttyhack sh
            poweroff -f
            ;;
        # To the kernel `poweroff` and `halt -p` are one and the same request.
        poweroff) poweroff -f ;;
        reboot) reboot -f ;;
        # The processors stop with interrupts off; the machine stays.
        halt) halt -f ;;
        spin)
            echo "spinning"
            while :; do :; done
            ;;
        # The kernel panics when its first process ends.
        panic) exit 1 ;;
        *)
            echo "no such job: $1"
            return 1
            ;;
    esac
}

jobs=shell
marks=on
for word in $(cat /proc/cmdline); do
    case $word in
        mayfly.job=*) jobs=${word#mayfly.job=} ;;
        mayfly.marks=*) marks=${word#mayfly.marks=} ;;
    esac
done
mark() {
    if [ "$marks" = on ]; then echo "GUEST $*"; fi
}
for job in $(echo "$jobs" | tr , ' '); do
    mark begin "$job"
    # Changing a setting waits until all that was written is out: the kernel's last words must not break into ours.
    stty echo
    run_job "$job"
    mark end "$job" status $?
done
# Nothing asked for an end: this is one.
poweroff -f
