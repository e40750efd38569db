// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// AdminClient: terracectl's end of terrace.v1.AdminService. Keeps gRPC's headers out of the commands.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "terrace/v1/admin.pb.h"

namespace terrace::ctl {

// Owner: a command. Threads: one. Limits: 2 s to connect, 10 s a call (Verify: none).
// Failure: the status as the daemon gave it; Unavailable when there is no daemon, its message says why.
class AdminClient {
 public:
  explicit AdminClient(const std::string& socket_path);
  ~AdminClient();
  AdminClient(const AdminClient&) = delete;

  absl::StatusOr<v1::GetStatusResponse> GetStatus();
  absl::StatusOr<v1::ListKeySpacesResponse> ListKeySpaces(const v1::ListKeySpacesRequest& request);
  absl::StatusOr<v1::ListBlocksResponse> ListBlocks(const v1::ListBlocksRequest& request);
  absl::StatusOr<v1::StatBlockResponse> StatBlock(const v1::StatBlockRequest& request);
  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request);
  // on_progress is called for every message but the last, which is returned.
  absl::StatusOr<v1::VerifyResponse> Verify(const std::function<void(const v1::VerifyResponse&)>& on_progress);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::ctl
