// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/trace.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kvstore/base/status_macros.h"

namespace terrace::tiering {
namespace {

constexpr uint32_t kNoParent = ~0u;
constexpr int kMaxDepth = 32;

absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(what); }

// Just enough JSON for one line: an object whose known fields are numbers or lists of numbers. Fields it
// does not know are stepped over, whatever they hold.
class JsonLine {
 public:
  explicit JsonLine(absl::string_view text) : rest_(text) {}

  bool Take(char c) {
    SkipBlanks();
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool AtEnd() {
    SkipBlanks();
    return rest_.empty();
  }
  bool TakeText(absl::string_view* text) {
    if (!Take('"')) return false;
    for (size_t i = 0; i < rest_.size(); ++i) {
      if (rest_[i] == '\\') {
        ++i;
      } else if (rest_[i] == '"') {
        *text = rest_.substr(0, i);
        rest_.remove_prefix(i + 1);
        return true;
      }
    }
    return false;
  }
  bool TakeNumber(double* number) { return absl::SimpleAtod(Word(), number) && std::isfinite(*number); }
  bool TakeCount(uint64_t* count) { return absl::SimpleAtoi(Word(), count); }
  bool Skip(int depth = 0) {
    SkipBlanks();
    if (rest_.empty() || depth > kMaxDepth) return false;
    absl::string_view text;
    const char c = rest_.front();
    if (c == '"') return TakeText(&text);
    if (c != '{' && c != '[') return !Word().empty();
    rest_.remove_prefix(1);
    const char close = c == '{' ? '}' : ']';
    if (Take(close)) return true;
    do {
      if (c == '{' && (!TakeText(&text) || !Take(':'))) return false;
      if (!Skip(depth + 1)) return false;
    } while (Take(','));
    return Take(close);
  }

 private:
  void SkipBlanks() {
    while (!rest_.empty() && absl::ascii_isspace(static_cast<unsigned char>(rest_.front()))) rest_.remove_prefix(1);
  }
  absl::string_view Word() {
    SkipBlanks();
    size_t n = 0;
    while (n < rest_.size() && rest_[n] != ',' && rest_[n] != '}' && rest_[n] != ']' &&
           !absl::ascii_isspace(static_cast<unsigned char>(rest_[n]))) {
      ++n;
    }
    const absl::string_view word = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return word;
  }
  absl::string_view rest_;
};

bool TakeIds(JsonLine& json, std::vector<uint64_t>* ids) {
  if (!json.Take('[')) return false;
  if (json.Take(']')) return true;
  do {
    if (!json.TakeCount(&ids->emplace_back())) return false;
  } while (json.Take(','));
  return json.Take(']');
}

}  // namespace

absl::Status TraceBuilder::AddMooncakeLine(absl::string_view line) {
  JsonLine json(line);
  double timestamp_ms = -1;
  uint64_t input_tokens = 0, output_tokens = 0;
  bool has_time = false, has_input = false, has_ids = false;
  std::vector<uint64_t> ids;
  if (!json.Take('{')) return Bad("not a JSON object");
  do {
    absl::string_view name;
    if (!json.TakeText(&name) || !json.Take(':')) return Bad("not a JSON object");
    bool is_good;
    if (name == "timestamp") {
      is_good = has_time = json.TakeNumber(&timestamp_ms);
    } else if (name == "input_length") {
      is_good = has_input = json.TakeCount(&input_tokens);
    } else if (name == "output_length") {
      is_good = json.TakeCount(&output_tokens);
    } else if (name == "hash_ids") {
      ids.clear();
      is_good = has_ids = TakeIds(json, &ids);
    } else {
      is_good = json.Skip();
    }
    if (!is_good) return Bad(absl::StrCat("bad value of \"", name, "\""));
  } while (json.Take(','));
  if (!json.Take('}') || !json.AtEnd()) return Bad("not a JSON object");
  if (!has_time || !has_input || !has_ids) return Bad("timestamp, input_length and hash_ids must be there");
  return Add(timestamp_ms, input_tokens, output_tokens, ids);
}

absl::Status TraceBuilder::AddCsvLine(absl::string_view line) {
  const std::vector<absl::string_view> cells = absl::StrSplit(line, ',');
  double timestamp_ms;
  uint64_t input_tokens, output_tokens;
  if (cells.size() != 4) return Bad(absl::StrCat("must have four columns: ", kTraceCsvHeader));
  if (!absl::SimpleAtod(cells[0], &timestamp_ms) || !absl::SimpleAtoi(cells[1], &input_tokens) ||
      !absl::SimpleAtoi(cells[2], &output_tokens)) {
    return Bad("the first three columns must be numbers");
  }
  std::vector<uint64_t> ids;
  for (const absl::string_view id : absl::StrSplit(cells[3], ' ', absl::SkipWhitespace())) {
    if (!absl::SimpleAtoi(id, &ids.emplace_back())) return Bad(absl::StrCat("bad id \"", id, "\""));
  }
  return Add(timestamp_ms, input_tokens, output_tokens, ids);
}

absl::Status TraceBuilder::Add(double timestamp_ms, uint64_t input_tokens, uint64_t output_tokens,
                               std::span<const uint64_t> hash_ids) {
  // Ten years: nanoseconds stay far from overflow.
  if (!(timestamp_ms >= 0 && timestamp_ms <= 3.2e11)) return Bad("the timestamp is out of range");
  const auto time_ns = static_cast<int64_t>(timestamp_ms * 1e6);
  if (!trace_.requests.empty() && time_ns < trace_.requests.back().time_ns) {
    return Bad("the timestamp is before that of the line before; sort the trace by time");
  }
  if (hash_ids.size() > kMaxChain) return Bad("too many hash_ids");
  if (input_tokens > uint64_t{1} << 40 || output_tokens > uint64_t{1} << 40) return Bad("a length is out of range");
  Trace::Request request{.time_ns = time_ns, .input_tokens = input_tokens, .output_tokens = output_tokens,
                         .first = trace_.references.size(), .count = static_cast<uint32_t>(hash_ids.size())};
  uint32_t parent = kNoParent;
  for (const uint64_t id : hash_ids) {
    const auto [at, is_new] = numbers_.try_emplace(Link{parent, id}, trace_.distinct_blocks);
    if (is_new) ++trace_.distinct_blocks;
    parent = at->second;
    trace_.references.push_back(parent);
  }
  trace_.input_tokens += input_tokens;
  trace_.requests.push_back(request);
  return absl::OkStatus();
}

std::vector<uint32_t> NextUses(const Trace& trace) {
  std::vector<uint32_t> next(trace.references.size()), latest(trace.distinct_blocks, kNever);
  for (size_t r = trace.requests.size(); r-- > 0;) {
    const Trace::Request& request = trace.requests[r];
    for (uint64_t i = request.first; i < request.first + request.count; ++i) {
      uint32_t& last = latest[trace.references[i]];
      next[i] = last;
      last = static_cast<uint32_t>(r);
    }
  }
  return next;
}

}  // namespace terrace::tiering
