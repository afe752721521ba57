# Writes OUT, the header that cli/version.cpp includes, if its content changes.
# Run: cmake -DSOURCE=<repo> -DVERSION=<x.y.z> -DBUILD=<words> -DOUT=<header> -P version_values.cmake
set(commit "unknown")
find_program(GIT git)
if(GIT)
  # Whoever builds has read the sources: that another user owns them does not matter.
  execute_process(COMMAND ${GIT} -c safe.directory=${SOURCE} -C ${SOURCE} describe --always --dirty --tags
    OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  execute_process(COMMAND ${GIT} -c safe.directory=${SOURCE} -C ${SOURCE} rev-parse --show-toplevel
    OUTPUT_VARIABLE top OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(failed EQUAL 0 AND top STREQUAL SOURCE)  # not of a repository around unpacked sources
    set(commit ${described})
  endif()
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT [[// Written by cli/version_values.cmake.
#pragma once

namespace meshwright {

constexpr const char* kVersion = "@VERSION@";
constexpr const char* kCommit = "@commit@";
constexpr const char* kBuild = "@BUILD@";

}  // namespace meshwright
]] @ONLY)
