// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/message.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::ctl {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// One value of a field; index < 0: the field is not repeated.
std::string JsonField(const Message& m, const FieldDescriptor* f, int index) {
  const Reflection* r = m.GetReflection();
  const bool one = index < 0;
  switch (f->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(one ? r->GetInt32(m, f) : r->GetRepeatedInt32(m, f, index));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(one ? r->GetInt64(m, f) : r->GetRepeatedInt64(m, f, index));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(one ? r->GetUInt32(m, f) : r->GetRepeatedUInt32(m, f, index));
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t value = one ? r->GetUInt64(m, f) : r->GetRepeatedUInt64(m, f, index);
      // Random numbers use all 64 bits, more than a script's numbers hold.
      return f->type() == FieldDescriptor::TYPE_FIXED64 ? absl::StrFormat("\"%016x\"", value) : absl::StrCat(value);
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return absl::StrCat(one ? r->GetDouble(m, f) : r->GetRepeatedDouble(m, f, index));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return absl::StrCat(one ? r->GetFloat(m, f) : r->GetRepeatedFloat(m, f, index));
    case FieldDescriptor::CPPTYPE_BOOL:
      return (one ? r->GetBool(m, f) : r->GetRepeatedBool(m, f, index)) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return JsonText((one ? r->GetEnum(m, f) : r->GetRepeatedEnum(m, f, index))->name());
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string value = one ? r->GetString(m, f) : r->GetRepeatedString(m, f, index);
      return JsonText(f->type() == FieldDescriptor::TYPE_BYTES ? absl::BytesToHexString(value) : value);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return JsonMessage(one ? r->GetMessage(m, f) : r->GetRepeatedMessage(m, f, index));
  }
  return "null";
}

}  // namespace

std::string JsonText(absl::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&json, "\\", absl::string_view(&c, 1));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&json, "\\u%04x", static_cast<unsigned>(c));
    } else {
      json.push_back(c);
    }
  }
  json.push_back('"');
  return json;
}

std::string JsonMessage(const Message& message) {
  const Descriptor* descriptor = message.GetDescriptor();
  if (descriptor == google::protobuf::Duration::descriptor()) {
    google::protobuf::Duration duration;
    duration.CopyFrom(message);
    return absl::StrFormat("%d.%09d", duration.seconds(), duration.nanos());
  }
  std::string json = "{";
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    absl::StrAppend(&json, i == 0 ? "" : ",", JsonText(field->name()), ":");
    if (!field->is_repeated()) {
      absl::StrAppend(&json, JsonField(message, field, -1));
      continue;
    }
    json.push_back('[');
    const int n = message.GetReflection()->FieldSize(message, field);
    for (int k = 0; k < n; ++k) absl::StrAppend(&json, k == 0 ? "" : ",", JsonField(message, field, k));
    json.push_back(']');
  }
  json.push_back('}');
  return json;
}

}  // namespace terrace::ctl
