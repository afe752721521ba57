# Compiles SOURCE, which includes HEADER, with a room's search path. EXPECTED `may`: it compiles; `must_not`: it does not,
# because the header is not there.
string(REPLACE "|" ";" INCLUDES "${INCLUDES}")
set(flags "")
foreach(directory ${INCLUDES})
  list(APPEND flags -I${directory})
endforeach()
execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only ${flags} ${SOURCE} ERROR_VARIABLE said RESULT_VARIABLE code)
string(FIND "${said}" "${HEADER}: No such file or directory" absent)
if(EXPECTED STREQUAL "may" AND NOT code EQUAL 0)
  message(FATAL_ERROR "${HEADER} should be within reach:\n${said}")
elseif(EXPECTED STREQUAL "must_not" AND (code EQUAL 0 OR absent EQUAL -1))
  message(FATAL_ERROR "${HEADER} should not be within reach, against the arrows:\n${said}")
endif()
