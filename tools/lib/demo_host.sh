#!/bin/sh
# shellcheck shell=dash
# The host's side of the demo, also where that host is the testbed's virtual machine and knows busybox only: gives the
# microVM a network, and shows the page that its web server hands to the host.
#
#   demo_host.sh tap|PORT auto|shell IMAGE MAYFLY run OPTION...
#
# tap: over a tap interface made here, as root; PORT: the host's port that is forwarded into a guest of `--net user`.
# auto: power the guest off once the page is there; shell: its console is this terminal. The image is not written to.
set -u
network=$1 mode=$2 image=$3
shift 3

case $network in
    tap)
        tunctl -t mayfly0 > /dev/null && ip addr add 172.16.0.1/24 dev mayfly0 && ip link set mayfly0 up || exit 125
        url=http://172.16.0.2/
        set -- "$@" --net tap=mayfly0
        ;;
    *)
        url=http://127.0.0.1:$network/
        set -- "$@" --net "user,forward=$network:80"
        ;;
esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The guest's web server answers some seconds after the start, and more where its processor is emulated.
show_page() {
    tries=0
    # Not wget's own limit: with -T Debian 12's static busybox crashes.
    until timeout 5 busybox wget -q -O "$folder/page" "$url" 2> "$folder/wget.log"; do
        tries=$((tries + 1))
        if [ $tries -ge 120 ]; then
            printf '\r\n==> no page from %s: %s\r\n' "$url" "$(tail -n 1 "$folder/wget.log")"
            return
        fi
        sleep 1
    done
    touch "$folder/seen"
    # With its own line ends: mayfly has the terminal in raw mode.
    printf '\r\n==> the host has fetched %s from the microVM:\r\n' "$url"
    sed 's/$/\r/' "$folder/page"
    printf '==> end of the page\r\n'
}

if [ "$mode" = auto ]; then
    mkfifo "$folder/keys"
    # Once more now and then: a key can come before the shell is there to hear it.
    { show_page >&3; while :; do echo poweroff; sleep 10 > /dev/null 2>&1 3>&-; done; } 3>&1 > "$folder/keys" < /dev/null &
    "$@" --rootfs "$image:overlay" < "$folder/keys"
else
    show_page < /dev/null &
    "$@" --rootfs "$image:overlay"
fi
code=$?
kill $! 2> /dev/null
if [ "$network" = tap ]; then tunctl -d mayfly0 > /dev/null; fi
if [ "$mode" = auto ] && [ $code = 0 ] && [ ! -e "$folder/seen" ]; then exit 125; fi
exit $code
