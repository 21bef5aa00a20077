# shellcheck shell=dash disable=SC1090,SC2034,SC2046,SC2086,SC2154
# Guests with virtio networks: the cases, which lib.sh runs.

readonly MIB=8

# tap NAME ADDRESS [WORD...]: makes a tap of this host; the words are those of `ip tuntap`.
tap() {
    tap=$1
    address=$2
    shift 2
    "$ip" tuntap add dev "$tap" mode tap "$@"
    "$ip" addr add "$address/24" dev "$tap"
    "$ip" link set "$tap" up
}

# serve PORT FILE: to whoever connects first. receive PORT FILE: from whoever does.
serve() { nc -l -p "$1" < "$2" & }
receive() { nc -l -p "$1" > "$2" 0<> "$idle" & }

# bye ADDRESS PORT: tells a guest that listens there, or soon will.
bye() {
    until echo | nc "$1" "$2"; do sleep 0.1; done
}

# site FOLDER ADDRESS:PORT: serves a file of $MIB MiB named down there. busybox's nc would send it in pieces of 1 KiB.
site() {
    mkdir "$1"
    dd if=/dev/urandom of="$1/down" bs=1M count=$MIB 2> /dev/null
    httpd -f -p "$2" -h "$1" &
    server=$!
}

# Both ways, small and large, over two interfaces, of which one has several queues and one has large frames.
case_taps() {
    tap tap0 10.0.1.1 multi_queue
    tap tap1 10.0.2.1
    "$ip" link set tap1 mtu 9000
    site "$work/www" 8000
    guest guest --cpus 2 --net tap=tap0,queues=2 --net tap=tap1,mtu=9000 --mac 06:00:0a:00:01:02 <<GUEST
same "\$(ls /sys/class/net/eth0/queues | grep -c rx-)" 2 "queues"
same "\$(cat /sys/class/net/eth0/address)" 06:00:0a:00:01:02 "the address"
same "\$(cat /sys/class/net/eth1/mtu)" 9000 "the MTU"
up eth0 10.0.1.2
up eth1 10.0.2.2
ping -c 5 -i 0.1 -q 10.0.1.1
ping -c 3 -i 0.1 -q -s 1400 10.0.1.1
ping -c 3 -i 0.1 -q -s 8900 10.0.2.1
mkdir /tmp/www
# Both at once over the first: a connection a processor.
workers=""
for from in 10.0.1.1 10.0.1.1 10.0.2.1; do
    wget -q -O /tmp/www/up\${#workers} http://\$from:8000/down &
    workers="\$workers \$!"
done
for worker in \$workers; do wait \$worker; done
for file in /tmp/www/up*; do
    same "\$(sum \$file)" $(sum "$work/www/down") "what came in \$file"
    mv \$file /tmp/www/up
done
httpd -p 80 -h /tmp/www
echo "ping me"
nc -l -p 81 > /dev/null 0<> \$idle
GUEST
    await guest "ping me"
    ping -c 5 -i 0.1 -q 10.0.1.2
    ping -c 3 -i 0.1 -q -s 8900 10.0.2.2
    workers=""
    for to in 10.0.1.2 10.0.1.2 10.0.2.2; do
        wget -q -O "$work/up${#workers}" "http://$to/up" &
        workers="$workers $!"
    done
    for worker in $workers; do wait "$worker"; done
    for file in "$work"/up*; do
        same "$(sum "$file")" "$(sum "$work/www/down")" "what came up in $file"
    done
    bye 10.0.1.2 81
    kill $server
    done_by guest
}

# Several queues: a connection a processor, both ways at once.
case_queues() {
    tap tap0 10.0.1.1 multi_queue
    dd if=/dev/urandom of="$work/down" bs=1M count=2 2> /dev/null
    for n in 1 2 3 4; do
        serve 500$n "$work/down"
        receive 510$n "$work/up$n"
    done
    guest guest --cpus 4 --net tap=tap0,queues=4 <<GUEST
same "\$(ls /sys/class/net/eth0/queues | grep -c rx-)" 4 "queues"
up eth0 10.0.1.2
workers=""
noise /tmp/noise 2
sum /tmp/noise
for n in 1 2 3 4; do
    fetch 10.0.1.1 500\$n /tmp/down\$n &
    workers="\$workers \$!"
    send 10.0.1.1 510\$n /tmp/noise &
    workers="\$workers \$!"
done
for worker in \$workers; do wait \$worker; done
for n in 1 2 3 4; do same "\$(sum /tmp/down\$n)" $(sum "$work/down") "what came down"; done
GUEST
    done_by guest
    for n in 1 2 3 4; do grep -q "$(sum "$work/up$n")" "$work/guest.said" || die "what came up $n"; done
}

# A driver that goes and comes again under traffic both ways.
case_rebind() {
    tap tap0 10.0.1.1
    guest guest --cpus 2 --net tap=tap0 <<'GUEST'
device=$(basename "$(readlink -f /sys/class/net/eth0/device)")
drivers=/sys/bus/virtio/drivers/virtio_net
for turn in $(seq 20); do
    up eth0 10.0.1.2
    ping -q -i 0.01 -s 1400 10.0.1.1 > /dev/null 2>&1 &
    pinger=$!
    { cat /dev/zero | nc 10.0.1.1 5000; } > /dev/null 2>&1 &
    usleep 50000
    echo "$device" > $drivers/unbind
    kill $pinger 2> /dev/null || :
    killall nc 2> /dev/null || :
    echo "$device" > $drivers/bind
    patiently test -e /sys/class/net/eth0
done
up eth0 10.0.1.2
patiently ping -c 1 -W 1 -q 10.0.1.1
ping -c 5 -i 0.1 -q 10.0.1.1
GUEST
    while :; do nc -l -p 5000 > /dev/null 0<> "$idle" || sleep 0.1; done &
    sink=$!
    ping -q -i 0.02 10.0.1.2 > /dev/null &
    pinger=$!
    done_by guest
    kill $sink $pinger
}

# Two microVMs that talk through the host's routing.
case_iperf() {
    tap tap0 10.0.1.1
    tap tap1 10.0.2.1
    echo 1 > /proc/sys/net/ipv4/ip_forward
    cat "$guest_words" - > "$work/server.run" <<'GUEST'
iperf3 -4 -s -1 > /tmp/one
iperf3 -4 -s -1 > /tmp/two
complaints
GUEST
    cat "$guest_words" - > "$work/client.run" <<'GUEST'
patiently ping -c 1 -W 1 10.0.1.2
for way in "" -R; do
    patiently iperf3 -c 10.0.1.2 -n 20M $way --logfile /tmp/report
    tail -n 5 /tmp/report
    grep -q receiver /tmp/report
done
complaints
GUEST
    number=0
    for who in server client; do
        number=$((number + 1))
        truncate -s 64K "$work/$who.run"
        monitor $who run --kernel "$kernel" --rootfs "$image:overlay" --disk "$work/$who.run:ro" --memory 192M \
            --net tap=tap$((number - 1)) \
            --cmdline "$cmdline ip=10.0.$number.2::10.0.$number.1:255.255.255.0::eth0:off mayfly.run=/dev/vdb"
    done
    for who in client server; do
        ended $who
        grep -q "GUEST end run status 0" "$work/$who.said" || die "$who"
    done
}

# --- passt ---------------------------------------------------------------------------------------------------------------

# The host's services from the guest, the guest's from the host.
case_user() {
    # An interface with a route, whose addresses passt takes over for the guest.
    tap out 10.0.9.2
    "$ip" route add default via 10.0.9.1
    "$ip" link set lo up
    site "$work/www" 127.0.0.1:8000
    guest guest --net user,host-loopback,forward=8080:80,forward=8081:81 <<GUEST
ip link set eth0 up
cat > /tmp/lease <<'LEASE'
#!/bin/sh
[ "\$1" = bound ] || exit 0
ip addr add "\$ip/\$mask" dev "\$interface"
ip route add default via "\$router" dev "\$interface"
LEASE
chmod +x /tmp/lease
udhcpc -q -n -i eth0 -t 20 -T 1 -s /tmp/lease
mkdir /tmp/www
wget -q -O /tmp/www/up http://10.0.9.1:8000/down
same "\$(sum /tmp/www/up)" $(sum "$work/www/down") "what came down"
httpd -p 80 -h /tmp/www
echo "serving"
nc -l -p 81 > /dev/null 0<> \$idle
GUEST
    await guest "serving"
    wget -q -O "$work/up" http://127.0.0.1:8080/up
    same "$(sum "$work/up")" "$(sum "$work/www/down")" "what came up"
    bye 127.0.0.1 8081
    kill $server
    done_by guest
}

# --- the metadata service ------------------------------------------------------------------------------------------------

# metadata_section VERSION ID...: the service on these interfaces, as a section of the configuration file.
metadata_section() {
    mmds_version=$1
    shift
    ids=$(printf ', "%s"' "$@")
    echo "\"mmds-config\": {\"version\": \"$mmds_version\", \"network_interfaces\": [${ids#, }]},"
}

# Over a tap and over passt, with busybox's clients; what is patched meanwhile is read, and other frames go their way.
case_metadata() {
    tap out 10.0.9.2
    "$ip" route add default via 10.0.9.1
    "$ip" link set lo up
    tap tap0 10.0.1.1
    cat > "$work/metadata" <<'JSON'
{"latest": {"meta-data": {"instance-id": "i-0123", "placement": {"zone": "a"}}, "user-data": "#!/bin/sh\necho hi\n"}}
JSON
    sections="\"network-interfaces\": [{\"iface_id\": \"tapped\", \"host_dev_name\": \"tap0\"},
        {\"iface_id\": \"user\", \"backend\": \"user\"}], $(metadata_section "$version" tapped user)"
    options="--api-sock $work/api --metadata $work/metadata"
    configured guest 2 <<GUEST
version=$version
service=169.254.169.254
# request LINE HEADER...: asks what busybox's wget cannot, and says the whole answer.
request() {
    rm -f /tmp/request
    mkfifo /tmp/request
    exec 3<> /tmp/request
    printf '%s\r\n' "\$@" "Host: \$service" "Connection: close" "" >&3
    nc \$service 80 <&3 | tr -d '\r'
    exec 3>&-
}
# read_from PATH
read_from() { wget -q -O - \${token:+--header "X-aws-ec2-metadata-token: \$token"} "http://\$service/\$1"; }
up eth0 10.0.1.2
up eth1 10.0.2.2
for interface in eth0 eth1; do
    ip route add \$service dev \$interface
    token=""
    answer=\$(request "PUT /latest/api/token HTTP/1.1" "X-aws-ec2-metadata-token-ttl-seconds: 60")
    same "\$(echo "\$answer" | head -n 1)" "HTTP/1.1 200 OK" "the answer with a token"
    if [ \$version = V2 ]; then
        same "\$(request "GET /latest/meta-data HTTP/1.1" | head -n 1)" "HTTP/1.1 401 Unauthorized" "without a token"
        token=\$(echo "\$answer" | tail -n 1)
    fi
    same "\$(read_from latest/meta-data/)" "instance-id
placement/" "a list"
    same "\$(read_from latest/meta-data/placement/zone)" "a" "a word"
    same "\$(read_from latest/user-data)" "#!/bin/sh
echo hi" "lines"
    ! read_from latest/nothing 2> /tmp/error || die "there is something"
    grep -q 404 /tmp/error || die "\$(cat /tmp/error)"
    ip route del \$service
done
ip route add \$service dev eth0
ping -c 3 -i 0.1 -q 10.0.1.1
echo "has read it"
is_new() { [ "\$(read_from latest/meta-data/new)" = "now" ] 2> /dev/null; }
patiently is_new
GUEST
    await guest "has read it"
    "$call" "$work/api" PATCH /mmds '{"latest": {"meta-data": {"new": "now"}}}' > "$work/answer" || die "the API is silent"
    grep -q "^HTTP/1.1 204 " "$work/answer" || die "$(cat "$work/answer")"
    done_by guest
}

# Debian's curl and cloud-init. To cloud-init a machine whose firmware does not say that it is EC2's may be anybody's: it
# then reads as version 1 has it; a dmidecode that says EC2 makes it ask for tokens.
case_cloud_init() {
    tap tap0 10.0.1.1
    cat > "$work/metadata" <<'JSON'
{"latest": {
  "dynamic": {"instance-identity": {"document": "{\"instanceId\": \"i-0123456789abcdef0\"}"}},
  "meta-data": {"instance-id": "i-0123456789abcdef0", "local-hostname": "metadata-host", "hostname": "metadata-host",
    "public-keys": {"0=name": "", "0": {"openssh-key": "ssh-ed25519 AAAAC3Nz somebody@somewhere"}}},
  "user-data": "#cloud-config\nbootcmd: [ echo by user-data > /run/by-user-data ]\n"}}
JSON
    cat "$guest_words" - > "$work/guest.run" <<GUEST
service=http://169.254.169.254/latest
get() { curl -sS --max-time 20 "\$@"; }
if [ $version = V1 ]; then
    same "\$(get \$service/meta-data/instance-id)" i-0123456789abcdef0 "curl"
else
    same "\$(get -o /dev/null -w '%{http_code}' \$service/meta-data/)" 401 "without a token"
    token=\$(get -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" \$service/api/token)
    same "\$(get -H "X-aws-ec2-metadata-token: \$token" \$service/meta-data/instance-id)" i-0123456789abcdef0 "curl"
    cat > /usr/bin/dmidecode <<'DMI'
#!/bin/sh
case \$2 in system-uuid | system-serial-number) echo ec212345-6789-abcd-ef01-23456789abcd ;; esac
DMI
    chmod +x /usr/bin/dmidecode
fi
same "\$(get -H "X-aws-ec2-metadata-token: \${token:-}" -H "Accept: application/json" \$service/meta-data/public-keys/0)" \
    '{"openssh-key":"ssh-ed25519 AAAAC3Nz somebody@somewhere"}' "JSON"
cat > /etc/cloud/cloud.cfg.d/99_metadata.cfg <<'CONFIG'
datasource_list: [ Ec2 ]
datasource: { Ec2: { strict_id: false, metadata_urls: [ "http://169.254.169.254" ] } }
network: { config: disabled }
cloud_init_modules: [ bootcmd, set_hostname ]
CONFIG
cloud-init init > /tmp/cloud-init 2>&1 || die "\$(tail -n 20 /tmp/cloud-init)"
same "\$(hostname)" metadata-host "the name"
same "\$(cat /run/by-user-data)" "by user-data" "what the user data's command wrote"
same "\$(cloud-init query --format '{{v1.instance_id}} {{v1.platform}} {{ds.meta_data.public_keys.name}}')" \
    "i-0123456789abcdef0 ec2 ssh-ed25519 AAAAC3Nz somebody@somewhere" "what it was told"
complaints
GUEST
    truncate -s 64K "$work/guest.run"
    sections="\"network-interfaces\": [{\"iface_id\": \"net\", \"host_dev_name\": \"tap0\"}], $(metadata_section "$version" net)"
    write_config guest "\"boot_args\": \"$cmdline ip=10.0.1.2::10.0.1.1:255.255.255.0::eth0:off mayfly.run=/dev/vdb\"" 1 \
        "$(drive root "$image" '"overlay": "memory"' | sed 's/"is_root_device": false/"is_root_device": true/')" \
        "$(drive script "$work/guest.run" '"is_read_only": true')"
    monitor guest --no-api --config-file "$work/guest.json" --metadata "$work/metadata"
    ended guest
    grep -q "GUEST end run status 0" "$work/guest.said" || die "the script"
}
