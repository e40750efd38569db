# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#
# terrace_bench stands on libterrace like any client; only the index and the NVMe tier's cases link the core, to
# weigh and time them without a daemon around them.
if(TERRACE_SERVER)  # it measures terraced
  set(TERRACE_BENCH_SOURCES bench_main.cc report.cc machine.cc process.cc bench_daemon.cc cache_client.cc
    redis_peer.cc lookup_cases.cc copy_cases.cc clients_case.cc index_case.cc mooncake_case.cc vllm_cases.cc
    fio_peer.cc bench_tier.cc nvme_tier_cases.cc nvme_daemon_cases.cc)
  set(TERRACE_BENCH_LIBS terrace terrace_tiering)
  set_source_files_properties(vllm_cases.cc PROPERTIES
    COMPILE_DEFINITIONS TERRACE_BENCH_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
endif()
