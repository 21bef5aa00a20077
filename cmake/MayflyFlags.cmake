# Compiler and linker flags for every target of the project, by way of the interface target mayfly_flags.

add_library(mayfly_flags INTERFACE)

target_compile_options(mayfly_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-align -Wcast-qual -Wformat=2
  -Wnon-virtual-dtor -Woverloaded-virtual -Wnull-dereference -Wundef -Wunused -Wimplicit-fallthrough -Werror
  -fno-strict-aliasing -fno-omit-frame-pointer)
target_compile_definitions(mayfly_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
# __FILE__ is relative to the project's root: logs show it, and no path of the building machine gets into a program.
target_compile_options(mayfly_flags INTERFACE "-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=")

if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # Lock annotations are checked by clang only.
  target_compile_options(mayfly_flags INTERFACE -Wthread-safety -Wextra-semi)
else()
  target_compile_options(mayfly_flags INTERFACE -Wduplicated-cond -Wlogical-op)
  # Two classes, or functions, of one name that differ: only a link that sees all files (LTO: the release build) can
  # tell, and goes by these words and not by the compiler's -Werror.
  target_link_options(mayfly_flags INTERFACE -Werror=odr -Werror=lto-type-mismatch)
endif()

if(MAYFLY_HARDENED)
  target_compile_options(mayfly_flags INTERFACE
    -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fstack-clash-protection -fcf-protection=full
    -ftrivial-auto-var-init=zero -ffunction-sections -fdata-sections)
  target_link_options(mayfly_flags INTERFACE
    -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack -Wl,-z,separate-code -Wl,--gc-sections)
endif()

if(MAYFLY_SANITIZE)
  target_compile_options(mayfly_flags INTERFACE -fsanitize=${MAYFLY_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(mayfly_flags INTERFACE -fsanitize=${MAYFLY_SANITIZE})
endif()

if(MAYFLY_FUZZERS)
  target_compile_options(mayfly_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(MAYFLY_COVERAGE)
  target_compile_options(mayfly_flags INTERFACE --coverage -fprofile-update=atomic)
  target_link_options(mayfly_flags INTERFACE --coverage)
endif()

# Programs that users run: static and position independent where asked for.
add_library(mayfly_program INTERFACE)
target_link_libraries(mayfly_program INTERFACE mayfly_flags)
if(MAYFLY_STATIC)
  # Most of the start before main() is relocation; packed, it takes a tenth of a MiB less to read. A static program
  # brings the C library that understands it (glibc 2.36 or later); an older linker ignores the option with a warning.
  target_link_options(mayfly_program INTERFACE -static-pie -Wl,-z,pack-relative-relocs)
else()
  target_link_options(mayfly_program INTERFACE -pie)
endif()

find_program(MAYFLY_CCACHE ccache)
if(MAYFLY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER "${MAYFLY_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${MAYFLY_CCACHE}")
endif()
