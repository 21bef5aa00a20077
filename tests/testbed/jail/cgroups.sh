#!/bin/busybox sh
# shellcheck shell=dash
# cgroups.sh JAILER PROBE: jails in cgroups of version 2; PROBE stands in the monitor's place. Says what is wrong, or
# "all is well".
set -eu
jailer=$1 probe=$2 name=${2##*/}
base=$(mktemp -d /tmp/groups.XXXXXX)
top=/sys/fs/cgroup
[ -e $top/cgroup.controllers ] || mount -t cgroup2 none $top
if ! grep -qw pids $top/cgroup.controllers; then
    echo "SKIP: no controllers of cgroup version 2"
    exit 0
fi

fail() { echo "WRONG: $*"; exit 1; }
expect() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }
# jail ID OPTION... [-- "do" WHAT...]
jail() {
    id=$1
    shift
    "$jailer" --id "$id" --exec-file "$probe" --uid 10001 --gid 10001 --chroot-base-dir "$base" --cgroup-version 2 "$@"
}
clean() { "$jailer" --cleanup --id "$1" --exec-file "$probe" --chroot-base-dir "$base" --parent-cgroup "$2"; }

# Values, in a group below two that are made and hand the controllers down.
jail a --parent-cgroup vms/one --cgroup memory.max=64M --cgroup pids.max=5 --cgroup cpu.max=50000 --new-pid-ns \
    -- "do" wait > /tmp/a.out
pid=$(cat "$base/$name/a/root/$name.pid")
expect memory.max "$(cat $top/vms/one/a/memory.max)" 67108864
expect pids.max "$(cat $top/vms/one/a/pids.max)" 5
expect cpu.max "$(cat $top/vms/one/a/cpu.max)" "50000 100000"
expect "its group" "$(grep ^0:: "/proc/$pid/cgroup")" "0::/vms/one/a"
expect "who is in it" "$(cat $top/vms/one/a/cgroup.procs)" "$pid"
clean a vms/one 2> /tmp/refusal && fail "a jail in which something runs was removed"
kill -9 "$pid"
clean a vms/one
[ ! -e $top/vms/one/a ] || fail "the group is left"
[ -e $top/vms/one ] || fail "a parent that was named is gone"

# The same by the process itself, without one of its own; limits bite.
expect "threads" "$(jail b --parent-cgroup vms/one --cgroup pids.max=3 -- "do" threads 9 | tail -n 1)" "thread: EAGAIN"
clean b vms/one
code=0
jail c --parent-cgroup vms/one --cgroup memory.max=20M --cgroup memory.swap.max=0 -- "do" memory 100 > /tmp/c.out || code=$?
expect "the end of who takes too much memory" $code 137
clean c vms/one

# What cannot be: each refusal leaves nothing.
mkdir $top/busy
sh -c "echo \$\$ > $top/busy/cgroup.procs; exec sleep 1000" &
sleeper=$!
until grep -q "$sleeper" $top/busy/cgroup.procs; do sleep 0.1; done
refused() {
    id=$1 text=$2
    shift 2
    jail "$id" "$@" -- "do" hello > /tmp/refused.out 2>&1 && fail "$* was not refused"
    grep -q "$text" /tmp/refused.out || fail "$* is refused by: $(cat /tmp/refused.out)"
    [ ! -e "$base/$name" ] || fail "$* left $(find "$base")"
}
refused d "cannot while it has processes" --parent-cgroup busy --cgroup memory.max=1G
[ ! -e $top/busy/d ] || fail "a group in a parent with processes"
refused d "has processes of its own" --parent-cgroup busy --cgroup pids.max=3
[ ! -e $top/busy/d ] || fail "a group in a parent with processes"
refused e "no controller nothing of cgroup version 2" --cgroup nothing.max=1
refused f "write \"many\"" --parent-cgroup vms --cgroup pids.max=many
[ ! -e $top/vms/f ] || fail "a group whose value was refused"
refused g "No such file" --parent-cgroup nowhere
kill -9 $sleeper
wait

# A sub-tree that was handed over, with its controllers on; and groups that are joined as they are.
mkdir $top/given
echo +pids > $top/given/cgroup.subtree_control
expect "in a sub-tree" "$(jail h --parent-cgroup given --cgroup pids.max=9 -- "do" hello)" hello
expect "what it hands down" "$(cat $top/given/cgroup.subtree_control)" pids
clean h given
expect "joining a group as it is" "$(jail i --parent-cgroup vms/one -- "do" hello 2>&1)" \
    "jailer: join cgroup $top/vms/one: Device or resource busy (EBUSY)"
mkdir $top/leaf
expect "joining a group as it is" "$(jail i --parent-cgroup leaf -- "do" hello 2>&1)" hello
clean i leaf
echo "all is well"
