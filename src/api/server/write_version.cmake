# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# Run at every build: writes version.cc with the commit that is checked out now, touching it only when
# something changed.
execute_process(COMMAND git -C ${SOURCE_DIR} rev-parse --short=12 HEAD
  OUTPUT_VARIABLE TERRACE_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE git_failed)
if(git_failed)
  set(TERRACE_COMMIT unknown)
endif()
configure_file(${TEMPLATE} ${OUTPUT} @ONLY)
