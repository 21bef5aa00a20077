# shellcheck shell=bash

# The release of clang-format and clang-tidy that decides (Debian 12's). Another one formats and warns a little
# differently; what it finds is shown, and does not fail.
readonly STYLE_VERSION=14

style_help() {
  cat <<HELP
Usage: tools/devtool style [--fix] [--format-only] [FILE...]

Checks the formatting (clang-format), runs clang-tidy over every source file as clang would compile it, and shellcheck
over the scripts. With FILEs, only these.

  --fix          reformat in place instead of complaining, and leave the linters out
  --format-only  leave the linters out: seconds instead of minutes

Version $STYLE_VERSION of the clang tools decides (Debian 12 has it); what another version finds is shown without failing.
HELP
}

style_main() {
  local fix=0 linters=1 files=()
  while (($# > 0)); do
    case "$1" in
      --fix) fix=1; linters=0 ;;
      --format-only) linters=0 ;;
      -*) usage_error "style has no option '$1'; see tools/devtool style --help" ;;
      *)
        [[ -f "$1" ]] || usage_error "there is no file $1"
        files+=("$(realpath --relative-to="$ROOT" -- "$1")")
        ;;
    esac
    shift
  done
  ensure_packages build style
  if ((${#files[@]} == 0)); then mapfile -t files < <(project_files); fi

  local failed=0
  style_format "$fix" "${files[@]}" || failed=1
  if ((linters)); then
    style_tidy "${files[@]}" || failed=1
    style_shell "${files[@]}" || failed=1
  fi
  if ((failed)); then
    fail "$EXIT_FAILED" "the style is not kept; tools/devtool style --fix mends the formatting"
  fi
  if ((fix)); then step "the formatting is mended"; else step "the style is kept"; fi
}

# All source files and scripts of the project, relative to its root; but for one header that is the assembler's.
project_files() {
  local folders=() folder
  for folder in src jailer tests bench tools resources .ci; do
    if [[ -d "$ROOT/$folder" ]]; then folders+=("$folder"); fi
  done
  (cd "$ROOT" && find "${folders[@]}" -type f -not -path '*/fixtures/*' -not -path '*/corpus/*' \
    -not -path tests/support/guests/guest.h | sort)
}

only() { printf '%s\n' "${@:2}" | grep -E -- "$1" || true; }

# Whether a clang tool is the version that decides: says so where not, before the tool says anything.
decides() {
  local version
  version="$("$1" --version | sed -n 's/.*version \([0-9]*\).*/\1/p' | head -n 1)"
  if [[ "$version" != "$STYLE_VERSION" ]]; then
    warn "$1 here is version $version, not $STYLE_VERSION, which decides: what it finds does not count"
    return 1
  fi
}

style_format() {
  local fix="$1" sources=() counts=1
  shift
  mapfile -t sources < <(only '\.(h|cc|c)$' "$@")
  if ((${#sources[@]} == 0)); then return 0; fi
  step "formatting of ${#sources[@]} files"
  decides clang-format || counts=0
  if ((fix)); then
    if ((counts == 0)); then warn "it formats other lines than yours as well: take back what you did not write"; fi
    (cd "$ROOT" && clang-format -i -- "${sources[@]}")
    return
  fi
  if ! (cd "$ROOT" && clang-format --dry-run --Werror --ferror-limit=5 -- "${sources[@]}"); then
    return "$counts"
  fi
}

style_tidy() {
  local sources=() headers=() counts=1 log="$ROOT/build/log/clang-tidy.log"
  mapfile -t sources < <(only '\.cc$' "$@")
  mapfile -t headers < <(only '\.h$' "$@")
  if ((${#sources[@]} == 0)); then
    if ((${#headers[@]})); then note "headers are linted through the files that include them"; fi
    return 0
  fi
  # A build folder of its own: clang-tidy has to see the flags that clang gets, not GCC's.
  step "configuring for clang-tidy"
  mkdir -p -- "$ROOT/build/log"
  (cd "$ROOT" && cmake --preset dev -B build/style -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ &&
    cmake --build build/style --target mayfly_generated) >"$log" 2>&1 ||
    { tail -n 40 -- "$log" >&2; return 1; }
  step "clang-tidy"
  decides clang-tidy || counts=0
  if ! (cd "$ROOT" && python3 "$LIB/tidy.py" build/style "$(job_count)" "${sources[@]}") >&2; then
    return "$counts"
  fi
}

style_shell() {
  local scripts=() file
  for file in "$@"; do
    if [[ "$file" == *.sh ]] || head -n 1 -- "$ROOT/$file" | grep -qaE '^#!.*\b(ba)?sh\b'; then scripts+=("$file"); fi
  done
  if ((${#scripts[@]} == 0)); then return 0; fi
  step "shellcheck over ${#scripts[@]} scripts"
  (cd "$ROOT" && shellcheck --external-sources -- "${scripts[@]}")
}
