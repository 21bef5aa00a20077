# mayfly_fuzz_target(NAME SOURCES file... DEPS room...)
#
# One fuzz target: SOURCES define LLVMFuzzerTestOneInput. With MAYFLY_FUZZERS the program NAME_fuzz runs it under
# libFuzzer; otherwise NAME_fuzz replays the seed corpus in tests/fuzz/corpus/NAME, as the CTest case fuzz_corpus.NAME
# with the label `unit`. The corpus must not be empty.
function(mayfly_fuzz_target name)
  cmake_parse_arguments(FUZZ "" "" "SOURCES;DEPS" ${ARGN})
  list(TRANSFORM FUZZ_DEPS PREPEND mayfly_ OUTPUT_VARIABLE dep_targets)
  add_executable(${name}_fuzz ${FUZZ_SOURCES})
  target_include_directories(${name}_fuzz PRIVATE "${CMAKE_SOURCE_DIR}/tests")
  target_link_libraries(${name}_fuzz PRIVATE ${dep_targets} mayfly_flags)
  if(MAYFLY_FUZZERS)
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  else()
    target_sources(${name}_fuzz PRIVATE "${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc")
    add_test(NAME fuzz_corpus.${name} COMMAND ${name}_fuzz "${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}")
    set_tests_properties(fuzz_corpus.${name} PROPERTIES LABELS "unit;fuzz_corpus" TIMEOUT 300)
  endif()
endfunction()
