# shellcheck shell=dash disable=SC1090,SC2034,SC2154
# Guests that go on from snapshots: the cases, which lib.sh runs.

# tap NAME ADDRESS: makes a tap of this host.
tap() {
    "$ip" tuntap add dev "$1" mode tap
    "$ip" addr add "$2/24" dev "$1"
    "$ip" link set "$1" up
}

# asked NUMBER METHOD PATH BODY: of the API of vmNUMBER, with success.
asked() {
    "$call" "$work/api$1" "$2" "$3" "$4" > "$work/answer" || die "vm$1: the API does not answer"
    grep -q "^HTTP/1.1 204 " "$work/answer" || die "vm$1: $2 $3: $(cat "$work/answer")"
}

# Saves vm$1, ends it by SIGKILL, and has vm$2 go on from it, with copies of its disks as they were in that moment.
move() {
    asked "$1" PATCH /vm '{"state": "Paused"}'
    asked "$1" PUT /snapshot/create "{\"snapshot_path\": \"$work/state\", \"mem_file_path\": \"$work/memory\"}"
    for disk in root sync async; do cp "$work/$disk$1" "$work/$disk$2"; done
    kill -KILL "$(cat "$work/vm$1.pid")"
    wait "$(cat "$work/vm$1.pid")" || :
    rm "$work/root$1" "$work/sync$1" "$work/async$1"
    monitor "vm$2" --api-sock "$work/api$2"
    until [ -S "$work/api$2" ]; do sleep 0.1; done
    asked "$2" PUT /snapshot/load "{\"snapshot_path\": \"$work/state\",
        \"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"$work/memory\"}, \"resume_vm\": true,
        \"drive_overrides\": [{\"drive_id\": \"root\", \"overlay\": \"$work/root$2\"},
            {\"drive_id\": \"sync\", \"path_on_host\": \"$work/sync$2\"},
            {\"drive_id\": \"async\", \"path_on_host\": \"$work/async$2\"}]}"
}

# A guest of four processors, in which fio verifies two disks, one of each engine, while it sends by TCP to another one:
# three times in a row it is saved and goes on in another process, through the same tap.
case_load() {
    tap tap0 10.0.1.1
    tap tap1 10.0.2.1
    echo 1 > /proc/sys/net/ipv4/ip_forward
    cat "$guest_words" - > "$work/peer.run" <<'GUEST'
iperf3 -4 -s -1 > /tmp/report
tail -n 5 /tmp/report
complaints
GUEST
    cat "$guest_words" - > "$work/loaded.run" <<'GUEST'
patiently ping -c 1 -W 1 10.0.2.2
iperf3 -c 10.0.2.2 -b 8M -n 20M --logfile /tmp/report &
stream=$!
turn() {
    fio --name=global --direct=1 --verify=crc32c --verify_fatal=1 --minimal --ioengine=libaio --iodepth=16 --rw=randrw \
        --size=4M --bssplit=4k/60:16k/20:64k/15:256k/5 --name=sync --filename=/dev/vdc --name=async --filename=/dev/vdd \
        >> /tmp/fio
    echo "fio has verified"
}
echo "under way"
turn
while kill -0 $stream; do turn; done 2> /dev/null
wait $stream
echo "all is sent"
tail -n 5 /tmp/report
grep -q receiver /tmp/report
same "$(cut -d ';' -f 5 /tmp/fio | sort -u)" 0 "fio's errors"
complaints
GUEST
    for who in peer loaded; do truncate -s 64K "$work/$who.run"; done
    monitor peer run --kernel "$kernel" --rootfs "$image:overlay" --disk "$work/peer.run:ro" --memory 160M \
        --net tap=tap1 --cmdline "$cmdline ip=10.0.2.2::10.0.2.1:255.255.255.0::eth0:off mayfly.run=/dev/vdb"
    blank "$work/sync0" 16
    blank "$work/async0" 16
    sections='"network-interfaces": [{"iface_id": "net", "host_dev_name": "tap0"}],'
    write_config vm0 "\"boot_args\": \"$cmdline ip=10.0.1.2::10.0.1.1:255.255.255.0::eth0:off mayfly.run=/dev/vdb\"" 4 \
        "$(drive root "$image" "\"overlay\": \"$work/root0\"" | sed 's/"is_root_device": false/"is_root_device": true/')" \
        "$(drive script "$work/loaded.run" '"is_read_only": true')" \
        "$(drive sync "$work/sync0" '"io_engine": "Sync", "num_queues": 2')" \
        "$(drive async "$work/async0" '"io_engine": "Async", "num_queues": 2' '"cache_type": "Writeback"')"
    monitor vm0 --api-sock "$work/api0" --config-file "$work/vm0.json"
    await vm0 "under way"
    for turn in 1 2 3; do
        sleep 1
        move $((turn - 1)) $turn
    done
    cat "$work"/vm[012].said
    ! grep -q "all is sent" "$work"/vm[012].said || die "the load was over before the last snapshot"
    for who in vm3 peer; do
        ended $who
        grep -q "GUEST end run status 0" "$work/$who.said" || die "$who"
    done
    grep -q "all is sent" "$work/vm3.said" || die "vm3 has sent nothing"
    ! grep -i "synchronous" "$work"/vm*.said || die "the engine is another one"
}

# restored NAME FIELDS: a guest that goes on from $work/state and $work/memory.
restored() {
    monitor "$1" --api-sock "$work/api$1"
    until [ -S "$work/api$1" ]; do sleep 0.1; done
    asked "$1" PUT /snapshot/load "{\"snapshot_path\": \"$work/state\",
        \"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"$work/memory\"}, \"resume_vm\": true, $2}"
}

# A guest with a file in memory that it reads as soon as it is another copy: once its working set is recorded, and once it is
# read ahead of it. The second copy has another MAC address, which its driver sees when it finds the device anew.
case_read_ahead() {
    tap tap0 10.0.1.1
    options="--api-sock $work/apifirst"
    sections='"network-interfaces": [{"iface_id": "net", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01"}],'
    configured first 1 <<'GUEST'
mkdir -p /tmp/held
mount -t tmpfs held /tmp/held
noise /tmp/held/file 24
before=$(sum /tmp/held/file)
echo "it is held"
until dmesg | grep -q "reseeded due to virtual machine fork"; do usleep 50000; done
same "$(sum /tmp/held/file)" "$before" "the file in memory"
same "$(cat /sys/class/net/eth0/address)" 06:00:00:00:00:01 "the address that the driver knows"
echo "it is whole"
device=$(basename "$(readlink -f /sys/class/net/eth0/device)")
echo "$device" > /sys/bus/virtio/drivers/virtio_net/unbind
echo "$device" > /sys/bus/virtio/drivers/virtio_net/bind
patiently test -e /sys/class/net/eth0
echo "it has $(cat /sys/class/net/eth0/address)"
up eth0 10.0.1.2
patiently ping -c 1 -W 1 -q 10.0.1.1
GUEST
    await first "it is held"
    asked first PATCH /vm '{"state": "Paused"}'
    asked first PUT /snapshot/create "{\"snapshot_path\": \"$work/state\", \"mem_file_path\": \"$work/memory\"}"
    kill -KILL "$(cat "$work/first.pid")"
    wait "$(cat "$work/first.pid")" || :
    restored recorded '"record_working_set": true'
    await recorded "it is whole"
    "$call" "$work/apirecorded" PUT /snapshot/working-set "{\"working_set_path\": \"$work/set\"}" > "$work/answer"
    grep -q "^HTTP/1.1 20" "$work/answer" || die "no working set: $(cat "$work/answer")"
    await recorded "it has 06:00:00:00:00:01"
    done_by recorded
    restored ahead "\"working_set_path\": \"$work/set\",
        \"network_overrides\": [{\"iface_id\": \"net\", \"guest_mac\": \"06:00:00:00:00:02\"}]"
    await ahead "it has 06:00:00:00:00:02"
    done_by ahead
    ! grep -i "working set" "$work/ahead.said" || die "the working set was not taken"
}
