# shellcheck shell=bash

# The benchmarks: programs bench/NAME, bench/NAME.py or bench/NAME.sh whose second line says in a comment or a
# docstring what they measure.
bench_programs() {
  find "$ROOT/bench" -maxdepth 1 -type f -perm -u+x -printf '%f\n' | sort
}

bench_names() { bench_programs | sed 's/\..*//' | paste -sd' '; }

# bench_program NAME: its file in bench/, or nothing.
bench_program() {
  local file
  while read -r file; do
    if [[ "${file%.*}" == "$1" ]]; then printf '%s' "$file"; fi
  done < <(bench_programs)
}

# A benchmark's own help needs no build.
bench_help() {
  local program
  program="$(bench_program "$1")"
  if [[ -n "$program" ]]; then
    "$ROOT/bench/$program" --help
    return
  fi
  cat <<HELP
Usage: tools/devtool bench NAME [ARGUMENT...]

Builds what it measures, by the release preset, and takes the figures that SPECIFICATION.md promises. NAME --help says
what one of them measures and how. There are:
$(bench_programs | while read -r file; do
    printf '  %-8s %s\n' "${file%.*}" "$(sed -n '2s/^[#" ]*//; 2s/"*$//; 2p' "$ROOT/bench/$file")"
  done)
HELP
}

bench_main() {
  local name="${1:-}" program
  case "$name" in
    "") usage_error "bench needs the name of a benchmark; there are: $(bench_names)" ;;
    -*) usage_error "bench has no option '$name'; see tools/devtool bench --help" ;;
  esac
  shift
  program="$(bench_program "$name")"
  [[ -n "$program" ]] || usage_error "there is no benchmark '$name'; there are: $(bench_names)"
  ensure_packages build bench
  ensure_guest_packages kernel
  # Where they run, or what they measure against.
  if [[ "$name" == boot || "$name" == peers || "$name" == prefetch ]]; then ensure_packages emulator; fi
  build_preset release mayfly mayfly_device_load jailer
  step "bench $name"
  MAYFLY_PROGRAM="$RELEASE_PROGRAM" MAYFLY_JAILER="$ROOT/build/release/jailer/jailer" MAYFLY_DEVICE_LOAD="$ROOT/build/release/bench/mayfly_device_load" \
    "$ROOT/bench/$program" "$@"
}
