# shellcheck shell=dash disable=SC1090,SC2034,SC2154
# Runs a case of virtio_test.py: a folder to work in, and words to start guests, to wait for what they say and to look at
# how they ended. The network it runs in is its own.
#
# virtio_test.py calls:  sh lib.sh CASE NAME VALUE NAME VALUE ...  and gives so, among others, the paths of
#   cases       the file with case_CASE  mayfly      the monitor
#   kernel      the guest's kernel       initrd      its initramfs: busybox, e2fsprogs, drivers where they are modules
#   cmdline     the kernel's words       jailer      if given, monitors run in jails
# and what else the case asks for.
set -eu
case=$1
shift
while [ $# -gt 1 ]; do
    eval "$1=\$2"
    shift 2
done

die() {
    echo "FAILED: $*"
    for said in "$work"/*.said; do
        echo "=== end of $said"
        tail -c 3000 "$said"
    done
    exit 1
}

# Both lines say something where they differ.
same() { [ "$1" = "$2" ] || die "$3: '$1' is not '$2'"; }

sum() { md5sum < "$1" | cut -d ' ' -f 1; }

# script NAME: makes the initramfs $work/NAME.initrd whose guest runs the script on stdin, with the words of guest.sh.
script() {
    mkdir -p "$work/$1.tree/etc"
    {
        cat "$guest_words" -
        echo complaints
    } > "$work/$1.tree/etc/script"
    # An initramfs may be several archives, one behind the other, each at a multiple of four bytes.
    {
        cat "$initrd"
        (cd "$work/$1.tree" && find . | cpio -o -H newc 2> /dev/null)
    } > "$work/$1.initrd"
}

# guest NAME [OPTION...]: starts a guest that runs the script on stdin, then says what its kernel complains of and reboots.
# What it says goes to $work/NAME.said.
guest() {
    name=$1
    shift
    script "$name"
    monitor "$name" run --kernel "$kernel" --initrd "$work/$name.initrd" --cmdline "$cmdline $jobs" --memory 192M "$@"
}

# configured NAME VCPUS [DRIVE...]: the same, from a configuration file with these drives (JSON); `sections` are more of
# its sections, each with a comma behind it, `options` more options.
configured() {
    name=$1
    script "$name"
    shift
    write_config "$name" "\"initrd_path\": \"$work/$name.initrd\", \"boot_args\": \"$cmdline $jobs\"" "$@"
    # shellcheck disable=SC2086  # they are words
    monitor "$name" ${options:---no-api} --config-file "$work/$name.json"
}

# write_config NAME SOURCE VCPUS DRIVE...: $work/NAME.json; SOURCE stands in boot-source.
write_config() {
    config=$work/$1.json
    source=$2
    vcpus=$3
    drives=""
    shift 3
    for drive; do drives="$drives${drives:+, }$drive"; done
    cat > "$config" <<JSON
{${sections:-}
 "boot-source": {"kernel_image_path": "$kernel", $source},
 "machine-config": {"vcpu_count": $vcpus, "mem_size_mib": 256},
 "drives": [$drives]}
JSON
}

# drive ID FILE [FIELD...]: a drive of the configuration file.
drive() {
    fields="\"drive_id\": \"$1\", \"path_on_host\": \"$2\", \"is_root_device\": false"
    shift 2
    for field; do fields="$fields, $field"; done
    echo "{$fields}"
}

# monitor NAME ARGUMENT...: starts mayfly; where there is a `jailer`, in a jail in this network, as a user of its own.
monitor() {
    name=$1
    shift
    if [ -n "${jailer:-}" ]; then
        user=$((${user:-10000} + 1))
        furnish "$name" "$@"
        set -- "$jailer" --id "$name" --exec-file "$mayfly" --uid "$user" --gid "$user" --chroot-base-dir "$work/jails" \
            --netns "/proc/$$/ns/net" -- "$@"
    else
        set -- "$mayfly" "$@"
    fi
    "$@" < /dev/null > "$work/$name.said" 2>&1 &
    echo $! > "$work/$name.pid"
}

# furnish NAME ARGUMENT...: in the jail each file that the arguments name, or the configuration file, lies where it lies
# outside; those of this folder are the same files.
furnish() {
    root=$work/jails/${mayfly##*/}/$1/root
    mkdir -p "$root$work"
    chown "$user:$user" "$root$work"
    for path in $({ echo "$@" && cat "$work/$1.json" 2> /dev/null; } | grep -o '/[^" :,=]*' | sort -u); do
        [ -f "$path" ] || continue
        mkdir -p "$root${path%/*}"
        # Which is another file where the file system is.
        ln "$(readlink -f "$path")" "$root$path" 2> /dev/null || cp "$path" "$root$path"
        chown "$user:$user" "$root$path"
    done
}

# waits until the guest has said TEXT.
await() {
    until grep -q -- "$2" "$work/$1.said"; do
        kill -0 "$(cat "$work/$1.pid")" 2> /dev/null || die "$1 ended and never said '$2'"
        sleep 0.1
    done
}

# ended NAME [STATUS]: waits for the monitor's end, and shows all that its guest said.
ended() {
    status=0
    wait "$(cat "$work/$1.pid")" || status=$?
    echo "=== $1"
    cat "$work/$1.said"
    same "$status" "${2:-0}" "exit status of $1"
    if [ -n "${jailer:-}" ]; then
        # What it has made stays.
        for made in "$work/jails/${mayfly##*/}/$1/root$work"/*; do
            if [ -f "$made" ] && [ ! -e "$work/${made##*/}" ]; then mv "$made" "$work/"; fi
        done
        "$jailer" --cleanup --id "$1" --exec-file "$mayfly" --chroot-base-dir "$work/jails" || die "the jail of $1 is left"
    fi
}

# The same, of a guest that did all of its script.
done_by() {
    ended "$1"
    grep -q "GUEST end script status 0" "$work/$1.said" || die "the script of $1 failed"
}

# blank FILE MIB: a file of zeros without blocks.
blank() { truncate -s "$2M" "$1"; }

# A file system that needs no more than its journal to be whole.
sound() {
    "$e2fsck" -p "$1" > "$work/fsck" 2>&1 || [ $? = 1 ] || die "e2fsck -p: $(cat "$work/fsck")"
    "$e2fsck" -fn "$1" > "$work/fsck" 2>&1 || die "e2fsck -fn: $(cat "$work/fsck")"
}

# Runs the case, in a folder that goes with it and with busybox's programs, wherever this is.
enter() {
    work=$(mktemp -d /tmp/mayfly-virtio.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/bin"
    /bin/busybox --install -s "$work/bin"
    if [ -n "${passt:-}" ]; then ln -s "$passt" "$work/bin/passt"; fi
    export PATH="$work/bin"
    # Standard input that neither says anything nor ends, for `nc`: it hangs up where its own ends.
    idle=$work/idle
    mkfifo "$idle"
    # Without ACPI there is no way to power off.
    jobs=mayfly.job=script,reboot
    # A case that is killed for its time shall leave what its guests said.
    { sleep 120 && tail -c 3000 "$work"/*.said && ps; } &
    "case_$case"
}

. "$cases"
enter
