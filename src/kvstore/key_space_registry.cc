// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/key_space_registry.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/status_macros.h"

namespace terrace::kv {
namespace {

constexpr uint32_t kMagic = 0x534b5254;  // "TRKS"
constexpr uint32_t kVersion = 1;         // seeds the checksums: records of another version do not pass
constexpr uint32_t kMaxBodyBytes = 16 << 10;
constexpr std::string KeySpaceIdentity::*kTexts[] = {
    &KeySpaceIdentity::model,    &KeySpaceIdentity::model_fingerprint, &KeySpaceIdentity::kv_dtype,
    &KeySpaceIdentity::layout,   &KeySpaceIdentity::parallel,          &KeySpaceIdentity::hash,
    &KeySpaceIdentity::group,    &KeySpaceIdentity::extra};

struct Head {
  uint32_t magic, body_bytes;
  uint64_t checksum;  // of the body, seeded with magic, version and length
};

uint64_t CheckOf(absl::string_view body) {
  const uint32_t seed[] = {kMagic, kVersion, static_cast<uint32_t>(body.size())};
  return Checksum64(body.data(), body.size(), Checksum64(seed, sizeof(seed), 0));
}

template <typename T>
void Put(std::string* out, const T& value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string Encode(absl::string_view tenant, const KeySpaceIdentity& identity,
                   const std::array<uint8_t, 32>& digest) {
  std::string body;
  Put(&body, digest);
  const auto text = [&body](absl::string_view value) {
    Put(&body, static_cast<uint32_t>(value.size()));
    body.append(value.data(), value.size());
  };
  text(tenant);
  for (const auto field : kTexts) text(identity.*field);
  Put(&body, identity.block_bytes);
  Put(&body, identity.tokens_per_block);
  Put(&body, identity.block_class);
  std::string record;
  Put(&record, Head{kMagic, static_cast<uint32_t>(body.size()), CheckOf(body)});
  return record + body;
}

template <typename T>
bool Take(absl::string_view* from, T* value) {
  if (from->size() < sizeof(*value)) return false;
  std::memcpy(value, from->data(), sizeof(*value));
  from->remove_prefix(sizeof(*value));
  return true;
}

std::optional<KeySpaceRegistry::Record> Decode(absl::string_view body) {
  KeySpaceRegistry::Record record;
  const auto text = [&body](std::string* value) {
    uint32_t size;
    if (!Take(&body, &size) || body.size() < size) return false;
    value->assign(body.data(), size);
    body.remove_prefix(size);
    return true;
  };
  bool good = Take(&body, &record.digest) && text(&record.tenant);
  for (const auto field : kTexts) good = good && text(&(record.identity.*field));
  good = good && Take(&body, &record.identity.block_bytes) && Take(&body, &record.identity.tokens_per_block) &&
         Take(&body, &record.identity.block_class) && body.empty();
  if (!good) return std::nullopt;
  return record;
}

absl::Status WriteAt(int fd, const std::string& path, absl::string_view text, uint64_t offset) {
  while (!text.empty()) {
    const ssize_t n = pwrite(fd, text.data(), text.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::ResourceExhaustedError(absl::StrCat(path, " cannot be written: ", std::strerror(errno)));
    text.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<int> OpenFile(const std::string& path, int flags) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | flags, 0600);
  struct stat info {};
  if (fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_uid == geteuid()) return fd;
  const std::string why = fd < 0 ? std::strerror(errno) : "no plain file of this user";
  if (fd >= 0) close(fd);
  return absl::FailedPreconditionError(absl::StrCat(path, " cannot be opened: ", why));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeySpaceRegistry>> KeySpaceRegistry::Open(const std::string& path,
                                                                         uint32_t max_records) {
  ASSIGN_OR_RETURN(const int fd, OpenFile(path, 0));
  auto registry = absl::WrapUnique(new KeySpaceRegistry(path, max_records, fd));
  RETURN_IF_ERROR(registry->Load());
  return registry;
}

KeySpaceRegistry::~KeySpaceRegistry() { close(fd_); }

absl::Status KeySpaceRegistry::Load() {
  struct stat info {};
  if (fstat(fd_, &info) != 0) return absl::InternalError(std::strerror(errno));
  const uint64_t most = uint64_t{max_records_} * (sizeof(Head) + kMaxBodyBytes);
  std::string text(std::min<uint64_t>(static_cast<uint64_t>(info.st_size), most), '\0');
  const ssize_t n = pread(fd_, text.data(), text.size(), 0);
  absl::string_view rest(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
  while (count_ < max_records_) {
    Head head;
    absl::string_view from = rest;
    if (!Take(&from, &head) || head.magic != kMagic || head.body_bytes > kMaxBodyBytes ||
        from.size() < head.body_bytes) {
      break;  // the end, or torn: what is appended next goes here
    }
    const absl::string_view body = from.substr(0, head.body_bytes);
    if (head.checksum == CheckOf(body)) {
      if (auto record = Decode(body)) records_.push_back(*std::move(record));
    }
    ++count_;
    rest = from.substr(head.body_bytes);
    end_ += sizeof(head) + head.body_bytes;
  }
  // A torn record must not be followed by whole ones.
  if (ftruncate(fd_, static_cast<off_t>(end_)) != 0) return absl::InternalError(std::strerror(errno));
  return absl::OkStatus();
}

absl::Status KeySpaceRegistry::Append(absl::string_view tenant, const KeySpaceIdentity& identity,
                                      const std::array<uint8_t, 32>& digest) {
  if (count_ >= max_records_) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, " is full with ", max_records_, " key spaces"));
  }
  const std::string record = Encode(tenant, identity, digest);
  if (record.size() > sizeof(Head) + kMaxBodyBytes) {
    return absl::ResourceExhaustedError("the tenant's name is too long");
  }
  const absl::Status written = WriteAt(fd_, path_, record, end_);
  if (!written.ok()) {
    // Else the next record would follow half a one.
    if (ftruncate(fd_, static_cast<off_t>(end_)) != 0) count_ = max_records_;
    return written;
  }
  end_ += record.size();
  ++count_;
  return absl::OkStatus();
}

absl::Status KeySpaceRegistry::Rewrite(const std::vector<Record>& records) {
  std::string text;
  for (const Record& record : records) text += Encode(record.tenant, record.identity, record.digest);
  const std::string next = path_ + ".next";
  ASSIGN_OR_RETURN(const int fd, OpenFile(next, O_TRUNC));
  absl::Status status = WriteAt(fd, next, text, 0);
  if (status.ok() && std::rename(next.c_str(), path_.c_str()) != 0) {
    status = absl::InternalError(absl::StrCat(next, " cannot be renamed: ", std::strerror(errno)));
  }
  if (!status.ok()) {
    close(fd);
    std::remove(next.c_str());
    return status;
  }
  close(fd_);
  fd_ = fd;
  end_ = text.size();
  count_ = static_cast<uint32_t>(records.size());
  return absl::OkStatus();
}

}  // namespace terrace::kv
