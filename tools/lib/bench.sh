# shellcheck shell=bash

# The benchmarks: programs bench/NAME, bench/NAME.py or bench/NAME.sh whose second line says in a comment or a
# docstring what they measure.
bench_programs() {
  find "$ROOT/bench" -maxdepth 1 -type f -perm -u+x -printf '%f\n' | sort
}

bench_help() {
  cat <<HELP
Usage: tools/devtool bench NAME [ARGUMENT...]

Builds the release preset and takes the figures that SPECIFICATION.md promises. NAME --help says what one of them
measures and how. There are:
$(bench_programs | while read -r file; do
    printf '  %-8s %s\n' "${file%.*}" "$(sed -n '2s/^[#" ]*//; 2s/"*$//; 2p' "$ROOT/bench/$file")"
  done)
HELP
}

bench_main() {
  local name="${1:-}" program
  case "$name" in
    "" | -*) usage_error "bench needs the name of a benchmark; there are: $(bench_programs | sed 's/\..*//' | paste -sd' ')" ;;
  esac
  shift
  program="$(bench_programs | grep -E -- "^$name(\.(py|sh))?$" | head -n 1)" ||
    usage_error "there is no benchmark '$name'; there are: $(bench_programs | sed 's/\..*//' | paste -sd' ')"
  ensure_packages build
  ensure_guest_packages kernel
  build_preset release
  step "bench $name"
  MAYFLY_PROGRAM="$RELEASE_PROGRAM" "$ROOT/bench/$program" "$@"
}
