// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/admin_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "api/ctl/doctor_probes.h"
#include "terrace/v1/admin.grpc.pb.h"

namespace terrace::ctl {
namespace {

constexpr std::chrono::seconds kConnectLimit{2};
constexpr std::chrono::seconds kCallLimit{10};
constexpr int kMaxAnswerBytes = 64 << 20;  // 10,000 blocks take about 1 MiB

absl::Status Convert(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

std::chrono::system_clock::time_point After(std::chrono::seconds limit) {
  return std::chrono::system_clock::now() + limit;
}

}  // namespace

class AdminClient::Impl {
 public:
  explicit Impl(const std::string& path) : path_(path) {}

  // Says what is wrong with the socket and what to do, before gRPC wraps all of it into "connection failed".
  absl::Status Connect() {
    const Finding socket = ProbeSocket("grpc socket", path_, SOCK_STREAM);
    if (socket.level == Finding::kProblem) {
      return absl::UnavailableError(absl::StrCat("no daemon: ", socket.text, "; ", socket.fix));
    }
    if (channel_ == nullptr) {
      grpc::ChannelArguments arguments;
      arguments.SetMaxReceiveMessageSize(kMaxAnswerBytes);
      channel_ = grpc::CreateCustomChannel("unix:" + path_, grpc::InsecureChannelCredentials(), arguments);
      stub_ = v1::AdminService::NewStub(channel_);
    }
    if (channel_->WaitForConnected(After(kConnectLimit))) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("terraced does not answer on ", path_, "; it is stopped or overloaded, see its log"));
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                              Response*),
                                const Request& request) {
    if (const absl::Status status = Connect(); !status.ok()) return status;
    grpc::ClientContext context;
    context.set_deadline(After(kCallLimit));
    Response response;
    if (const grpc::Status status = (stub_.get()->*method)(&context, request, &response); !status.ok()) {
      return Convert(status);
    }
    return response;
  }

  v1::AdminService::Stub& stub() { return *stub_; }  // REQUIRES: connected

 private:
  const std::string path_;
  std::shared_ptr<grpc::Channel> channel_;  // null until there was a socket
  std::unique_ptr<v1::AdminService::Stub> stub_;
};

AdminClient::AdminClient(const std::string& socket_path) : impl_(std::make_unique<Impl>(socket_path)) {}
AdminClient::~AdminClient() = default;

absl::StatusOr<v1::GetStatusResponse> AdminClient::GetStatus() {
  return impl_->Call(&v1::AdminService::Stub::GetStatus, v1::GetStatusRequest());
}
absl::StatusOr<v1::ListKeySpacesResponse> AdminClient::ListKeySpaces(const v1::ListKeySpacesRequest& request) {
  return impl_->Call(&v1::AdminService::Stub::ListKeySpaces, request);
}
absl::StatusOr<v1::ListBlocksResponse> AdminClient::ListBlocks(const v1::ListBlocksRequest& request) {
  return impl_->Call(&v1::AdminService::Stub::ListBlocks, request);
}
absl::StatusOr<v1::StatBlockResponse> AdminClient::StatBlock(const v1::StatBlockRequest& request) {
  return impl_->Call(&v1::AdminService::Stub::StatBlock, request);
}
absl::StatusOr<v1::FlushResponse> AdminClient::Flush(const v1::FlushRequest& request) {
  return impl_->Call(&v1::AdminService::Stub::Flush, request);
}

absl::StatusOr<v1::VerifyResponse> AdminClient::Verify(
    const std::function<void(const v1::VerifyResponse&)>& on_progress) {
  if (const absl::Status status = impl_->Connect(); !status.ok()) return status;
  grpc::ClientContext context;
  const auto reader = impl_->stub().Verify(&context, v1::VerifyRequest());
  v1::VerifyResponse message;
  v1::VerifyResponse last;
  while (reader->Read(&message)) {
    if (message.done()) {
      last = message;
    } else {
      on_progress(message);
    }
  }
  if (const grpc::Status status = reader->Finish(); !status.ok()) return Convert(status);
  if (!last.done()) return absl::UnavailableError("the daemon ended the check before it was done");
  return last;
}

}  // namespace terrace::ctl
