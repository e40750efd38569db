// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "api/ctl/replay.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

constexpr double kWidth = 800, kHeight = 480, kLeft = 64, kRight = 140, kTop = 48, kBottom = 56;
constexpr std::array<const char*, 8> kColours = {"#0b62d6", "#6b7280", "#d97706", "#059669",
                                                 "#9333ea", "#111827", "#dc2626", "#0891b2"};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(Printable(text), {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// Capacities on a logarithmic axis, hit rates on a linear one from 0.
struct Scale {
  double least, most, top;
  double X(double blocks) const {
    const double span = std::log(most) - std::log(least);
    const double at = span <= 0 ? 0.5 : (std::log(blocks) - std::log(least)) / span;
    return kLeft + at * (kWidth - kLeft - kRight);
  }
  double Y(double rate) const { return kHeight - kBottom - rate / top * (kHeight - kTop - kBottom); }
};

std::string Axes(const Scale& scale, const std::vector<uint64_t>& capacities) {
  std::string svg;
  for (int i = 0; i <= 5; ++i) {
    const double rate = scale.top * i / 5;
    absl::StrAppendFormat(&svg, "<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#e5e7eb'/>\n", kLeft,
                          scale.Y(rate), kWidth - kRight, scale.Y(rate));
    absl::StrAppendFormat(&svg, "<text x='%g' y='%.1f' text-anchor='end'>%.0f %%</text>\n", kLeft - 8,
                          scale.Y(rate) + 4, 100 * rate);
  }
  for (const uint64_t capacity : capacities) {
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%g' text-anchor='middle'>%s</text>\n",
                          scale.X(static_cast<double>(capacity)), kHeight - kBottom + 20, HumanCount(capacity));
  }
  absl::StrAppendFormat(&svg, "<text x='%g' y='%g' text-anchor='middle'>blocks of host memory</text>\n",
                        (kLeft + kWidth - kRight) / 2, kHeight - 12);
  return svg;
}

}  // namespace

absl::Status CheckReplayPlot(const std::string& path) {
  std::error_code error;
  const bool is_there = std::filesystem::exists(path, error);
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const bool is_good = is_there ? access(path.c_str(), W_OK) == 0
                                : access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK) == 0;
  if (is_good && !std::filesystem::is_directory(path, error)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot write ", path, ": ", std::strerror(is_good ? EISDIR : errno)));
}

absl::Status WriteReplayPlot(const std::string& path, const std::string& title,
                             const std::vector<tiering::ReplayResult>& results) {
  if (results.empty()) return absl::InvalidArgumentError("there is nothing to draw");
  std::vector<std::string> policies;
  std::vector<uint64_t> capacities;
  double top = 0.01;
  for (const tiering::ReplayResult& r : results) {
    if (std::find(policies.begin(), policies.end(), r.policy) == policies.end()) policies.push_back(r.policy);
    capacities.push_back(r.capacity_blocks);
    top = std::max(top, r.token_hit_rate());
  }
  std::sort(capacities.begin(), capacities.end());
  capacities.erase(std::unique(capacities.begin(), capacities.end()), capacities.end());
  const Scale scale{static_cast<double>(capacities.front()), static_cast<double>(capacities.back()),
                    std::ceil(top * 20) / 20};
  std::string svg = absl::StrFormat(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' font-family='sans-serif' font-size='12'>\n"
      "<rect width='100%%' height='100%%' fill='white'/>\n"
      "<text x='%g' y='24' font-size='15'>Token hit rate: %s</text>\n",
      kWidth, kHeight, kLeft, Escaped(title));
  svg += Axes(scale, capacities);
  for (size_t i = 0; i < policies.size(); ++i) {
    std::map<uint64_t, double> points;
    for (const tiering::ReplayResult& r : results) {
      if (r.policy == policies[i]) points[r.capacity_blocks] = r.token_hit_rate();
    }
    const char* colour = kColours[i % kColours.size()];
    std::string line;
    for (const auto& [capacity, rate] : points) {
      const double x = scale.X(static_cast<double>(capacity)), y = scale.Y(rate);
      absl::StrAppendFormat(&line, "%.1f,%.1f ", x, y);
      absl::StrAppendFormat(&svg, "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n", x, y, colour);
    }
    absl::StrAppendFormat(&svg, "<polyline points='%s' fill='none' stroke='%s' stroke-width='%d'/>\n", line, colour,
                          policies[i] == "terrace" ? 3 : 1);
    absl::StrAppendFormat(&svg, "<text x='%g' y='%g' fill='%s'>%s</text>\n", kWidth - kRight + 16,
                          kTop + 16 + 18 * static_cast<double>(i), colour, Escaped(policies[i]));
  }
  svg += "</svg>\n";
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << svg;
  file.close();
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

}  // namespace terrace::ctl
