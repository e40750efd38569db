// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "machine.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

void PrintLine(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

std::string Short(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

// The best of the rounds: what the others on the machine disturbed least.
double Best(const Measurement& m, const std::vector<double>& samples) {
  return Quantile(samples, m.lower_is_better ? 0 : 1);
}

std::vector<double> Ratios(const Measurement& m) {
  std::vector<double> ratios;
  for (size_t i = 0; i < m.values.size() && i < m.limits.size(); ++i) {
    ratios.push_back(m.values[i] / m.limits[i]);
  }
  return ratios;
}

}  // namespace

void JsonLine::Key(absl::string_view key) {
  absl::StrAppend(&body_, body_.empty() ? "\"" : ",\"", key, "\":");
}

JsonLine& JsonLine::Text(absl::string_view key, absl::string_view value) {
  Key(key);
  body_ += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') body_ += '\\';
    body_ += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  body_ += '"';
  return *this;
}

JsonLine& JsonLine::Number(absl::string_view key, double value) {
  Key(key);
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  body_ += text;
  return *this;
}

void Report::Machine(absl::string_view version) {
  const MachineFacts facts = GetMachineFacts();
  if (json_) {
    PrintLine(JsonLine()
                  .Text("case", "machine")
                  .Number("value", facts.cores)
                  .Text("unit", "cores")
                  .Text("cpu", facts.cpu)
                  .Number("memory_gib", facts.memory_gib)
                  .Text("kernel", facts.kernel)
                  .Text("date", facts.date)
                  .Text("version", version)
                  .Done());
    return;
  }
  std::printf("%s, %d cores, %.0f GiB, Linux %s, %s, terrace %s\n\n", facts.cpu.c_str(), facts.cores,
              facts.memory_gib, facts.kernel.c_str(), facts.date.c_str(), std::string(version).c_str());
  std::printf("%-14s %12s %-8s %12s %-22s %7s %15s %7s %6s  %s\n", "case", "value", "unit", "limit", "(what)",
              "ratio", "(quartiles)", "target", "aim", "machine");
  std::fflush(stdout);
}

void Report::Note(absl::string_view name, const std::vector<std::pair<std::string, std::string>>& facts) {
  JsonLine line;
  line.Text("case", name);
  std::string text(name);
  for (const auto& [key, value] : facts) {
    line.Text(key, value);
    absl::StrAppend(&text, ", ", key, " ", value);
  }
  PrintLine(json_ ? line.Done() : text);
}

void Report::Add(const Measurement& m, double others_cpu) {
  const double value = Median(m.values);
  const std::vector<double> ratios = Ratios(m);
  const bool has_ratio = !ratios.empty();
  const double ratio = has_ratio ? Median(ratios) : 0;
  const double judged = m.target_is_absolute ? value : ratio;
  const bool judges = m.target != 0 && (m.target_is_absolute || has_ratio);
  const bool reached = !judges || (m.lower_is_better ? judged <= m.target : judged >= m.target);
  if (!reached) ++missed_;
  const char* condition = others_cpu > kBusyCores ? "busy" : "idle";

  if (json_) {
    JsonLine line;
    line.Text("case", m.name).Number("value", value).Text("unit", m.unit);
    if (has_ratio) {
      line.Number("limit", Median(m.limits)).Text("limit_is", m.limit_name).Number("ratio", ratio);
      line.Number("ratio_p25", Quantile(ratios, 0.25)).Number("ratio_p75", Quantile(ratios, 0.75));
      line.Number("best", Best(m, m.values)).Number("limit_best", Best(m, m.limits));
    }
    if (m.target != 0) line.Number("target", m.target);
    if (m.aim != 0) line.Number("aim", m.aim);
    if (judges) line.Text("reached", reached ? "yes" : "no");
    line.Number("rounds", static_cast<double>(m.values.size()));
    for (const auto& [key, number] : m.more) line.Number(key, number);
    if (!m.note.empty()) line.Text("note", m.note);
    line.Text("machine_was", condition).Number("others_cpu", others_cpu);
    PrintLine(line.Done());
    return;
  }
  const std::string spread =
      has_ratio ? absl::StrCat(Short(Quantile(ratios, 0.25)), "-", Short(Quantile(ratios, 0.75))) : "";
  std::printf("%-14s %12s %-8s %12s %-22s %7s %15s %7s %6s  %s%s\n", m.name.c_str(), Short(value).c_str(),
              m.unit.c_str(), has_ratio ? Short(Median(m.limits)).c_str() : "", m.limit_name.c_str(),
              has_ratio ? Short(ratio).c_str() : "", spread.c_str(), m.target != 0 ? Short(m.target).c_str() : "",
              m.aim != 0 ? Short(m.aim).c_str() : "", condition, reached ? "" : "  MISSED");
  std::printf("    %s\n", m.what.c_str());
  if (has_ratio) {
    std::printf("    best of %zu rounds: %s against %s\n", m.values.size(), Short(Best(m, m.values)).c_str(),
                Short(Best(m, m.limits)).c_str());
  }
  for (const auto& [key, number] : m.more) std::printf("    %s = %s\n", key.c_str(), Short(number).c_str());
  if (!m.note.empty()) std::printf("    %s\n", m.note.c_str());
  std::fflush(stdout);
}

void Report::Skip(absl::string_view name, absl::string_view why) {
  if (json_) {
    PrintLine(JsonLine().Text("case", name).Text("skipped", why).Done());
  } else {
    PrintLine(absl::StrCat(name, ": skipped: ", why));
  }
}

}  // namespace terrace::bench
