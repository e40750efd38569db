// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <sstream>
#include <utility>

#include "stopwatch.h"

namespace terrace::bench {
namespace {

double SecondsOf(const rusage& usage) {
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Ticks() { return static_cast<double>(sysconf(_SC_CLK_TCK)); }

// Processor seconds of a live process; 0 if it is gone.
double ProcessSeconds(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;  // state .. cmajflt
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / Ticks();
}

// Processor seconds of the whole machine since its start.
double MachineSeconds() {
  std::ifstream file("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
  file >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  return (user + nice + system + irq + softirq + steal) / Ticks();
}

// The value behind "key:" in a file of such lines.
std::string Field(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

}  // namespace

MachineFacts GetMachineFacts() {
  MachineFacts facts;
  facts.cpu = Field("/proc/cpuinfo", "model name");
  facts.cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
  facts.memory_gib = pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 30);
  utsname names{};
  if (uname(&names) == 0) facts.kernel = names.release;
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char date[16];
  facts.date.assign(date, std::strftime(date, sizeof(date), "%Y-%m-%d", &utc));
  return facts;
}

OthersMeter::OthersMeter(std::vector<pid_t> live_children)
    : children_(std::move(live_children)), begun_(Seconds()), others_begun_(Others()) {}

double OthersMeter::Others() const {
  rusage self{}, ended{};
  getrusage(RUSAGE_SELF, &self);
  getrusage(RUSAGE_CHILDREN, &ended);
  double ours = SecondsOf(self) + SecondsOf(ended);
  for (const pid_t child : children_) ours += ProcessSeconds(child);
  return MachineSeconds() - ours;
}

double OthersMeter::Cores() const {
  const double time = Seconds() - begun_;
  return time <= 0 ? 0 : std::max(0.0, (Others() - others_begun_) / time);
}

double ResidentAnonymousBytes() {
  std::istringstream text(Field("/proc/self/status", "RssAnon"));
  double kib = 0;
  text >> kib;
  return kib * 1024;
}

}  // namespace terrace::bench
