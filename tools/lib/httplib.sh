# shellcheck shell=bash
# cpp-httplib's header, from the archive of Debian's source package into the cache, where CMake looks for it. The pins
# are in cmake/MayflyHttplib.cmake.

httplib_pin() { sed -n "s/^set(MAYFLY_HTTPLIB_$1 \(.*\))\$/\1/p" "$ROOT/cmake/MayflyHttplib.cmake"; }

has_httplib() {
  echo "$(httplib_pin HEADER_SHA256)  $1/httplib.h" | sha256sum --check --status 2>/dev/null
}

# Where Debian's archive is, as apt is told.
debian_archives() {
  # shellcheck disable=SC2016  # apt expands it
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | sort -u | grep '/debian/*$' || true
}

# ensure_httplib: free of cost where the header is there. By apt's own downloader, which needs neither root nor
# `deb-src` lines nor an index, and knows apt's proxy. What it cannot get is left to CMake.
ensure_httplib() {
  local downloader=/usr/lib/apt/apt-helper folder archive="" work site
  folder="${MAYFLY_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/cpp-httplib/$(httplib_pin VERSION)"
  if has_httplib "$folder" || [[ ! -x "$downloader" || -n "${MAYFLY_NO_INSTALL:-}" ]]; then
    return
  fi
  step "fetching the header of cpp-httplib $(httplib_pin VERSION) (once; kept in $folder)"
  mkdir -p -- "$ROOT/build/log" "$folder"
  work="$(mktemp -d "$folder/.XXXXXX")"
  archive="$work/cpp-httplib.tar.xz"
  while read -r site; do
    if "$downloader" download-file "${site%/}/$(httplib_pin ARCHIVE)" "$archive" \
      "SHA256:$(httplib_pin ARCHIVE_SHA256)" </dev/null >"$ROOT/build/log/httplib.log" 2>&1; then
      break
    fi
  done < <(debian_archives)
  if (cd "$work" && cmake -E tar xf "$archive" && mv -- */httplib.h .) >>"$ROOT/build/log/httplib.log" 2>&1 &&
    has_httplib "$work"; then
    mv -- "$work/httplib.h" "$folder/httplib.h"
  else
    warn "that failed (see build/log/httplib.log); CMake will try by itself"
  fi
  rm -rf -- "$work"
}
