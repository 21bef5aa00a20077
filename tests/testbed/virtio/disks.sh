# shellcheck shell=dash disable=SC1090,SC2034,SC2046,SC2086,SC2154
# Guests with virtio disks: the cases, which lib.sh runs.

# --- a whole system on a disk ---------------------------------------------------------------------------------------

# root_system NAME STATEMENT...: boots the system image with the script on stdin; it is $work/NAME.run on /dev/vdb.
root_system() {
    name=$1
    shift
    cat "$guest_words" - > "$work/$name.run"
    truncate -s 64K "$work/$name.run"
    monitor "$name" run --kernel "$kernel" ${initrd:+--initrd "$initrd"} --rootfs "$work/root.ext4" \
        --disk "$work/$name.run:ro" --memory 192M --cmdline "$cmdline ip=off mayfly.run=/dev/vdb" "$@"
}

# What was written to it outlives its microVM, and the file system is whole.
case_root() {
    cp "$image" "$work/root.ext4"
    root_system first --cpus 2 <<'GUEST'
grep -Eq '^[^ ]+ / ext4 rw' /proc/mounts || die "the root file system: $(cat /proc/mounts)"
same "$(cat /sys/block/vda/queue/rotational /sys/block/vdb/ro)" "1
1" "the disks"
noise /root/noise 12
(cd /root && md5sum noise > noise.md5)
forget
(cd /root && md5sum -c noise.md5)
complaints
reboot -f
GUEST
    ended first
    sound "$work/root.ext4"
    root_system second <<'GUEST'
(cd /root && md5sum -c noise.md5)
echo "as it was left"
reboot -f
GUEST
    await second "as it was left"
    ended second
}

# Asked to end by the control API, the system does so in its own way: what it says while it does, and a file system that
# has nothing left to be mended. Before there is a kernel that listens, the call is refused.
case_shutdown() {
    cp "$image" "$work/root.ext4"
    write_config guest "${initrd:+\"initrd_path\": \"$initrd\", }\"boot_args\": \"$cmdline ip=off\"" 2 \
        "$(drive root "$work/root.ext4" | sed 's/"is_root_device": false/"is_root_device": true/')"
    monitor guest --api-sock "$work/api" --config-file "$work/guest.json"
    until [ -S "$work/api" ]; do sleep 0.1; done
    ask_to_end
    grep -q "does not listen" "$work/answer" || die "$(cat "$work/answer")"
    await guest "$ready"
    ask_to_end
    grep -q "^HTTP/1.1 204 " "$work/answer" || die "$(cat "$work/answer")"
    ended guest
    grep -q "$farewell" "$work/guest.said" || die "the guest did not end in good order"
    "$e2fsck" -fn "$work/root.ext4" > "$work/fsck" 2>&1 || die "e2fsck -fn: $(cat "$work/fsck")"
    ! grep -i "journal" "$work/fsck" || die "the file system was not unmounted"
}

ask_to_end() {
    "$call" "$work/api" PUT /actions '{"action_type": "SendCtrlAltDel"}' > "$work/answer" || die "the API does not answer"
}

# fio writes to a disk of each engine and checks all that it has written, by sums in it.
case_fio() {
    ln -s "$image" "$work/root.ext4"
    blank "$work/sync" 64
    blank "$work/async" 64
    cat "$guest_words" - > "$work/fio.run" <<'GUEST'
on_both() {
    fio --name=global --direct=1 --verify=crc32c --verify_fatal=1 --minimal "$@" \
        --name=sync --filename=/dev/vdc --name=async --filename=/dev/vdd >> /tmp/fio
}
on_both --ioengine=libaio --iodepth=16 --rw=randrw --size=16M --bssplit=4k/60:16k/20:64k/15:256k/5
on_both --ioengine=psync --rw=randwrite --offset=24M --size=4M --bsrange=512-64k --blockalign=512 --fsync=64
same "$(cut -d ';' -f 3,5 /tmp/fio | tr '\n' ' ')" "sync;0 async;0 sync;0 async;0 " "fio's errors"
complaints
GUEST
    truncate -s 64K "$work/fio.run"
    write_config fio "${initrd:+\"initrd_path\": \"$initrd\", }\"boot_args\": \"$cmdline ip=off mayfly.run=/dev/vdb\"" \
        2 "$(drive root "$work/root.ext4" '"overlay": "memory"' | sed 's/"is_root_device": false/"is_root_device": true/')" \
        "$(drive script "$work/fio.run" '"is_read_only": true')" \
        "$(drive sync "$work/sync" '"io_engine": "Sync", "num_queues": 2' '"cache_type": "Writeback"')" \
        "$(drive async "$work/async" '"io_engine": "Async", "num_queues": 2' '"cache_type": "Writeback"')"
    monitor fio --no-api --config-file "$work/fio.json" --metrics-path "$work/metrics"
    ended fio
    grep -q "GUEST end run status 0" "$work/fio.said" || die "fio"
    # A host that refuses a guest's asynchronous requests is told of.
    ! grep -i "synchronous" "$work/fio.said" || die "the engine is another one"
}

# --- what a disk keeps ------------------------------------------------------------------------------------------------

# What a guest has flushed is there after the monitor was killed, and the file system can be mended by its journal.
case_kill() {
    blank "$work/disk" 64
    configured before 2 "$(drive disk "$work/disk" "\"io_engine\": \"$engine\"" '"cache_type": "Writeback"')" <<'GUEST'
mkfs.ext4 -q /dev/vda
mount -t ext4 /dev/vda /mnt
noise /mnt/noise 6
(cd /mnt && md5sum noise > noise.md5)
sync
echo "all is flushed"
while :; do
    noise /mnt/more 4
    mv /mnt/more /mnt/"more$((n = ${n:-0} % 5 + 1))"
done
GUEST
    await before "all is flushed"
    sleep 1
    kill -KILL "$(cat "$work/before.pid")"
    wait "$(cat "$work/before.pid")" || :
    sound "$work/disk"
    guest after --disk "$work/disk" <<'GUEST'
mount -t ext4 /dev/vda /mnt
cd /mnt
md5sum -c noise.md5
cd /
umount /mnt
GUEST
    done_by after
    sound "$work/disk"
}

# Two microVMs at once on one image; what they write is theirs, and one that comes back finds it.
case_overlay() {
    blank "$work/base" 48
    "$mke2fs" -q -t ext4 "$work/base"
    before=$(sum "$work/base")
    for who in one two memory; do
        place=$([ $who = memory ] || echo "=$work/$who.overlay")
        guest $who --disk "$work/base:overlay$place" <<GUEST
echo "here is $who"
mount -t ext4 /dev/vda /mnt
echo "I am $who" > /mnt/who
noise /mnt/noise 6
(cd /mnt && md5sum noise > noise.md5)
forget
(cd /mnt && md5sum -c noise.md5)
umount /mnt
fsck.ext4 -fn /dev/vda > /dev/null
GUEST
        # One after the other into life: many processors that start on one that is emulated take long.
        await $who "here is $who"
    done
    for who in one two memory; do done_by $who; done
    same "$(sum "$work/base")" "$before" "the base"
    for who in one two; do
        guest $who-again --disk "$work/base:overlay=$work/$who.overlay" <<GUEST
mount -t ext4 /dev/vda /mnt
same "\$(cat /mnt/who)" "I am $who" "who was here"
(cd /mnt && md5sum -c noise.md5)
umount /mnt
GUEST
        done_by $who-again
    done
    same "$(sum "$work/base")" "$before" "the base"
}

# One image, one writer.
case_lock() {
    blank "$work/disk" 16
    guest first --disk "$work/disk" <<'GUEST'
echo "mine"
enough() { [ "$(dd if=/dev/vda bs=512 count=1 iflag=direct 2> /dev/null | head -c 6)" = enough ]; }
patiently enough
GUEST
    await first "mine"
    for how in "" ":ro"; do
        guest second --disk "$work/disk$how" < /dev/null
        ended second 152
        grep -q "disk1.*$work/disk" "$work/second.said" || die "the drive and its file are not named"
        grep -qi "lock\|in use\|uses" "$work/second.said" || die "the cause is not named"
    done
    printf enough | dd of="$work/disk" conv=notrunc 2> /dev/null
    done_by first
    guest third --disk "$work/disk" < /dev/null
    done_by third
}

# --- errors while a guest runs ------------------------------------------------------------------------------------------

# The image shrinks under the guest: what is gone cannot be read, the rest can, and the microVM goes on.
case_truncated() {
    blank "$work/disk" 32
    tr '\0' x < /dev/zero | dd of="$work/disk" bs=1M count=32 iflag=fullblock conv=notrunc 2> /dev/null
    configured guest 1 "$(drive disk "$work/disk" "\"io_engine\": \"$engine\"")" <<'GUEST'
direct if=/dev/vda of=/dev/null bs=64k count=1 skip=400 iflag=direct
echo "all there"
gone() { ! dd if=/dev/vda of=/dev/null bs=64k count=1 skip=400 iflag=direct 2> /dev/null; }
patiently gone
direct if=/dev/vda of=/tmp/start bs=64k count=4 iflag=direct
same "$(tr -d x < /tmp/start | wc -c)" 0 "what is there still"
direct if=/tmp/start of=/dev/vda bs=64k count=4 oflag=direct conv=notrunc
dmesg | grep -q "I/O error.*vda" || die "the kernel did not notice"
GUEST
    await guest "all there"
    truncate -s 8M "$work/disk"
    done_by guest
}

case_read_only() {
    blank "$work/disk" 16
    before=$(sum "$work/disk")
    guest guest --disk "$work/disk:ro" <<'GUEST'
same "$(cat /sys/block/vda/ro)" 1 "read-only"
! dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2> /tmp/dd || die "a write went through"
! mount -t ext4 -o rw /dev/vda /mnt 2> /dev/null || die "mounted"
direct if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct
GUEST
    done_by guest
    same "$(sum "$work/disk")" "$before" "the image"
}

# --- many, and under load -----------------------------------------------------------------------------------------------

# Four processors, a queue each, all of them at work on one disk of each engine.
case_queues() {
    blank "$work/sync" 64
    blank "$work/async" 64
    configured guest 4 "$(drive sync "$work/sync" '"io_engine": "Sync", "num_queues": 4')" \
        "$(drive async "$work/async" '"io_engine": "Async", "num_queues": 4')" <<'GUEST'
same "$(ls /sys/block/vda/mq | wc -l)" 4 "queues"
same "$(ls /sys/block/vdb/mq | wc -l)" 4 "queues"
noise /tmp/noise 2
work() {
    for turn in 1 3; do
        for disk in a b; do
            at=$(($1 * 512 / turn))
            count=$((64 / turn))
            direct if=/tmp/noise of=/dev/vd$disk bs=$((turn * 32))k seek=$at oflag=direct conv=notrunc
            direct if=/dev/vd$disk of="/tmp/read$1" bs=$((turn * 32))k skip=$at count=$count iflag=direct
            same "$(head -c $((count * turn * 32768)) /tmp/noise | md5sum)" "$(md5sum < "/tmp/read$1")" "$disk on $1, $turn"
        done
    done
}
workers=""
for cpu in 0 1 2 3; do
    (taskset -p $((1 << cpu)) $$ > /dev/null 2>&1 || :; work $cpu) &
    workers="$workers $!"
done
for worker in $workers; do wait "$worker"; done
GUEST
    done_by guest
    # A host that refuses a guest's asynchronous requests is told of.
    ! grep -i "synchronous" "$work/guest.said" || die "the engine is another one"
}

# Many devices ($disks letters, $nets numbers), each of them the right one.
case_many() {
    set --
    for n in $nets; do
        "$ip" tuntap add dev tap$n mode tap
        "$ip" addr add 10.0.$n.1/24 dev tap$n
        "$ip" link set tap$n up
        set -- "$@" --net tap=tap$n
    done
    for n in $(seq $(echo $disks | wc -w)); do
        blank "$work/disk$n" 4
        echo "disk $n" | dd of="$work/disk$n" conv=notrunc 2> /dev/null
        set -- "$@" --disk "$work/disk$n"
    done
    {
        echo "disks='$disks' nets='$nets'"
        cat <<'GUEST'
same "$(grep -c '^processor' /proc/cpuinfo)" 2 "processors"
head -c 256k /dev/urandom > /tmp/noise
n=0
for disk in $disks; do
    n=$((n + 1))
    same "$(head -n 1 /dev/vd$disk | tr -d '\0')" "disk $n" "the first line of vd$disk"
    direct if=/tmp/noise of=/dev/vd$disk bs=64k seek=16 oflag=direct conv=notrunc
    direct if=/dev/vd$disk of=/tmp/read bs=64k skip=16 count=4 iflag=direct
    same "$(sum /tmp/read)" "$(sum /tmp/noise)" "vd$disk"
    echo "guest $n" | dd of=/dev/vd$disk bs=512 seek=1 conv=notrunc,fsync 2> /dev/null
done
for n in $nets; do
    up eth$((n - 1)) 10.0.$n.2
    ping -c 3 -i 0.1 -q 10.0.$n.1
done
echo "ping me"
enough() { [ "$(dd if=/dev/vda bs=512 count=1 iflag=direct 2> /dev/null | head -c 6)" = enough ]; }
patiently enough
GUEST
    } > "$work/many"
    guest guest --cpus 2 "$@" < "$work/many"
    await guest "ping me"
    for n in $nets; do ping -c 3 -i 0.1 -q 10.0.$n.2; done
    printf enough | dd of="$work/disk1" conv=notrunc 2> /dev/null
    done_by guest
    for n in $(seq $(echo $disks | wc -w)); do
        same "$(dd if="$work/disk$n" bs=512 skip=1 count=1 2> /dev/null | head -n 1 | tr -d '\0')" "guest $n" "disk $n"
    done
}

# A driver that goes and comes again, while its disk is in use.
case_rebind() {
    blank "$work/disk" 32
    configured guest 2 "$(drive disk "$work/disk" "\"io_engine\": \"$engine\"" '"num_queues": 2')" <<'GUEST'
device=$(basename "$(readlink -f /sys/block/vda/device)")
cd /sys/bus/virtio/drivers/virtio_blk
for turn in $(seq 20); do
    dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2> /dev/null &
    reader=$!
    dd if=/dev/zero of=/dev/vda bs=4k count=2000 oflag=direct conv=notrunc 2> /dev/null &
    writer=$!
    usleep 30000
    echo "$device" > unbind
    wait $reader || :
    wait $writer || :
    echo "$device" > bind
    patiently test -b /dev/vda
done
noise /tmp/noise 8
direct if=/tmp/noise of=/dev/vda bs=256k oflag=direct conv=notrunc
direct if=/dev/vda of=/tmp/read bs=256k count=32 iflag=direct
same "$(sum /tmp/read)" "$(sum /tmp/noise)" "after all"
GUEST
    done_by guest
}

# A reboot does not wait for what is under way, nor hang on it.
case_reboot() {
    blank "$work/disk" 64
    configured guest 2 "$(drive disk "$work/disk" "\"io_engine\": \"$engine\"" '"num_queues": 2')" <<'GUEST'
for worker in 1 2 3; do
    dd if=/dev/zero of=/dev/vda bs=1M oflag=direct conv=notrunc 2> /dev/null &
    dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2> /dev/null &
done
usleep 300000
echo "off it goes"
reboot -f
GUEST
    await guest "off it goes"
    ended guest
}
