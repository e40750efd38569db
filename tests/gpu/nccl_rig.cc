// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/nccl_rig.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "testing/payload.h"

namespace terrace::gpu {
namespace {

constexpr uint8_t kDigest[32] = {1, 2, 3};
constexpr std::array<uint64_t, 6> kLengths = {65536, 1, 4096, 65536 + 24, 300'001, 32768};
constexpr uint64_t kLong = (5ull << 20) + 8;  // longer than one NCCL operation

kv::BlockKey Key(uint64_t number, uint64_t frame) { return testing::KeyOf(number << 20 | frame); }

}  // namespace

uint64_t LinkRig::Length(uint64_t frame) { return frame % 32 == 31 ? kLong : kLengths[frame % kLengths.size()]; }

LinkRig::LinkRig(const std::string& driver, const LinkPlan& plan) : plan_(plan) {
  std::string why;
  driver_ = Driver::Load(driver, &why);
  if (driver_ == nullptr) std::fprintf(stderr, "%s\n", why.c_str());
  TERRACE_CHECK(driver_ != nullptr);
  TERRACE_CHECK(driver_->cuDeviceGet(&device_, 0) == CUDA_SUCCESS);
  TERRACE_CHECK(driver_->cuDevicePrimaryCtxRetain(&context_, device_) == CUDA_SUCCESS);
  const ScopedContext current(*driver_, context_);
  TERRACE_CHECK(driver_->cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING, 0) == CUDA_SUCCESS);
}

LinkRig::~LinkRig() {
  {
    const ScopedContext current(*driver_, context_);
    driver_->cuStreamDestroy(stream_);
  }
  driver_->cuDevicePrimaryCtxRelease(device_);
}

std::byte* LinkRig::Allocate(uint64_t bytes) {
  if (plan_.memory == LinkMemory::kHost) return static_cast<std::byte*>(std::malloc(bytes));
  const ScopedContext current(*driver_, context_);
  if (plan_.memory == LinkMemory::kPinned) {
    void* memory = nullptr;
    TERRACE_CHECK(driver_->cuMemHostAlloc(&memory, bytes, 0) == CUDA_SUCCESS);
    return static_cast<std::byte*>(memory);
  }
  CUdeviceptr memory = 0;
  TERRACE_CHECK(driver_->cuMemAlloc(&memory, bytes) == CUDA_SUCCESS);
  return reinterpret_cast<std::byte*>(memory);
}

void LinkRig::Free(const std::vector<std::byte*>& memory) {
  for (std::byte* const piece : memory) {
    const ScopedContext current(*driver_, context_);
    switch (plan_.memory) {
      case LinkMemory::kHost: std::free(piece); break;
      case LinkMemory::kPinned: driver_->cuMemFreeHost(piece); break;
      case LinkMemory::kDevice: driver_->cuMemFree(reinterpret_cast<CUdeviceptr>(piece)); break;
    }
  }
}

void LinkRig::Copy(void* target, const void* source, uint64_t bytes) {
  if (plan_.memory != LinkMemory::kDevice) {
    std::memcpy(target, source, bytes);
    return;
  }
  const ScopedContext current(*driver_, context_);
  const auto to = reinterpret_cast<CUdeviceptr>(target), from = reinterpret_cast<CUdeviceptr>(source);
  TERRACE_CHECK(driver_->cuMemcpyAsync(to, from, bytes, stream_) == CUDA_SUCCESS);
  TERRACE_CHECK(driver_->cuStreamSynchronize(stream_) == CUDA_SUCCESS);
}

std::vector<std::byte> LinkRig::Payload(uint64_t number, uint64_t frame) {
  std::vector<std::byte> payload(Length(frame));
  testing::FillPayload(Key(number, frame), 0, payload);
  return payload;
}

LinkRig::Made LinkRig::MakeBatch(uint64_t number) {
  Made made;
  made.batch.frames_on_device = plan_.memory == LinkMemory::kDevice;
  made.batch.deadline_ns = Clock::Real()->NowNs() + plan_.deadline_ns;
  for (uint64_t i = 0; i < plan_.frames; ++i) {
    std::vector<std::byte> payload = Payload(number, i);
    LinkFrame frame;
    frame.data = Allocate(payload.size());
    frame.bytes = payload.size();
    frame.receive = Receives(i);
    if (frame.receive) {
      frame.identity_seed = IdentitySeed(kDigest, Key(number, i).bytes.data(), frame.bytes);
      frame.checksums = testing::ChecksumsOf(kDigest, Key(number, i), payload);
      std::memset(payload.data(), 0x5a, payload.size());
    }
    Copy(frame.data, payload.data(), payload.size());
    made.memory.push_back(frame.data);
    made.batch.frames.push_back(std::move(frame));
  }
  return made;
}

std::string LinkRig::Check(uint64_t number, const LinkBatch& batch) {
  for (uint64_t i = 0; i < batch.frames.size(); ++i) {
    const LinkFrame& frame = batch.frames[i];
    if (!frame.intact) return absl::StrCat("batch ", number, ", frame ", i, " is not intact");
    std::vector<std::byte> here(frame.bytes);
    Copy(here.data(), frame.data, frame.bytes);
    if (here != Payload(number, i)) return absl::StrCat("batch ", number, ", frame ", i, " holds other bytes");
  }
  return "";
}

absl::Status LinkRig::RunAll(NcclLink& link, uint64_t at_once) {
  struct InFlight {
    uint64_t number;
    std::vector<std::byte*> memory;
    LinkBatch batch;
    absl::Status status;
    bool is_done = false;
  };
  Mutex mu;
  CondVar changed;
  absl::Status first;
  std::deque<std::unique_ptr<InFlight>> in_flight;
  for (uint64_t next = 0; next < plan_.batches || !in_flight.empty();) {
    if (next < plan_.batches && first.ok() && in_flight.size() < at_once) {
      auto flight = std::make_unique<InFlight>();
      Made made = MakeBatch(next);
      flight->number = next++;
      flight->memory = std::move(made.memory);
      made.batch.done = [&mu, &changed, raw = flight.get()](LinkBatch& batch, const absl::Status& status) {
        const MutexLock lock(&mu);
        raw->batch.frames = std::move(batch.frames);
        raw->status = status;
        raw->is_done = true;
        changed.SignalAll();
      };
      first = link.Submit(made.batch);
      if (first.ok()) {
        in_flight.push_back(std::move(flight));
      } else {
        Free(flight->memory);
      }
      continue;
    }
    if (in_flight.empty()) break;
    InFlight& oldest = *in_flight.front();
    {
      MutexLock lock(&mu);
      while (!oldest.is_done) changed.Wait(&mu);
    }
    std::string wrong = oldest.status.ok() ? Check(oldest.number, oldest.batch) : "";
    if (first.ok()) first = wrong.empty() ? oldest.status : absl::DataLossError(wrong);
    Free(oldest.memory);
    in_flight.pop_front();
  }
  return first;
}

}  // namespace terrace::gpu
