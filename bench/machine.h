// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Facts about the machine, and how much of it others used during a measurement.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace terrace::bench {

struct MachineFacts {
  std::string cpu, kernel, date;
  int cores = 0;
  double memory_gib = 0;
};
MachineFacts GetMachineFacts();

// Measures how many cores were busy with what is not this benchmark: processor time of the whole machine
// less that of this process, of its ended children and of the given live ones.
// Owner: the case. Threads: one. A child that ends in between counts fully, also its time before.
class OthersMeter {
 public:
  explicit OthersMeter(std::vector<pid_t> live_children);
  // Cores since construction, >= 0.
  double Cores() const;

 private:
  double Others() const;
  const std::vector<pid_t> children_;
  const double begun_, others_begun_;
};

// Above this many cores a run counts as busy.
inline constexpr double kBusyCores = 0.15;

// Resident bytes of this process that belong to it alone (anonymous memory).
double ResidentAnonymousBytes();

}  // namespace terrace::bench
