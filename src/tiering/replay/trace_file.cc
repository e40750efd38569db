// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <zlib.h>

#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tiering/replay/trace.h"

namespace terrace::tiering {
namespace {

constexpr size_t kChunk = 1 << 20;
constexpr size_t kMaxLine = 64 << 20;  // a request of a million blocks with long ids

struct GzClose {
  void operator()(gzFile_s* file) const { gzclose(file); }
};

// zlib reads plain files as they are.
class Lines {
 public:
  explicit Lines(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {}
  bool is_open() const { return file_ != nullptr; }
  // False at the end or on an error; whole lines before an error come first.
  bool Next(std::string* line) {
    for (;;) {
      const size_t end = buffer_.find('\n', at_);
      if (end != std::string::npos || (is_end_ && at_ < buffer_.size())) {
        line->assign(buffer_, at_, end == std::string::npos ? end : end - at_);
        at_ = end == std::string::npos ? buffer_.size() : end + 1;
        ++number_;
        return true;
      }
      if (is_end_ || !status_.ok() || !Fill()) return false;
    }
  }
  uint64_t number() const { return number_; }
  absl::Status status() const { return status_; }

 private:
  bool Fill() {
    buffer_.erase(0, at_);
    at_ = 0;
    if (buffer_.size() > kMaxLine) {
      status_ = absl::InvalidArgumentError("the line is too long");
      return false;
    }
    const size_t old = buffer_.size();
    buffer_.resize(old + kChunk);
    const int n = gzread(file_.get(), buffer_.data() + old, kChunk);
    buffer_.resize(old + (n > 0 ? static_cast<size_t>(n) : 0));
    int error = Z_OK;
    const char* text = gzerror(file_.get(), &error);
    if (n < 0 || (error != Z_OK && error != Z_STREAM_END)) {
      // zlib puts the path in front, as does who asked for the line.
      status_ = absl::InvalidArgumentError(error == Z_BUF_ERROR ? "the compressed file was cut short"
                                                                : absl::StripPrefix(text, absl::StrCat(path_, ": ")));
      return n > 0;
    }
    is_end_ = n < static_cast<int>(kChunk) && gzeof(file_.get()) != 0;
    return true;
  }

  const std::string path_;
  const std::unique_ptr<gzFile_s, GzClose> file_;
  std::string buffer_;
  size_t at_ = 0;
  uint64_t number_ = 0;
  bool is_end_ = false;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<Trace> ReadTraceFile(const std::string& path) {
  Lines lines(path);
  if (!lines.is_open()) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  TraceBuilder builder;
  std::string line;
  bool is_csv = false;
  while (lines.Next(&line)) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (lines.number() == 1 && text == kTraceCsvHeader) {
      is_csv = true;
      continue;
    }
    if (text.empty()) continue;
    if (lines.number() == 1 && text[0] != '{') {
      return absl::InvalidArgumentError(absl::StrCat(path, ", line 1: neither a JSON object nor the header of a CSV, "
                                                           "which is exactly ", kTraceCsvHeader));
    }
    const absl::Status added = is_csv ? builder.AddCsvLine(text) : builder.AddMooncakeLine(text);
    if (!added.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ", line ", lines.number(), ": ", added.message()));
    }
  }
  if (!lines.status().ok()) {
    const std::string where = lines.number() == 0 ? "" : absl::StrCat(", after line ", lines.number());
    return absl::InvalidArgumentError(absl::StrCat(path, where, ": ", lines.status().message()));
  }
  Trace trace = builder.Finish();
  if (trace.references.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no blocks in it"));
  return trace;
}

}  // namespace terrace::tiering
