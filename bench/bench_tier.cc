// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "bench_tier.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/key_space.h"
#include "payload.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kPlaces = 64;
constexpr double kLongest = 120;

}  // namespace

BenchTier::BenchTier(uint64_t block_bytes)
    : block_bytes_(block_bytes), sources_(kSources * block_bytes), targets_(kPlaces * block_bytes) {
  digest_.fill(0x42);
  for (uint64_t i = 0; i < kSources; ++i) FillPayload(MakeKeys(i, 1).data(), Source(i));
  std::memset(targets_.data(), 0x5a, targets_.size());
  for (uint32_t i = 0; i < kPlaces; ++i) free_places_.push_back(i);
}

absl::StatusOr<std::unique_ptr<BenchTier>> BenchTier::Open(const std::string& directory, uint64_t file_bytes,
                                                           uint64_t block_bytes) {
  SetLogLevel(LogLevel::kWarning);
  auto bench = absl::WrapUnique(new BenchTier(block_bytes));
  tiering::BlockDeviceOptions device;
  device.path = directory + "/nvme.data";
  device.bytes = file_bytes;
  bench->options_.devices = {device};
  bench->options_.read_deadline_ns = 60'000'000'000;  // a slow disk is to be measured, not refused
  ASSIGN_OR_RETURN(bench->tier_, tiering::NvmeTier::Create(bench->options_, tiering::OpenBlockDevice, Clock::Real(),
                                                           &bench->budget_, &bench->metrics_, &bench->copies_));
  const double begun = Seconds();
  MutexLock lock(&bench->mu_);
  while (bench->stats().state != tiering::TierState::kOnline) {
    if (Seconds() - begun > kLongest) {
      return absl::UnavailableError(absl::StrCat("the tier does not start: ", bench->stats().devices[0].detail));
    }
    bench->changed_.WaitFor(&bench->mu_, std::chrono::milliseconds(5));
  }
  return bench;
}

void BenchTier::UseKeySpaceOf(const std::string& name) {
  kv::KeySpaceIdentity identity;
  identity.model = name;
  identity.model_fingerprint = "terrace_bench";
  identity.layout = "bytes";
  identity.block_bytes = block_bytes_;
  kv::KeySpaceTable table(1);
  digest_ = (*table.Open(0, "default", identity))->digest;
}

tiering::NvmeBlock BenchTier::Block(uint64_t number) const {
  tiering::NvmeBlock block;
  block.key_space_digest = digest_;
  const std::vector<uint8_t> key = MakeKeys(number, 1);
  std::memcpy(block.key.bytes.data(), key.data(), key.size());
  block.payload_bytes = block_bytes_;
  return block;
}

std::span<std::byte> BenchTier::Source(uint64_t number) {
  return {sources_.data() + number % kSources * block_bytes_, block_bytes_};
}

std::span<std::byte> BenchTier::Target(uint32_t place) {
  return {targets_.data() + place * block_bytes_, block_bytes_};
}

void BenchTier::Prepare(uint64_t first, uint64_t n) {
  first_prepared_ = first;
  checksums_.assign(n, std::vector<uint64_t>(ChecksumCount(block_bytes_)));
  for (uint64_t i = 0; i < n; ++i) {
    const tiering::NvmeBlock block = Block(first + i);
    if (has_own_payloads_) FillPayload(block.key.bytes.data(), Source(first + i));
    const Piece piece{Source(first + i).data(), block_bytes_};
    CopyBlock({&piece, 1}, {}, IdentitySeed(block.key_space_digest.data(), block.key.bytes.data(), block_bytes_),
              CopyCheck::kCompute, checksums_[i], CopyStores::kCached);
  }
}

void BenchTier::Begin() {
  MutexLock lock(&mu_);
  ++under_way_;
}

void BenchTier::End(const absl::Status& status) {
  MutexLock lock(&mu_);
  --under_way_;
  if (status_.ok()) status_ = status;
  changed_.SignalAll();
}

absl::Status BenchTier::WaitBelow(uint32_t n) {
  const double begun = Seconds();
  MutexLock lock(&mu_);
  while (under_way_ >= n && Seconds() - begun < kLongest) changed_.WaitFor(&mu_, std::chrono::milliseconds(100));
  if (under_way_ >= n) return absl::DeadlineExceededError("the tier does not answer");
  return std::exchange(status_, absl::OkStatus());
}

absl::Status BenchTier::Append(uint64_t first, uint64_t n) {
  if (first != first_prepared_ || n != checksums_.size()) Prepare(first, n);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t number = first + i;
    const tiering::NvmeBlock block = Block(number);
    if (has_own_payloads_) FillPayload(block.key.bytes.data(), Source(number));
    Begin();
    tiering::NvmeTier::Append taken;
    while (true) {
      taken = tier_->TryAppend(block, std::nullopt, Source(number), checksums_[i], [this, number](bool is_written) {
        End(is_written ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("block ", number, " was not written")));
      });
      if (taken != tiering::NvmeTier::Append::kBusy) break;
      MutexLock lock(&mu_);
      changed_.WaitFor(&mu_, std::chrono::microseconds(500));  // until a buffer is written
    }
    if (taken != tiering::NvmeTier::Append::kAccepted) {
      End(absl::OkStatus());
      WaitBelow(1).IgnoreError();  // the refusal is the news
      return absl::InternalError(absl::StrCat("block ", number, " was refused: ", static_cast<int>(taken)));
    }
  }
  tier_->Kick();
  return WaitBelow(1);
}

void BenchTier::Read(uint64_t number, uint32_t place, bool compares) {
  Begin();
  tier_->Read(Block(number), Target(place), [this, number, place, compares](tiering::NvmeTier::ReadResult result) {
    absl::Status status;
    if (result.reason != Reason::kNone) {
      const std::string_view reason = ReasonName(result.reason);
      status = absl::DataLossError(
          absl::StrCat("block ", number, ": ", absl::string_view(reason.data(), reason.size())));
    } else if (compares && std::memcmp(Target(place).data(), Source(number).data(), block_bytes_) != 0) {
      status = absl::DataLossError(absl::StrCat("block ", number, " has other bytes than were written"));
    }
    {
      MutexLock lock(&mu_);
      free_places_.push_back(place);
    }
    End(status);
  });
}

absl::Status BenchTier::CheckAll(uint64_t first, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) {
    std::memset(targets_.data(), 0, block_bytes_);
    Read(first + i, 0, true);
    RETURN_IF_ERROR(WaitBelow(1));
  }
  MutexLock lock(&mu_);
  free_places_.clear();  // place 0 was used over and over
  for (uint32_t i = 0; i < kPlaces; ++i) free_places_.push_back(i);
  return absl::OkStatus();
}

absl::Status BenchTier::ReadRandom(uint64_t seed, uint64_t blocks, uint64_t n, uint32_t depth) {
  for (uint64_t i = 0; i < n; ++i) {
    RETURN_IF_ERROR(WaitBelow(depth));
    uint32_t place = 0;
    {
      MutexLock lock(&mu_);
      place = free_places_.back();
      free_places_.pop_back();
    }
    Read(Mix(seed + i) % blocks, place, false);
  }
  return WaitBelow(1);
}

}  // namespace terrace::bench
