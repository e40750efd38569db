// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// nccl_peer: rank 1 of the NCCL link's tests, a process of its own.
//   nccl_peer DRIVER NCCL ID MEMORY BATCHES FRAMES BOTH_WAYS END
// ID: 256 hex digits. MEMORY: host, pinned, device. END, after its batches: stay (until standard input closes), kill
// (itself), freeze (stops itself). Ends with 0 when all batches went well; else says why not.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gpu/nccl_rig.h"

int main(int argc, char** argv) {
  using namespace terrace::gpu;
  if (argc != 9) return 2;
  const std::string memory = argv[4], end = argv[8], hex = argv[3];
  NcclLinkOptions options;
  options.driver = argv[1];
  options.library = argv[2];
  NcclUniqueId id;
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::byte>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  LinkPlan plan;
  plan.rank = 1;
  plan.memory = memory == "host" ? LinkMemory::kHost : memory == "pinned" ? LinkMemory::kPinned : LinkMemory::kDevice;
  plan.batches = std::strtoull(argv[5], nullptr, 10);
  plan.frames = std::strtoull(argv[6], nullptr, 10);
  plan.both_ways = argv[7] == std::string("1");
  plan.deadline_ns = 120'000'000'000;

  LinkRig rig(options.driver, plan);
  auto link = NcclLink::Open(options, id, plan.rank);
  if (!link.ok()) {
    std::fprintf(stderr, "nccl_peer: %s\n", link.status().ToString().c_str());
    return 1;
  }
  const absl::Status status = rig.RunAll(**link, 4);
  if (!status.ok()) std::fprintf(stderr, "nccl_peer: %s\n", status.ToString().c_str());
  if (status.ok() && end == "kill") kill(getpid(), SIGKILL);
  if (status.ok() && end == "freeze") raise(SIGSTOP);
  char byte;
  while (status.ok() && read(STDIN_FILENO, &byte, 1) > 0) continue;
  return status.ok() ? 0 : 1;
}
