# mayfly_room(NAME SOURCES file... [DEPS room...] [LIBS library...] [TESTS file...])
#
# One room of the house: the static library mayfly_NAME from SOURCES, which may know the rooms in DEPS and nothing
# else of the project, and, where TESTS are given, its unit tests as one program mayfly_NAME_test whose cases carry
# the CTest labels `unit` and NAME. Headers are included from src/ on: #include "memory/guest_memory.h".
# tests/house checks that the includes keep to DEPS.
define_property(GLOBAL PROPERTY MAYFLY_ROOMS BRIEF_DOCS "Lines `room folder: dep dep ...` for the tests of the house")

function(mayfly_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;DEPS;LIBS;TESTS" ${ARGN})
  add_library(mayfly_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(mayfly_${name} PUBLIC "${CMAKE_SOURCE_DIR}/src")
  list(TRANSFORM ROOM_DEPS PREPEND mayfly_ OUTPUT_VARIABLE dep_targets)
  target_link_libraries(mayfly_${name} PUBLIC ${dep_targets} ${ROOM_LIBS} PRIVATE mayfly_flags)
  string(REPLACE ";" " " deps "${ROOM_DEPS}")
  file(RELATIVE_PATH folder "${CMAKE_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")
  set_property(GLOBAL APPEND PROPERTY MAYFLY_ROOMS "${name} ${folder}: ${deps}")

  if(ROOM_TESTS)
    add_executable(mayfly_${name}_test ${ROOM_TESTS})
    target_include_directories(mayfly_${name}_test PRIVATE "${CMAKE_SOURCE_DIR}/tests")
    target_link_libraries(mayfly_${name}_test PRIVATE mayfly_${name} mayfly_flags GTest::gmock GTest::gtest_main)
    mayfly_discover_tests(mayfly_${name}_test PREFIX "${name}." LABELS unit ${name} TIMEOUT 300)
  endif()
endfunction()

# mayfly_discover_tests(TARGET PREFIX prefix LABELS label... [TIMEOUT seconds])
#
# Every case of the GoogleTest program TARGET as a CTest case. The labels are set in a file that CTest reads after
# the discovered cases: gtest_discover_tests itself cannot pass on a property that is a list.
function(mayfly_discover_tests target)
  cmake_parse_arguments(DISCOVER "" "PREFIX;TIMEOUT" "LABELS" ${ARGN})
  if(NOT DISCOVER_TIMEOUT)
    set(DISCOVER_TIMEOUT 300)
  endif()
  gtest_discover_tests(${target} TEST_PREFIX "${DISCOVER_PREFIX}" TEST_LIST ${target}_cases DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT ${DISCOVER_TIMEOUT})
  set(labels_file "${CMAKE_CURRENT_BINARY_DIR}/${target}_labels.cmake")
  file(CONFIGURE OUTPUT "${labels_file}" @ONLY CONTENT
    "foreach(case IN LISTS @target@_cases)\n  set_tests_properties(\"\${case}\" PROPERTIES LABELS \"@DISCOVER_LABELS@\")\nendforeach()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${labels_file}")
endfunction()
