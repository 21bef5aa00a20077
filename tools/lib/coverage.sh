# shellcheck shell=bash

coverage_help() {
  cat <<'HELP'
Usage: tools/devtool coverage

Builds the coverage preset, runs the unit tests and those of the network's back ends, which take a tap and passt, and
prints the share of lines they reach, room by room. Fails where memory, boot or a device is below 90 %. Line by line, as a web page: build/coverage/report/index.html.
HELP
}

coverage_main() {
  (($# == 0)) || usage_error "coverage takes no arguments; see tools/devtool coverage --help"
  # shellcheck source=tools/lib/test.sh
  source "$LIB/test.sh"
  ensure_preset_packages coverage
  build_preset coverage
  # Counts of earlier runs would add up.
  find "$ROOT/build/coverage" -name '*.gcda' -delete
  run_ctest coverage -L '^(unit|virtio_net)$' || fail "$EXIT_FAILED" "tests failed"
  step "coverage by room"
  mkdir -p -- "$ROOT/build/coverage/report"
  (cd "$ROOT" && gcovr --root . --object-directory build/coverage --filter src/ --exclude '.*_test\.cc' \
    --exclude-throw-branches --json-summary build/coverage/report/summary.json \
    --html-details build/coverage/report/index.html >build/log/gcovr.log 2>&1) ||
    { tail -n 20 build/log/gcovr.log >&2; fail "$EXIT_FAILED" "gcovr failed"; }
  python3 "$LIB/coverage_summary.py" "$ROOT/build/coverage/report/summary.json" ||
    fail "$EXIT_FAILED" "a room is below its threshold"
}
