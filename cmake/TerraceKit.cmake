# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# The dependencies of the core from a folder that scripts/gpu_kit.sh made, for machines that have a compiler and
# the CUDA toolkit but not Debian's packages: -DTERRACE_KIT=DIR. Declares the same targets as the find_package()
# calls in the project's CMakeLists.txt do, from that folder and nowhere else.
if(TERRACE_SERVER)
  message(FATAL_ERROR "TERRACE_KIT carries what the core needs, not gRPC: build with -DTERRACE_SERVER=OFF")
endif()
get_filename_component(TERRACE_KIT ${TERRACE_KIT} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
if(NOT EXISTS ${TERRACE_KIT}/kit.txt)
  message(FATAL_ERROR "${TERRACE_KIT} is no kit: make one with scripts/gpu_kit.sh on a Debian machine and carry it here")
endif()
set(TERRACE_KIT_LIB ${TERRACE_KIT}/lib/x86_64-linux-gnu)
find_package(absl REQUIRED PATHS ${TERRACE_KIT_LIB}/cmake/absl NO_DEFAULT_PATH)
if(TERRACE_TESTS)
  find_package(GTest REQUIRED CONFIG PATHS ${TERRACE_KIT_LIB}/cmake/GTest NO_DEFAULT_PATH)
endif()

# terrace_kit_library(TARGET ARCHIVE): an archive of the kit, or headers only without one.
function(terrace_kit_library target archive)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${TERRACE_KIT}/include)
  if(archive)
    target_link_libraries(${target} INTERFACE ${TERRACE_KIT_LIB}/${archive} ${CMAKE_DL_LIBS})
  endif()
endfunction()
terrace_kit_library(PkgConfig::XXHASH libxxhash.a)
terrace_kit_library(OpenSSL::Crypto libcrypto.a)
terrace_kit_library(ZLIB::ZLIB libz.a)
terrace_kit_library(PkgConfig::SPDLOG "")
target_compile_definitions(PkgConfig::SPDLOG INTERFACE SPDLOG_HEADER_ONLY SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)
set(URING_LIBRARY ${TERRACE_KIT_LIB}/liburing.a CACHE FILEPATH "liburing of the kit" FORCE)
# liburing.h stands beside the others. This Abseil forgets <cstdint>, which GCC 13 no longer includes by itself.
include_directories(SYSTEM ${TERRACE_KIT}/include)
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-include$<SEMICOLON>cstdint>)
