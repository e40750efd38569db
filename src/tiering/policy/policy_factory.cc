// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tiering/policy/adaptive_admission.h"
#include "tiering/policy/admission_policy.h"
#include "tiering/policy/arc_policy.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/policy/guarded_policy.h"
#include "tiering/policy/lru2_policy.h"
#include "tiering/policy/lru_policy.h"
#include "tiering/policy/s3fifo_policy.h"
#include "tiering/policy/simple_admission.h"
#include "tiering/policy/terrace_policy.h"

namespace terrace::tiering {

const std::vector<std::string>& EvictionPolicyNames() {
  static const std::vector<std::string> kNames = {"terrace", "lru", "arc", "s3fifo", "lru2"};
  return kNames;
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name, uint64_t max_blocks,
                                                                   uint64_t expected_blocks) {
  auto policy = MakeBarePolicy(name, max_blocks, expected_blocks);
  if (!policy.ok() || name == "lru") return policy;
  return std::make_unique<GuardedPolicy>(*std::move(policy), max_blocks, expected_blocks);
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeBarePolicy(absl::string_view name, uint64_t max_blocks,
                                                               uint64_t expected_blocks) {
  if (name == "lru") return std::make_unique<LruPolicy>(max_blocks);
  if (name == "arc") return std::make_unique<ArcPolicy>(max_blocks, expected_blocks);
  if (name == "s3fifo") return std::make_unique<S3FifoPolicy>(max_blocks, expected_blocks);
  if (name == "lru2") return std::make_unique<Lru2Policy>(max_blocks, expected_blocks);
  if (name == "terrace") return std::make_unique<TerracePolicy>(max_blocks, expected_blocks);
  return absl::InvalidArgumentError(absl::StrCat("host.eviction_policy is \"", name, "\"; there are: ",
                                                 absl::StrJoin(EvictionPolicyNames(), ", ")));
}

const std::vector<std::string>& AdmissionPolicyNames() {
  static const std::vector<std::string> kNames = {"adaptive", "all", "second_use"};
  return kNames;
}

absl::StatusOr<std::unique_ptr<AdmissionPolicy>> MakeAdmissionPolicy(absl::string_view name,
                                                                     const AdmissionOptions& options) {
  if (name == "adaptive") return std::make_unique<AdaptiveAdmission>(options);
  if (name == "all") return std::make_unique<AdmitAll>(options);
  if (name == "second_use") return std::make_unique<AdmitSecondUse>(options);
  return absl::InvalidArgumentError(absl::StrCat("nvme.admission_policy is \"", name, "\"; there are: ",
                                                 absl::StrJoin(AdmissionPolicyNames(), ", ")));
}

}  // namespace terrace::tiering
