# shellcheck shell=bash

setup_help() {
  cat <<HELP
Usage: tools/devtool setup [GROUP...]

Installs the Debian packages of the groups, or of all groups where none is named. What is installed already is left
alone, and the package lists are fetched only where something is missing.

Groups:
$(for group in $PACKAGE_GROUPS; do printf '  %-9s %s\n' "$group" "$(packages_of "$group" | paste -sd' ')"; done)

The other commands install their own groups: naming them here is for a machine that loses its network later.
HELP
}

setup_main() {
  local groups=("$@") group
  if ((${#groups[@]} == 0)); then
    read -r -a groups <<<"$PACKAGE_GROUPS"
  fi
  for group in "${groups[@]}"; do
    if [[ "$group" == -* ]]; then usage_error "setup has no option '$group'; see tools/devtool setup --help"; fi
    [[ " $PACKAGE_GROUPS " == *" $group "* ]] || usage_error "there is no group '$group'; there are: $PACKAGE_GROUPS"
  done
  ensure_packages "${groups[@]}"
  step "everything for ${groups[*]} is installed"
}
