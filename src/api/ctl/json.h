// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// JSON for scripts. Messages are printed with the names of the .proto files, numbers as numbers, bytes
// and fixed64 as hex, durations as seconds: what protobuf's own printer does otherwise.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace google::protobuf {
class Message;
}

namespace terrace::ctl {

// With quotes.
std::string JsonText(absl::string_view text);

// One line; every field, also unset ones.
std::string JsonMessage(const google::protobuf::Message& message);

}  // namespace terrace::ctl
