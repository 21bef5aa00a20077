# shellcheck shell=bash

test_help() {
  cat <<'HELP'
Usage: tools/devtool test [--unit | --quick] [--preset PRESET] [PATTERN]

Installs what is missing, builds, runs the whole test suite, and ends with a summary that says what ran where and
names every test that was skipped, with its reason:

  unit, house   need no /dev/kvm, no root, no network
  integration   bare guests on this host's own /dev/kvm
  linux         Linux guests: on hardware KVM where this host has it, otherwise inside QEMU, which emulates AMD-V
  release       the shipped program: static, hardened, small

  --unit           unit and house tests only: no guest, nothing to install for one
  --quick          all but the linux tests and the release build
  --preset PRESET  run the unit tests of another build: asan-ubsan, tsan, coverage
  PATTERN          only the tests whose name matches this regular expression; quote it: 'serial.*'

The first full run downloads Debian's kernel and builds the small one (minutes, once: kept in ~/.cache/mayfly);
all of it takes 20 to 25 minutes on 4 cores.
Exit code: 0 if every test passed or was skipped for a reason, 1 if one failed.
HELP
}

test_main() {
  local scope=all preset=dev pattern="" among="" unit_labels='^(unit|house)$'
  while (($# > 0)); do
    case "$1" in
      --unit) scope=unit ;;
      --quick) scope=quick ;;
      --preset) preset="$(option_value "$@")"; shift ;;
      -*) usage_error "test has no option '$1'; see tools/devtool test --help" ;;
      *)
        [[ -z "$pattern" ]] || usage_error "test takes one PATTERN, got '$pattern' and '$1'"
        pattern="$1"
        ;;
    esac
    shift
  done
  check_preset "$preset"
  if [[ "$preset" != dev ]]; then
    scope=unit
    unit_labels='^unit$'
  fi
  if [[ "$preset" == fuzz ]]; then usage_error "the fuzz preset has no tests; see tools/devtool fuzz --help"; fi

  ensure_preset_packages "$preset"
  if [[ "$scope" != unit ]]; then ensure_packages test; fi
  if [[ "$scope" == all ]]; then ensure_guest_packages kernel image; fi

  build_preset "$preset"
  if [[ "$scope" == all ]]; then
    build_preset release
    if [[ -f "$RELEASE_PROGRAM" ]]; then export MAYFLY_PROGRAM="$RELEASE_PROGRAM"; fi
  fi

  local -a selection=() runs=()
  case "$scope" in
    unit) selection=(-L "$unit_labels") ;;
    quick) selection=(-LE '^linux$') ;;
  esac
  if [[ -n "$pattern" ]]; then selection+=(-R "$pattern"); fi

  # A pattern may match in one of the two builds only.
  local failed=0
  if has_tests "$preset" "${selection[@]}"; then
    run_ctest "$preset" "${selection[@]}" || failed=1
    runs+=("$preset")
  fi
  if [[ "$scope" == all ]] && has_tests release -L '^release$' ${pattern:+-R "$pattern"}; then
    run_ctest release -L '^release$' ${pattern:+-R "$pattern"} || failed=1
    runs+=(release)
  fi
  if ((${#runs[@]} == 0)); then
    if [[ "$scope" != all ]]; then among=" among the $scope tests of preset $preset"; fi
    if [[ -n "$pattern" ]]; then usage_error "no test's name matches '$pattern'$among"; fi
    fail "$EXIT_FAILED" "ctest lists no tests in build/$preset"
  fi

  python3 "$LIB/test_summary.py" --host-kvm "$(kvm_kind)" --linux-tier "$(linux_tier)" \
    "${runs[@]/#/$ROOT/build/log/ctest-}" || failed=1
  if ((failed)); then
    fail "$EXIT_FAILED" "tests failed; again with: tools/devtool test --preset $preset PATTERN"
  fi
}

has_tests() {
  local preset="$1"
  shift
  (cd "$ROOT" && ctest --preset "$preset" -N "$@") 2>/dev/null | grep '^Total Tests: [1-9]' >/dev/null
}

# run_ctest PRESET [ctest argument...]: leaves the results in build/log/ctest-PRESET.{xml,json} for the summary.
run_ctest() {
  local preset="$1" results launcher=()
  shift
  results="$ROOT/build/log/ctest-$preset"
  mapfile -t launcher < <(sanitizer_launcher "$preset")
  rm -f -- "$results.xml" "$results.json"
  step "testing preset $preset"
  (cd "$ROOT" && ctest --preset "$preset" --show-only=json-v1 "$@") >"$results.json" || true
  (cd "$ROOT" && "${launcher[@]}" ctest --preset "$preset" -j "$(job_count)" --output-junit "$results.xml" \
    --test-output-size-passed 65536 --test-output-size-failed 262144 "$@")
}
