// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Trace: what engines asked for and when. Read from the public Mooncake JSON lines or from a CSV of the
// same facts; both formats are in docs/replay.md.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::tiering {

// Plain value. Blocks are numbered 0 .. distinct_blocks - 1 in the order of their first use; a number
// stands for a block and everything before it: equal numbers, equal prefixes.
struct Trace {
  struct Request {
    int64_t time_ns = 0;
    uint64_t input_tokens = 0, output_tokens = 0;
    uint64_t first = 0;  // of its blocks in `references`
    uint32_t count = 0;
  };
  std::vector<Request> requests;  // times never go back
  std::vector<uint32_t> references;
  uint32_t distinct_blocks = 0;
  uint64_t input_tokens = 0;  // of all requests

  std::span<const uint32_t> BlocksOf(const Request& request) const {
    return std::span(references).subspan(request.first, request.count);
  }
};

// Collects requests line by line. Owner: a reader. Threads: one at a time.
// Limits: 2^32 - 2 blocks, kMaxChain blocks a request.
// Failure: InvalidArgument without line number (the reader adds it); the trace is then as before.
class TraceBuilder {
 public:
  static constexpr size_t kMaxChain = 1 << 20;

  // One JSON object with timestamp (milliseconds), input_length, output_length, hash_ids.
  absl::Status AddMooncakeLine(absl::string_view line);
  // timestamp_ms,input_length,output_length,hash_ids; the ids separated by blanks.
  absl::Status AddCsvLine(absl::string_view line);
  absl::Status Add(double timestamp_ms, uint64_t input_tokens, uint64_t output_tokens,
                   std::span<const uint64_t> hash_ids);
  Trace Finish() { return std::move(trace_); }

 private:
  struct Link {
    uint32_t parent;  // 2^32 - 1: none
    uint64_t hash_id;
    friend bool operator==(const Link&, const Link&) = default;
    template <typename H>
    friend H AbslHashValue(H h, const Link& link) {
      return H::combine(std::move(h), link.parent, link.hash_id);
    }
  };
  Trace trace_;
  // By parent and id: ids that are not chained in the file are chained here.
  absl::flat_hash_map<Link, uint32_t> numbers_;
};

// The header line of the CSV format.
inline constexpr absl::string_view kTraceCsvHeader = "timestamp_ms,input_length,output_length,hash_ids";

// Reads a file, plain or compressed with gzip; CSV when its first line is kTraceCsvHeader, else Mooncake.
// NotFound, or InvalidArgument with the line's number.
absl::StatusOr<Trace> ReadTraceFile(const std::string& path);

// When each reference's block is referenced next, as an index into requests; kNever: not again.
inline constexpr uint32_t kNever = ~0u;
std::vector<uint32_t> NextUses(const Trace& trace);

}  // namespace terrace::tiering
