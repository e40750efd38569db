// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "fio_peer.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::bench {
namespace {

constexpr double kLongestRun = 300;

std::string TextOf(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The number that follows the key within the section; 0 when there is none.
double NumberIn(const std::string& json, const std::string& section, const std::string& key) {
  const size_t at_section = json.find("\"" + section + "\" : {");
  if (at_section == std::string::npos) return 0;
  const size_t at_key = json.find("\"" + key + "\"", at_section);
  if (at_key == std::string::npos) return 0;
  return std::atof(json.c_str() + json.find(':', at_key) + 1);
}

}  // namespace

FioPeer::FioPeer(std::string program, std::string directory, uint64_t file_bytes)
    : program_(std::move(program)),
      file_(directory + "/fio.data"),
      output_(directory + "/fio.json"),
      log_(directory + "/fio.log"),
      file_bytes_(file_bytes) {}

FioPeer::~FioPeer() {
  for (const std::string& path : {file_, output_, log_}) unlink(path.c_str());
}

absl::StatusOr<std::unique_ptr<FioPeer>> FioPeer::Start(const std::string& program, const std::string& directory,
                                                        uint64_t file_bytes) {
  auto peer = absl::WrapUnique(new FioPeer(program, directory, file_bytes));
  RETURN_IF_ERROR(peer->Run({.pattern = "write", .block_bytes = 2 << 20, .depth = 16, .bytes = file_bytes}).status());
  return peer;
}

absl::StatusOr<ChildProcess> FioPeer::Launch(const FioJob& job) const {
  ChildProcess::Options process;
  process.arguments = {program_,
                       "--name=limit",
                       "--ioengine=io_uring",
                       "--direct=1",
                       "--registerfiles",
                       "--fixedbufs",
                       "--fallocate=none",
                       "--norandommap",
                       "--output-format=json",
                       absl::StrCat("--filename=", file_),
                       absl::StrCat("--output=", output_),
                       absl::StrCat("--size=", file_bytes_),
                       absl::StrCat("--rw=", job.pattern),
                       absl::StrCat("--bs=", job.block_bytes),
                       absl::StrCat("--iodepth=", job.depth)};
  if (job.seconds > 0) {
    process.arguments.push_back(absl::StrCat("--runtime=", static_cast<int64_t>(job.seconds * 1000), "ms"));
    process.arguments.push_back("--time_based");
  } else {
    process.arguments.push_back(absl::StrCat("--io_size=", job.bytes));
  }
  process.log_path = log_;
  process.pipes = false;
  unlink(output_.c_str());
  return ChildProcess::Start(process);
}

absl::StatusOr<ChildProcess> FioPeer::RunBeside(const FioJob& job) const { return Launch(job); }

absl::StatusOr<double> FioPeer::Run(const FioJob& job) const {
  ASSIGN_OR_RETURN(ChildProcess child, Launch(job));
  ASSIGN_OR_RETURN(const int code, child.Wait(kLongestRun + job.seconds));
  if (code == 127) {
    return absl::UnimplementedError(absl::StrCat(program_, " is not installed: scripts/setup_debian.sh --bench"));
  }
  if (code != 0) return absl::InternalError(absl::StrCat("fio failed: ", TextOf(log_), TextOf(output_)));
  const bool reads = job.pattern.find("read") != std::string::npos;
  const double rate = NumberIn(TextOf(output_), reads ? "read" : "write", "bw_bytes");
  if (rate <= 0) {
    return absl::InternalError(absl::StrCat("fio's answer is not understood: ", TextOf(output_).substr(0, 200)));
  }
  return rate;
}

}  // namespace terrace::bench
