// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NcclLink in builds without NCCL's header: there is none, and it says so.
#include "gpu/nccl_link.h"

namespace terrace::gpu {
namespace {

absl::Status Absent() {
  return absl::UnavailableError("this build has no NCCL link: nccl.h was not there when it was made");
}

}  // namespace

class NcclLink::Impl {};

absl::StatusOr<NcclUniqueId> NcclLink::MakeUniqueId(const NcclLinkOptions&) { return Absent(); }
absl::StatusOr<std::unique_ptr<NcclLink>> NcclLink::Open(const NcclLinkOptions&, const NcclUniqueId&, int) {
  return Absent();
}
NcclLink::NcclLink(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
NcclLink::~NcclLink() = default;
absl::Status NcclLink::Submit(LinkBatch&) { return Absent(); }
LinkState NcclLink::state() const { return LinkState::kDown; }
absl::Status NcclLink::health() const { return Absent(); }
NcclLinkStats NcclLink::Stats() const { return {}; }

}  // namespace terrace::gpu
