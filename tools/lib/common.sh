# shellcheck shell=bash
# What every command of devtool shares: messages, exit codes, the number of jobs, configuring and building.

# 0 all well; 1 the thing itself failed (a build, a test, a check); 2 a wrong call; 3 the machine lacks something
# that devtool may not or cannot provide.
readonly EXIT_FAILED=1 EXIT_USAGE=2 EXIT_MACHINE=3

if [[ -t 2 ]]; then
  readonly BOLD=$'\e[1m' RED=$'\e[31m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
  readonly BOLD="" RED="" YELLOW="" PLAIN=""
fi

# The program that ships, once the release preset is built.
readonly RELEASE_PROGRAM="$ROOT/build/release/src/mayfly/mayfly"

# All messages go to stderr: stdout is for what was asked for.
step() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN" >&2; }
note() { printf '    %s\n' "$*" >&2; }
warn() { printf '%swarning: %s%s\n' "$YELLOW" "$*" "$PLAIN" >&2; }
fail() {
  local code="$1"
  shift
  printf '%sdevtool: %s%s\n' "$RED" "$*" "$PLAIN" >&2
  exit "$code"
}
usage_error() { fail "$EXIT_USAGE" "$@"; }

# The value of an option that needs one: option_value "$@", with "$@" the command line from the option on.
option_value() {
  [[ $# -ge 2 && -n "$2" ]] || usage_error "$1 needs a value"
  printf '%s' "$2"
}

# Parallel jobs: one a core, but at least 1 GiB of available memory for each (a compiler of ours takes up to that).
job_count() {
  local cores available_gib
  if [[ -n "${MAYFLY_JOBS:-}" ]]; then
    [[ "$MAYFLY_JOBS" =~ ^[1-9][0-9]*$ ]] || usage_error "MAYFLY_JOBS=$MAYFLY_JOBS is not a number of jobs"
    printf '%s' "$MAYFLY_JOBS"
    return
  fi
  cores="$(nproc)"
  available_gib="$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)"
  if ((available_gib < 1)); then available_gib=1; fi
  printf '%s' $((cores < available_gib ? cores : available_gib))
}

presets() { sed -n '/"configurePresets"/,/\]/s/.*{"name": "\([a-z-]*\)", "inherits".*/\1/p' "$ROOT/CMakePresets.json"; }

is_preset() { presets | grep -xF -- "$1" >/dev/null; }

check_preset() {
  is_preset "$1" || usage_error "there is no preset '$1'; there are: $(presets | paste -sd' ')"
}

# configure PRESET [cmake argument...]: CMake's own chatter only where it fails.
configure() {
  local preset="$1" log
  shift
  log="$ROOT/build/log/configure-$preset.log"
  mkdir -p -- "$(dirname -- "$log")"
  step "configuring preset $preset"
  if ! (cd "$ROOT" && cmake --preset "$preset" "$@") >"$log" 2>&1; then
    tail -n 60 -- "$log" >&2
    fail "$EXIT_FAILED" "configuring preset $preset failed (all of it: $log)"
  fi
}

# The words to put before a command that runs ThreadSanitizer's programs, one a line: its runtime of GCC 12 knows
# no more than 28 random bits in an address, and newer kernels use 32.
sanitizer_launcher() {
  if [[ "$1" == tsan ]] && (($(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0) > 28)) &&
    setarch -R true 2>/dev/null; then
    printf 'setarch\n-R\n'
  fi
}

# build_preset PRESET [target...]
build_preset() {
  local preset="$1" jobs launcher=()
  shift
  configure "$preset"
  jobs="$(job_count)"
  step "building preset $preset (-j$jobs)${1:+: $*}"
  local targets=()
  if (($# > 0)); then targets=(--target "$@"); fi
  # Building runs each test program once, to list its cases.
  mapfile -t launcher < <(sanitizer_launcher "$preset")
  (cd "$ROOT" && "${launcher[@]}" cmake --build --preset "$preset" -j "$jobs" "${targets[@]}") >&2 ||
    fail "$EXIT_FAILED" "building preset $preset failed"
}

# has_target PRESET TARGET: whether the configured preset knows the target.
has_target() {
  (cd "$ROOT" && cmake --build --preset "$1" --target help) 2>/dev/null | grep -q -- "^$2: "
}

# What kind of virtualization the host's own /dev/kvm offers, in words for a person.
kvm_kind() {
  if [[ ! -e /dev/kvm ]]; then
    printf 'this host has no /dev/kvm'
  elif [[ ! -r /dev/kvm || ! -w /dev/kvm ]]; then
    printf '/dev/kvm is there, but %s may not use it' "$(id -un)"
  elif [[ -d /sys/module/kvm_intel || -d /sys/module/kvm_amd ]]; then
    printf 'hardware KVM'
  else
    printf 'a KVM without hardware support'
  fi
}
