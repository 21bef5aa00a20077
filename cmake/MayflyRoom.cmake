# mayfly_room(NAME SOURCES file... [DEPS room...] [LIBS library...] [TESTS file...])
#
# One room of the house: the static library mayfly_NAME from SOURCES, which may know the rooms in DEPS and nothing
# else of the project, and, where TESTS are given, its unit tests as one program mayfly_NAME_test whose cases carry
# the CTest labels `unit` and NAME. Headers are included from src/ on: #include "memory/guest_memory.h".
# tests/house checks that the includes keep to DEPS.
define_property(GLOBAL PROPERTY MAYFLY_ROOMS BRIEF_DOCS "Lines `room: dep dep ...` for the test of the house's arrows")

function(mayfly_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;DEPS;LIBS;TESTS" ${ARGN})
  add_library(mayfly_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(mayfly_${name} PUBLIC "${CMAKE_SOURCE_DIR}/src")
  list(TRANSFORM ROOM_DEPS PREPEND mayfly_ OUTPUT_VARIABLE dep_targets)
  target_link_libraries(mayfly_${name} PUBLIC ${dep_targets} ${ROOM_LIBS} PRIVATE mayfly_flags)
  string(REPLACE ";" " " deps "${ROOM_DEPS}")
  set_property(GLOBAL APPEND PROPERTY MAYFLY_ROOMS "${name}: ${deps}")

  if(ROOM_TESTS)
    add_executable(mayfly_${name}_test ${ROOM_TESTS})
    target_include_directories(mayfly_${name}_test PRIVATE "${CMAKE_SOURCE_DIR}/tests")
    target_link_libraries(mayfly_${name}_test PRIVATE mayfly_${name} mayfly_flags GTest::gmock GTest::gtest_main)
    gtest_discover_tests(mayfly_${name}_test TEST_PREFIX "${name}." DISCOVERY_TIMEOUT 60
      TEST_LIST mayfly_${name}_tests PROPERTIES TIMEOUT 300)
    # gtest_discover_tests cannot pass a list as a property's value: the two labels are set by a file that CTest reads
    # after the one with the discovered cases.
    set(labels_file "${CMAKE_CURRENT_BINARY_DIR}/mayfly_${name}_labels.cmake")
    file(WRITE "${labels_file}" "foreach(case IN LISTS mayfly_${name}_tests)\n"
      "  set_tests_properties(\"\${case}\" PROPERTIES LABELS \"unit;${name}\")\nendforeach()\n")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${labels_file}")
  endif()
endfunction()
