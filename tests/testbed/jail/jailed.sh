#!/bin/busybox sh
# shellcheck shell=dash
# jailed.sh JAILER MAYFLY ARGUMENT...: MAYFLY in a jail, with every file that an argument names; as the same process.
set -eu
jailer=$1 monitor=$2
shift 2

# What the microVMs before this one left. Those that run refuse.
for base in /tmp/jails.*; do
    [ -d "$base" ] || continue
    if "$jailer" --cleanup --id guest --exec-file "$monitor" --chroot-base-dir "$base" 2> /tmp/cleanup.log; then
        rmdir "$base"
    fi
done

base=$(mktemp -d /tmp/jails.XXXXXX)
root=$base/${monitor##*/}/guest/root
mkdir -p "$root"
for word; do
    shift
    if [ -f "$word" ]; then
        cp "$word" "$root/"
        word=/${word##*/}
        chmod 644 "$root$word"
    fi
    set -- "$@" "$word"
done

# A first process mounts no hierarchy; where there is one, it is this host's.
[ -e /sys/fs/cgroup/cgroup.controllers ] || [ "$(cat /proc/1/comm)" != init ] || mount -t cgroup2 none /sys/fs/cgroup
groups=
if grep -qw pids /sys/fs/cgroup/cgroup.controllers 2> /dev/null; then
    groups="--cgroup-version 2 --parent-cgroup jails-${base##*.} --cgroup pids.max=64"
fi
# shellcheck disable=SC2086  # several words
exec "$jailer" --id guest --exec-file "$monitor" --uid 10001 --gid 10001 --chroot-base-dir "$base" $groups -- "$@"
