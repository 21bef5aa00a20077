# shellcheck shell=bash

build_help() {
  cat <<HELP
Usage: tools/devtool build [--preset PRESET] [TARGET...]

Configures and builds one preset into build/PRESET (default: dev), all of it or the TARGETs. Presets: $(presets | paste -sd' ').
The program of the release preset is build/release/src/mayfly/mayfly: static, hardened, the one to ship.
HELP
}

build_main() {
  local preset=dev targets=()
  while (($# > 0)); do
    case "$1" in
      --preset) preset="$(option_value "$@")"; shift ;;
      -*) usage_error "build has no option '$1'; see tools/devtool build --help" ;;
      *)
        if is_preset "$1"; then usage_error "'$1' is a preset: tools/devtool build --preset $1"; fi
        targets+=("$1")
        ;;
    esac
    shift
  done
  check_preset "$preset"
  ensure_preset_packages "$preset"
  build_preset "$preset" "${targets[@]}"
}
