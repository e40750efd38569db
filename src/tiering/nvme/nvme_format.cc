// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kvstore/base/check.h"

namespace terrace::tiering {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint64_t kMaxDevice = 16ull << 40;  // an entry number takes 32 bits

uint64_t RoundUp(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

template <typename T>
T Load(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// Of bytes in which the eight at `field` count as zero.
uint64_t SumWithout(std::span<const std::byte> bytes, size_t field, uint64_t seed) {
  uint64_t sum = Checksum64(bytes.data(), field, seed);
  return Checksum64(bytes.data() + field + 8, bytes.size() - field - 8, sum);
}

}  // namespace

NvmeGeometry NvmeGeometry::Make(uint64_t device_bytes, uint64_t segment_bytes) {
  NvmeGeometry g;
  g.device_bytes = device_bytes;
  const uint64_t usable = std::min(device_bytes, kMaxDevice);
  if (segment_bytes == 0) {
    segment_bytes = std::clamp<uint64_t>(std::bit_floor(std::max<uint64_t>(usable / 64, 1)), 16ull << 20,
                                         kNvmeMaxSegment);
    while (segment_bytes > kNvmeMinSegment && usable / segment_bytes < 8) segment_bytes /= 2;
  }
  g.segment_bytes = segment_bytes;
  g.max_entries = static_cast<uint32_t>(segment_bytes / kNvmeMinRecord);
  g.slot_bytes = RoundUp(sizeof(NvmeSlotHeader) + g.max_entries * sizeof(NvmeEntry), kNvmePage);
  uint64_t segments = usable < kNvmeSlotsOffset ? 0
                                                : (usable - kNvmeSlotsOffset) / (segment_bytes + g.slot_bytes);
  while (segments > 0 && RoundUp(kNvmeSlotsOffset + segments * g.slot_bytes, 1ull << 20) +
                                 segments * segment_bytes > usable) {
    --segments;
  }
  g.data_offset = RoundUp(kNvmeSlotsOffset + segments * g.slot_bytes, 1ull << 20);
  g.segments = segments < kNvmeMinSegments ? 0 : static_cast<uint32_t>(segments);
  return g;
}

uint64_t NvmeFingerprint(const NvmeBlock& block, uint64_t seed) {
  uint8_t identity[72];
  std::memcpy(identity, block.key_space_digest.data(), 32);
  std::memcpy(identity + 32, block.key.bytes.data(), 32);
  std::memcpy(identity + 64, &block.payload_bytes, 8);
  return Checksum64(identity, sizeof(identity), seed);
}

uint32_t NvmeSpaceTag(const std::array<uint8_t, 32>& digest, uint64_t seed) {
  return static_cast<uint32_t>(Checksum64(digest.data(), digest.size(), ~seed));
}

void EncodeSuperblock(NvmeSuperblock super, std::span<std::byte> page) {
  std::memset(page.data(), 0, kNvmePage);
  std::memcpy(page.data(), &super, sizeof(super));
  super.checksum = SumWithout(page.first(kNvmePage), offsetof(NvmeSuperblock, checksum), kNvmeSuperMagic);
  std::memcpy(page.data(), &super, sizeof(super));
}

SuperVerdict DecodeSuperblock(std::span<const std::byte> page, NvmeSuperblock* out) {
  if (IsZero(page.first(kNvmePage))) return SuperVerdict::kBlank;
  const auto super = Load<NvmeSuperblock>(page);
  if (super.magic != kNvmeSuperMagic) return SuperVerdict::kForeign;
  if (super.checksum !=
      SumWithout(page.first(kNvmePage), offsetof(NvmeSuperblock, checksum), kNvmeSuperMagic)) {
    return SuperVerdict::kDamaged;
  }
  *out = super;
  return super.version == kNvmeVersion ? SuperVerdict::kOk : SuperVerdict::kOtherVersion;
}

uint64_t EncodeState(const NvmeState& state, std::span<std::byte> out) {
  TERRACE_CHECK(state.tombstones.size() <= kNvmeMaxTombstones);
  NvmeStateHeader header{};
  header.magic = kNvmeStateMagic;
  header.version = kNvmeVersion;
  header.clean = state.clean ? 1 : 0;
  header.device_id = state.device_id;
  header.serial = state.serial;
  header.epoch = state.epoch;
  header.written_bytes = state.written_bytes;
  header.budget_bytes = state.budget_bytes;
  header.blocks = state.blocks;
  header.n_tombstones = static_cast<uint32_t>(state.tombstones.size());
  const uint64_t used = sizeof(header) + state.tombstones.size() * sizeof(NvmeTombstone);
  const uint64_t bytes = RoundUp(used, kNvmePage);
  std::memset(out.data(), 0, bytes);
  std::memcpy(out.data(), &header, sizeof(header));
  if (!state.tombstones.empty()) {
    std::memcpy(out.data() + sizeof(header), state.tombstones.data(), used - sizeof(header));
  }
  header.checksum = SumWithout(out.first(used), offsetof(NvmeStateHeader, checksum), kNvmeStateMagic);
  std::memcpy(out.data(), &header, sizeof(header));
  return bytes;
}

std::optional<NvmeState> DecodeState(std::span<const std::byte> in, const NvmeDeviceId& device) {
  const auto header = Load<NvmeStateHeader>(in);
  if (header.magic != kNvmeStateMagic || header.version != kNvmeVersion || header.device_id != device ||
      header.n_tombstones > kNvmeMaxTombstones) {
    return std::nullopt;
  }
  const uint64_t used = sizeof(header) + header.n_tombstones * sizeof(NvmeTombstone);
  if (used > in.size() ||
      header.checksum != SumWithout(in.first(used), offsetof(NvmeStateHeader, checksum), kNvmeStateMagic)) {
    return std::nullopt;
  }
  NvmeState state;
  state.device_id = header.device_id;
  state.serial = header.serial;
  state.epoch = header.epoch;
  state.written_bytes = header.written_bytes;
  state.budget_bytes = header.budget_bytes;
  state.clean = header.clean != 0;
  state.blocks = header.blocks;
  state.tombstones.resize(header.n_tombstones);
  if (header.n_tombstones > 0) {
    std::memcpy(state.tombstones.data(), in.data() + sizeof(header), used - sizeof(header));
  }
  return state;
}

uint64_t NvmeSlotBytes(uint32_t n_entries) {
  return RoundUp(sizeof(NvmeSlotHeader) + n_entries * sizeof(NvmeEntry), kNvmePage);
}

uint64_t EncodeSlot(NvmeSlotHeader header, std::span<const NvmeEntry> entries, std::span<std::byte> out) {
  header.magic = kNvmeSlotMagic;
  header.version = kNvmeVersion;
  header.n_entries = static_cast<uint32_t>(entries.size());
  header.entries_checksum = Checksum64(entries.data(), entries.size_bytes(), header.sequence);
  header.header_checksum = 0;
  header.header_checksum = Checksum64(&header, sizeof(header), kNvmeSlotMagic);
  const uint64_t bytes = NvmeSlotBytes(header.n_entries);
  TERRACE_CHECK(bytes <= out.size());
  std::memset(out.data(), 0, bytes);
  std::memcpy(out.data(), &header, sizeof(header));
  if (!entries.empty()) std::memcpy(out.data() + sizeof(header), entries.data(), entries.size_bytes());
  return bytes;
}

std::optional<NvmeSlotHeader> DecodeSlotHeader(std::span<const std::byte> in, const NvmeDeviceId& device,
                                               uint32_t segment, const NvmeGeometry& geometry) {
  auto header = Load<NvmeSlotHeader>(in);
  const uint64_t sum = header.header_checksum;
  header.header_checksum = 0;
  if (header.magic != kNvmeSlotMagic || header.version != kNvmeVersion || header.device_id != device ||
      header.segment != segment || header.n_entries > geometry.max_entries ||
      header.covered_pages > geometry.segment_pages() ||
      sum != Checksum64(&header, sizeof(header), kNvmeSlotMagic)) {
    return std::nullopt;
  }
  return header;
}

bool DecodeSlotEntries(const NvmeSlotHeader& header, std::span<const std::byte> in,
                       std::vector<NvmeEntry>* out) {
  out->resize(header.n_entries);
  const uint64_t bytes = header.n_entries * sizeof(NvmeEntry);
  if (bytes > 0) std::memcpy(out->data(), in.data() + sizeof(NvmeSlotHeader), bytes);
  return header.entries_checksum == Checksum64(out->data(), bytes, header.sequence);
}

void EncodeRecordHeader(const NvmeDeviceId& device, const NvmePlace& place, const NvmeBlock& block,
                        const std::optional<kv::BlockKey>& parent, std::span<const uint64_t> checksums,
                        std::span<std::byte> page) {
  std::memset(page.data(), 0, kNvmePage);
  NvmeRecordHeader header{};
  header.magic = kNvmeRecordMagic;
  header.version = kNvmeVersion;
  header.flags = parent ? kNvmeRecordHasParent : 0;
  header.device_id = device;
  header.sequence = place.sequence;
  header.segment = place.segment;
  header.page = place.page;
  header.payload_bytes = block.payload_bytes;
  header.pages = NvmeRecordPages(block.payload_bytes);
  header.n_checksums = static_cast<uint32_t>(checksums.size());
  std::memcpy(header.key_space_digest, block.key_space_digest.data(), 32);
  std::memcpy(header.key, block.key.bytes.data(), 32);
  if (parent) std::memcpy(header.parent, parent->bytes.data(), 32);
  std::memcpy(page.data(), &header, sizeof(header));
  std::memcpy(page.data() + sizeof(header), checksums.data(), checksums.size_bytes());
  header.checksum =
      SumWithout(page.first(kNvmePage), offsetof(NvmeRecordHeader, checksum), kNvmeRecordMagic);
  std::memcpy(page.data(), &header, sizeof(header));
}

RecordVerdict CheckRecordHeader(std::span<const std::byte> page, const NvmeDeviceId& device,
                                const NvmePlace& place) {
  const auto header = Load<NvmeRecordHeader>(page);
  if (header.magic != kNvmeRecordMagic) return RecordVerdict::kTorn;
  if (header.checksum !=
      SumWithout(page.first(kNvmePage), offsetof(NvmeRecordHeader, checksum), kNvmeRecordMagic)) {
    return RecordVerdict::kChecksum;
  }
  if (header.version != kNvmeVersion || header.payload_bytes == 0 ||
      header.payload_bytes > kNvmeMaxPayload || header.n_checksums != ChecksumCount(header.payload_bytes) ||
      header.pages != NvmeRecordPages(header.payload_bytes) || header.device_id != device ||
      header.segment != place.segment || header.page != place.page) {
    return RecordVerdict::kIdentity;
  }
  if (place.sequence != 0 && header.sequence != place.sequence) return RecordVerdict::kStale;
  return RecordVerdict::kOk;
}

bool IsRecordOf(std::span<const std::byte> page, const NvmeBlock& block) {
  const auto header = Load<NvmeRecordHeader>(page);
  return header.payload_bytes == block.payload_bytes &&
         std::memcmp(header.key_space_digest, block.key_space_digest.data(), 32) == 0 &&
         std::memcmp(header.key, block.key.bytes.data(), 32) == 0;
}

}  // namespace terrace::tiering
