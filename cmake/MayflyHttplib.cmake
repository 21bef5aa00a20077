# The library httplib: cpp-httplib, one header, without TLS and compression. Debian's package of it is a shared library
# with both, so the header comes from the archive that Debian 13's source package is made of, the same everywhere:
#
# 1. MAYFLY_HTTPLIB_DIR, a folder that has the header, where it is set;
# 2. the cache that tools/devtool fills ($MAYFLY_CACHE_DIR, $XDG_CACHE_HOME/mayfly or ~/.cache/mayfly);
# 3. otherwise upstream, which is asked once for each build folder.
#
# Debian's own patches to this version bound chunked bodies and the number of headers: src/api/http refuses the former
# and bounds the latter before the library sees a request.
set(MAYFLY_HTTPLIB_VERSION 0.18.7)
set(MAYFLY_HTTPLIB_ARCHIVE pool/main/c/cpp-httplib/cpp-httplib_0.18.7.orig.tar.xz)
set(MAYFLY_HTTPLIB_ARCHIVE_SHA256 c88f6495da71e778c82c22995b547a92ceb41cc4016f9028df67106a24b9210d)
set(MAYFLY_HTTPLIB_HEADER_SHA256 4770f8ea3d3fcd27b0b713c783d9b53bce3baddbd5adad13714011df96142526)

set(MAYFLY_HTTPLIB_DIR "" CACHE PATH "Folder of httplib.h; empty: the cache's, or a downloaded one")

# Sets `result` to whether `folder` has the very header.
function(mayfly_has_httplib folder result)
  set(${result} FALSE PARENT_SCOPE)
  if(EXISTS "${folder}/httplib.h")
    file(SHA256 "${folder}/httplib.h" hash)
    if(hash STREQUAL MAYFLY_HTTPLIB_HEADER_SHA256)
      set(${result} TRUE PARENT_SCOPE)
    endif()
  endif()
endfunction()

if(MAYFLY_HTTPLIB_DIR)
  mayfly_has_httplib("${MAYFLY_HTTPLIB_DIR}" found)
  if(NOT found)
    message(FATAL_ERROR "MAYFLY_HTTPLIB_DIR: ${MAYFLY_HTTPLIB_DIR} has no httplib.h of cpp-httplib "
      "${MAYFLY_HTTPLIB_VERSION} (SHA-256 ${MAYFLY_HTTPLIB_HEADER_SHA256})")
  endif()
  set(httplib_folder "${MAYFLY_HTTPLIB_DIR}")
else()
  if(NOT "$ENV{MAYFLY_CACHE_DIR}" STREQUAL "")
    set(httplib_folder "$ENV{MAYFLY_CACHE_DIR}")
  elseif(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
    set(httplib_folder "$ENV{XDG_CACHE_HOME}/mayfly")
  else()
    set(httplib_folder "$ENV{HOME}/.cache/mayfly")
  endif()
  string(APPEND httplib_folder "/cpp-httplib/${MAYFLY_HTTPLIB_VERSION}")
  mayfly_has_httplib("${httplib_folder}" found)
  if(NOT found)
    mayfly_has_httplib("${CMAKE_BINARY_DIR}/cpp-httplib" found)
    set(httplib_folder "${CMAKE_BINARY_DIR}/cpp-httplib")
  endif()
  if(NOT found)
    # Upstream's file is the same.
    set(httplib_url "https://raw.githubusercontent.com/yhirose/cpp-httplib/v${MAYFLY_HTTPLIB_VERSION}/httplib.h")
    message(STATUS "Fetching ${httplib_url}")
    file(DOWNLOAD "${httplib_url}" "${httplib_folder}/httplib.h" STATUS httplib_status TIMEOUT 60)
    mayfly_has_httplib("${httplib_folder}" found)
    if(NOT found)
      file(REMOVE "${httplib_folder}/httplib.h")
      message(FATAL_ERROR "cpp-httplib's header cannot be had from ${httplib_url} (${httplib_status}). Run "
        "'tools/devtool setup build', or name a folder with httplib.h ${MAYFLY_HTTPLIB_VERSION}: "
        "-DMAYFLY_HTTPLIB_DIR=FOLDER")
    endif()
  endif()
endif()

# SYSTEM: its warnings are not ours.
add_library(httplib INTERFACE)
target_include_directories(httplib SYSTEM INTERFACE "${httplib_folder}")
