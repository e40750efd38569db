// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/shared_segment_table.h"

#include <algorithm>
#include <cstring>

#include "absl/memory/memory.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "tiering/shared_segment.h"

namespace terrace::tiering {

using kv::FramePool;

namespace {

constexpr uint32_t kMagic = 0x47535254;  // "TRSG"
// Of the table, and of all it implies: ShapeFor, extents and headers' places, the block header.
constexpr uint16_t kVersion = 1;
constexpr uint32_t kNone = ~0u;
constexpr uint64_t kPage = kv::kFrameAlign;
constexpr uint64_t kMaxStride = 1 << 30;

}  // namespace

struct SharedSegmentTable::Head {
  uint32_t magic;
  uint16_t version, tenant_bytes;
  uint32_t segment_id, extents;
  uint16_t block_header_version, reserved0;
  uint32_t reserved1;
  uint64_t reserved2[4];
  char tenant[kMaxTenantBytes];
  uint64_t checksum;  // Checksum64 over all before it
};

// A slab's, at the place of its first extent.
struct SharedSegmentTable::Record {
  uint32_t pages;    // stride / 4096; 0: no slab begins here
  uint32_t extents;
  uint64_t check;    // over segment, extent and both fields; 0 with pages 0
};

uint64_t SharedSegmentTable::FileBytes(uint32_t extents) {
  static_assert(sizeof(Head) == 512 && sizeof(Record) == 16);
  return (sizeof(Head) + extents * sizeof(Record) + kPage - 1) / kPage * kPage;
}

SharedSegmentTable::SharedSegmentTable(std::unique_ptr<SharedMemory> memory, uint32_t segment_id, uint32_t extents)
    : memory_(std::move(memory)),
      segment_id_(segment_id),
      extents_(extents),
      pages_(new std::atomic<uint32_t>[extents]()),
      first_(extents, kNone) {}

SharedSegmentTable::~SharedSegmentTable() = default;

SharedSegmentTable::Head* SharedSegmentTable::head() const { return reinterpret_cast<Head*>(memory_->data()); }

SharedSegmentTable::Record* SharedSegmentTable::record(uint32_t extent) const {
  return reinterpret_cast<Record*>(memory_->data() + sizeof(Head)) + extent;
}

uint64_t SharedSegmentTable::CheckOf(uint32_t extent, const Record& record) const {
  const uint32_t fields[] = {segment_id_, extent, record.pages, record.extents};
  return Checksum64(fields, sizeof(fields), kMagic);
}

void SharedSegmentTable::Seal() {
  head()->checksum = Checksum64(head(), offsetof(Head, checksum), kMagic);
}

std::unique_ptr<SharedSegmentTable> SharedSegmentTable::Create(std::unique_ptr<SharedMemory> memory,
                                                               uint32_t segment_id, uint32_t extents) {
  TERRACE_CHECK(memory->bytes() >= FileBytes(extents));
  auto table = absl::WrapUnique(new SharedSegmentTable(std::move(memory), segment_id, extents));
  Head* head = table->head();
  std::memset(head, 0, sizeof(Head));
  head->magic = kMagic;
  head->version = kVersion;
  head->segment_id = segment_id;
  head->extents = extents;
  head->block_header_version = kv::kBlockHeaderVersion;
  table->Seal();
  return table;
}

absl::StatusOr<std::unique_ptr<SharedSegmentTable>> SharedSegmentTable::Open(std::unique_ptr<SharedMemory> memory,
                                                                             uint32_t segment_id) {
  Head head;
  if (memory->bytes() < sizeof(Head)) return absl::DataLossError("the table is too short");
  std::memcpy(&head, memory->data(), sizeof(head));
  if (head.magic != kMagic || head.checksum != Checksum64(&head, offsetof(Head, checksum), kMagic)) {
    return absl::DataLossError("the table is damaged");
  }
  if (head.version != kVersion || head.block_header_version != kv::kBlockHeaderVersion) {
    return absl::DataLossError("the table is of another version");
  }
  if (head.segment_id != segment_id || head.tenant_bytes > kMaxTenantBytes || head.extents == 0 ||
      memory->bytes() != FileBytes(head.extents)) {
    return absl::DataLossError("the table is of another segment");
  }
  auto table = absl::WrapUnique(new SharedSegmentTable(std::move(memory), segment_id, head.extents));
  table->ReadRecords();
  return table;
}

void SharedSegmentTable::ReadRecords() {
  MutexLock lock(&mu_);
  for (uint32_t i = 0; i < extents_; ++i) {
    Record* at = record(i);
    if (at->pages == 0 && at->check == 0) continue;
    const uint64_t stride = at->pages * kPage;
    // A slab's own record is the only one in its extents: what stands inside another one's is damage.
    const bool whole = at->pages != 0 && at->check == CheckOf(i, *at) && stride <= kMaxStride &&
                       kv::ShapeFor(stride).extents == at->extents && at->extents <= extents_ - i &&
                       first_[i] == kNone;
    if (!whole) {
      ++damaged_;
      std::memset(at, 0, sizeof(*at));
      continue;
    }
    pages_[i].store(at->pages, std::memory_order_relaxed);
    std::fill_n(first_.begin() + i, at->extents, i);
  }
}

std::string SharedSegmentTable::tenant() const { return {head()->tenant, head()->tenant_bytes}; }

void SharedSegmentTable::SetTenant(absl::string_view name) {
  TERRACE_CHECK(name.size() <= kMaxTenantBytes);
  std::memcpy(head()->tenant, name.data(), name.size());
  head()->tenant_bytes = static_cast<uint16_t>(name.size());
  Seal();
}

bool SharedSegmentTable::Holds(const FramePool::SlabPlace& slab) const {
  return pages_[slab.first_extent].load(std::memory_order_acquire) == slab.stride / kPage;
}

void SharedSegmentTable::Add(const FramePool::SlabPlace& slab) {
  const uint32_t n = kv::ShapeFor(slab.stride).extents;
  TERRACE_CHECK(n <= extents_ && slab.first_extent <= extents_ - n);
  MutexLock lock(&mu_);
  if (Holds(slab)) return;
  for (uint32_t i = slab.first_extent; i < slab.first_extent + n; ++i) {
    if (first_[i] != kNone) EraseLocked(first_[i]);
  }
  Record fields{static_cast<uint32_t>(slab.stride / kPage), n, 0};
  fields.check = CheckOf(slab.first_extent, fields);
  std::memcpy(record(slab.first_extent), &fields, sizeof(fields));
  std::fill_n(first_.begin() + slab.first_extent, n, slab.first_extent);
  pages_[slab.first_extent].store(fields.pages, std::memory_order_release);
}

void SharedSegmentTable::Erase(const FramePool::SlabPlace& slab) {
  MutexLock lock(&mu_);
  if (Holds(slab)) EraseLocked(slab.first_extent);
}

void SharedSegmentTable::EraseLocked(uint32_t first) {
  const uint32_t extents = kv::ShapeFor(pages_[first].exchange(0, std::memory_order_relaxed) * kPage).extents;
  std::memset(record(first), 0, sizeof(Record));
  std::fill_n(first_.begin() + first, extents, kNone);
}

std::vector<FramePool::SlabPlace> SharedSegmentTable::List() const {
  std::vector<FramePool::SlabPlace> slabs;
  for (uint32_t i = 0; i < extents_; ++i) {
    if (const uint32_t pages = pages_[i].load(std::memory_order_acquire)) slabs.push_back({i, pages * kPage});
  }
  return slabs;
}

}  // namespace terrace::tiering
