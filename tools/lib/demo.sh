# shellcheck shell=bash

demo_help() {
  cat <<'HELP'
Usage: tools/devtool demo
HELP
}

demo_main() {
  fail "$EXIT_FAILED" "the monitor is not there yet"
}
