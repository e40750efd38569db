// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Formats a line, limits repeats, and hands it to spdlog's standard-error sink (https://github.com/gabime/spdlog).
#include "kvstore/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <ctime>
#include <memory>
#include <unordered_map>

#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"

namespace terrace {
namespace {

constexpr uint32_t kLinesPerSecond = 20;
constexpr int64_t kWindowNs = 1'000'000'000;
constexpr size_t kMaxValueBytes = 1024;  // texts of clients must not fill the log
constexpr char kHexDigits[] = "0123456789abcdef";

std::atomic<LogLevel> log_level{LogLevel::kInfo};
std::atomic<LogFormat> log_format{LogFormat::kLogfmt};

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarning: return "warning";
    case LogLevel::kError: return "error";
  }
  return "error";
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::err;
}

// Length of the well-formed UTF-8 sequence at text[i], 0 if there is none.
size_t Utf8Length(absl::string_view text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const size_t n = lead < 0x80 ? 1 : (lead >> 5) == 6 ? 2 : (lead >> 4) == 14 ? 3 : (lead >> 3) == 30 ? 4 : 0;
  if (n == 0 || i + n > text.size()) return 0;
  for (size_t k = 1; k < n; ++k) {
    if ((static_cast<unsigned char>(text[i + k]) >> 6) != 2) return 0;
  }
  return n;
}

// Quoted and escaped so that no text of a client can forge a line or a field. Valid JSON.
void AppendQuoted(absl::string_view text, std::string* out) {
  out->push_back('"');
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t n = Utf8Length(text, i);
    if (n == 0) {
      out->push_back('?');
    } else if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(text[i]);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c < 0x20 || c == 0x7f) {
      out->append("\\u00");
      out->push_back(kHexDigits[c >> 4]);
      out->push_back(kHexDigits[c & 15]);
    } else {
      out->append(text.data() + i, n);
    }
    i += n == 0 ? 1 : n;
  }
  out->push_back('"');
}

bool IsPlain(absl::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7f) return false;  // also all above 0x7f
  }
  return true;
}

// UTC, microseconds, RFC 3339.
std::string Timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  char text[40];
  const size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
  snprintf(text + n, sizeof(text) - n, ".%06ldZ", now.tv_nsec / 1000);
  return text;
}

void AppendField(LogFormat format, absl::string_view name, absl::string_view value, bool is_number,
                 std::string* line) {
  value = value.substr(0, kMaxValueBytes);
  if (format == LogFormat::kJson) {
    if (line->size() > 1) line->push_back(',');
    AppendQuoted(name, line);
    line->push_back(':');
  } else {
    if (!line->empty()) line->push_back(' ');
    line->append(name.data(), name.size());
    line->push_back('=');
  }
  is_number = is_number && !value.empty() && value.back() <= '9';  // "nan" and "inf" are no JSON numbers
  if (is_number || (format == LogFormat::kLogfmt && IsPlain(value))) {
    line->append(value.data(), value.size());
  } else {
    AppendQuoted(value, line);
  }
}

// Counts lines per event name. Names are literals of the code, so the table is bounded by it.
class RepeatLimit {
 public:
  // False: do not write. True: write, and *suppressed lines of this name were left out before.
  bool Admit(absl::string_view event, uint64_t* suppressed) {
    const int64_t now_ns = Clock::Real()->NowNs();
    MutexLock lock(&mu_);
    State& state = states_[std::string(event.data(), event.size())];
    if (state.lines == 0 || now_ns - state.window_start_ns >= kWindowNs) {
      state.window_start_ns = now_ns;
      state.lines = 0;
    }
    if (state.lines == kLinesPerSecond) {
      ++state.suppressed;
      return false;
    }
    ++state.lines;
    *suppressed = state.suppressed;
    state.suppressed = 0;
    return true;
  }

 private:
  struct State {
    int64_t window_start_ns = 0;
    uint32_t lines = 0;
    uint64_t suppressed = 0;
  };
  Mutex mu_;
  std::unordered_map<std::string, State> states_ ABSL_GUARDED_BY(mu_);
};

// Both live for ever: threads may log while the process exits.
RepeatLimit& Repeats() {
  static auto& repeats = *std::make_unique<RepeatLimit>().release();
  return repeats;
}

spdlog::logger& Sink() {
  static auto& sink = []() -> spdlog::logger& {
    auto logger = std::make_unique<spdlog::logger>("terrace", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    logger->set_pattern("%v");
    logger->set_level(spdlog::level::trace);
    logger->flush_on(spdlog::level::trace);
    return *logger.release();
  }();
  return sink;
}

}  // namespace

void SetLogLevel(LogLevel level) { log_level.store(level, std::memory_order_relaxed); }
void SetLogFormat(LogFormat format) { log_format.store(format, std::memory_order_relaxed); }

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  if (level < log_level.load(std::memory_order_relaxed)) return;
  uint64_t suppressed = 0;
  if (!Repeats().Admit(event, &suppressed)) return;
  const LogFormat format = log_format.load(std::memory_order_relaxed);
  std::string line = format == LogFormat::kJson ? "{" : "";
  AppendField(format, "ts", Timestamp(), false, &line);
  AppendField(format, "level", LevelName(level), false, &line);
  AppendField(format, "event", event, false, &line);
  for (const LogField& field : fields) AppendField(format, field.name, field.value, field.is_number, &line);
  if (suppressed > 0) AppendField(format, "suppressed", absl::StrCat(suppressed), true, &line);
  if (format == LogFormat::kJson) line.push_back('}');
  Sink().log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace terrace
