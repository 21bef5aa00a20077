# shellcheck shell=bash

fuzz_help() {
  cat <<'HELP'
Usage: tools/devtool fuzz [--seconds N] [--keep] [TARGET...]
       tools/devtool fuzz --list

Builds the fuzz targets with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and runs each of them
(or those named) for N seconds (default 60), several side by side. Starts from tests/fuzz/corpus/TARGET and from what
earlier runs found, which is kept in build/fuzz-work. An input that breaks something is left in
build/fuzz-work/TARGET/findings; with it as its only argument, build/fuzz/.../TARGET_fuzz repeats the failure.

  --seconds N  how long each target runs (default 60)
  --keep       afterwards, put the inputs that reach something new into tests/fuzz/corpus/TARGET
  --list       name the targets and end

Exit code: 0 if nothing was found, 1 if something was.
HELP
}

fuzz_main() {
  local seconds=60 keep=0 list=0 targets=()
  while (($# > 0)); do
    case "$1" in
      --seconds)
        seconds="$(option_value "$@")"
        [[ "$seconds" =~ ^[1-9][0-9]*$ ]] || usage_error "--seconds takes a number of seconds, not '$seconds'"
        shift
        ;;
      --keep) keep=1 ;;
      --list) list=1 ;;
      -*) usage_error "fuzz has no option '$1'; see tools/devtool fuzz --help" ;;
      *) targets+=("$1") ;;
    esac
    shift
  done
  ensure_preset_packages fuzz
  configure fuzz

  local known=() target
  mapfile -t known < <((cd "$ROOT" && cmake --build --preset fuzz --target help) | sed -n 's/^\([a-z0-9_]*\)_fuzz: .*/\1/p' | sort -u)
  if ((list)); then
    printf '%s\n' "${known[@]}"
    return
  fi
  ((${#known[@]} > 0)) || fail "$EXIT_FAILED" "the project has no fuzz targets yet"
  if ((${#targets[@]} == 0)); then targets=("${known[@]}"); fi
  for target in "${targets[@]}"; do
    [[ " ${known[*]} " == *" $target "* ]] || usage_error "there is no fuzz target '$target'; there are: ${known[*]}"
  done

  build_preset fuzz "${targets[@]/%/_fuzz}"
  step "fuzzing ${#targets[@]} targets for $seconds s each, $(job_count) side by side"
  export ROOT
  export -f fuzz_one
  # shellcheck disable=SC2016  # the inner shell expands them: $0 is the seconds, $1 the target
  if ! printf '%s\0' "${targets[@]}" |
    xargs -0 -n 1 -P "$(job_count)" bash -euo pipefail -c 'fuzz_one "$1" "$0"' "$seconds"; then
    fail "$EXIT_FAILED" "a fuzz target failed; the input and the log are in build/fuzz-work/TARGET"
  fi
  if ((keep)); then
    for target in "${targets[@]}"; do fuzz_keep "$target"; done
  fi
  step "nothing found"
}

# fuzz_one TARGET SECONDS: one line at the end, or the log's last lines where something was found.
fuzz_one() {
  local target="$1" seconds="$2" work="$ROOT/build/fuzz-work/$1" program seeds="$ROOT/tests/fuzz/corpus/$1"
  program="$(find "$ROOT/build/fuzz" -type f -name "${target}_fuzz" -perm -u+x -print -quit)"
  mkdir -p "$work/corpus" "$work/findings"
  local folders=("$work/corpus")
  if [[ -d "$seeds" ]]; then folders+=("$seeds"); fi
  # -rss_limit_mb: an input that makes a target allocate without bound is a finding, too.
  if ! "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$work/findings/" "${folders[@]}" >"$work/log" 2>&1 </dev/null; then
    printf '%s: FAILED\n' "$target"
    tail -n 40 "$work/log"
    return 1
  fi
  printf '%s: %s runs in %s s, %s inputs kept, nothing found\n' "$target" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")" "$seconds" \
    "$(find "$work/corpus" -type f | wc -l)"
}

fuzz_keep() {
  local target="$1" program seeds="$ROOT/tests/fuzz/corpus/$1" before
  program="$(find "$ROOT/build/fuzz" -type f -name "${target}_fuzz" -perm -u+x -print -quit)"
  mkdir -p "$seeds"
  before="$(find "$seeds" -type f | wc -l)"
  "$program" -merge=1 "$seeds" "$ROOT/build/fuzz-work/$target/corpus" >"$ROOT/build/fuzz-work/$target/merge-log" 2>&1
  note "$target: $before seeds before, $(find "$seeds" -type f | wc -l) now"
}
