// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What `terracectl doctor` looks at on this machine without a daemon. Each probe looks, changes nothing,
// and gives the line that mends what it found.
#pragma once

#include <string>

namespace terrace::ctl {

struct Finding {
  enum Level {
    kOk,
    kNote,     // works, but could be better, or is needed by a later step only
    kProblem,  // something will not work
  };
  std::string check;  // "hugepages"
  Level level = kOk;
  std::string text;  // what was seen
  std::string fix;   // a command or setting; "" when there is nothing to mend
};

Finding ProbeSealedMemory();
Finding ProbeHugePages();
Finding ProbeTransparentHugePages();
Finding ProbeLockedMemory();
Finding ProbeDescriptors();
Finding ProbeIoUring();
// Where the host tier's memory outlives its daemon: a tmpfs directory ("/dev/shm") and its size.
Finding ProbeSharedMemory(const std::string& path);
// A directory for a data file (space, reserving it, O_DIRECT), the file itself, or a block device.
Finding ProbeNvmePlace(const std::string& path);
// name: "engine socket". type: SOCK_STREAM or SOCK_SEQPACKET. Connects and says nothing.
Finding ProbeSocket(const std::string& name, const std::string& path, int type);
// Asks `python` for the installed terrace-vllm; expected: the version of this terracectl.
Finding ProbePlugin(const std::string& python, const std::string& expected);

}  // namespace terrace::ctl
