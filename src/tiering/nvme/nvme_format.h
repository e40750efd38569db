// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What stands on a disk of the NVMe tier, byte by byte (docs/nvme_format.md; held by a golden test), and
// the checks by which every piece tells what it is: torn, misdirected, stale and flipped data do not
// pass. Plain values and pure functions; no I/O.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tiering/nvme/nvme_tier.h"

namespace terrace::tiering {

inline constexpr uint64_t kNvmePage = kIoAlign;
inline constexpr uint16_t kNvmeVersion = 1;
inline constexpr uint32_t kNvmeSuperMagic = 0x53565254;   // "TRVS"
inline constexpr uint32_t kNvmeStateMagic = 0x54565254;   // "TRVT"
inline constexpr uint32_t kNvmeSlotMagic = 0x4c565254;    // "TRVL"
inline constexpr uint32_t kNvmeRecordMagic = 0x42565254;  // "TRVB"
inline constexpr uint64_t kNvmeMinSegment = 1ull << 20;
inline constexpr uint64_t kNvmeMaxSegment = 256ull << 20;  // 65536 pages: a page number takes 16 bits
inline constexpr uint64_t kNvmeMinRecord = 2 * kNvmePage;  // header and one page of payload
inline constexpr uint64_t kNvmeSuperCopy = 32ull << 10;    // offset of the second copy
inline constexpr uint64_t kNvmeStateOffset = 64ull << 10;
inline constexpr uint64_t kNvmeStateBytes = 256ull << 10;  // each of two
inline constexpr uint64_t kNvmeSlotsOffset = 1ull << 20;
inline constexpr uint32_t kNvmeMinSegments = 4;
inline constexpr uint64_t kNvmeMinBytes = 8ull << 20;      // of a device

using NvmeDeviceId = std::array<uint8_t, 16>;

// Where things lie, computed from two numbers. A value.
struct NvmeGeometry {
  uint64_t device_bytes = 0, segment_bytes = 0;
  uint64_t slot_bytes = 0;   // of a segment's slot in the table: header and room for all its entries
  uint64_t data_offset = 0;  // of segment 0
  uint32_t segments = 0;     // 0: too small
  uint32_t max_entries = 0;  // of a segment; a power of two

  // segment_bytes 0: chosen. What lies beyond 16 TiB is not used.
  static NvmeGeometry Make(uint64_t device_bytes, uint64_t segment_bytes);
  uint64_t slot_offset(uint32_t segment) const { return kNvmeSlotsOffset + segment * slot_bytes; }
  uint64_t segment_offset(uint32_t segment) const { return data_offset + segment * segment_bytes; }
  uint32_t segment_pages() const { return static_cast<uint32_t>(segment_bytes / kNvmePage); }
};

// Written when the device is formatted and then left alone; two copies.
struct NvmeSuperblock {
  uint32_t magic;
  uint16_t version;
  uint16_t reserved0;
  NvmeDeviceId device_id;     // random
  uint64_t device_bytes;
  uint64_t segment_bytes;
  uint64_t fingerprint_seed;  // random: nobody outside can make fingerprints collide
  uint64_t reserved1;
  uint64_t checksum;          // over the whole page, this field 0
};
static_assert(sizeof(NvmeSuperblock) == 64);

// A flush: blocks of the key space (all_spaces: of any) laid down before the position are gone.
struct NvmeTombstone {
  uint32_t space_tag;
  uint32_t all_spaces;
  uint64_t sequence;
  uint64_t page;
};
static_assert(sizeof(NvmeTombstone) == 24);

// What changes: written alternately to two places, the valid one with the higher serial counts.
struct NvmeStateHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t clean;            // written by an orderly end
  NvmeDeviceId device_id;
  uint64_t serial;
  uint64_t epoch;            // starts of this device; upper half of its segments' sequence numbers
  uint64_t written_bytes;    // ever
  int64_t budget_bytes;      // left of the endurance budget
  uint32_t n_tombstones;
  uint32_t blocks;           // about how many there were; 0: not known. To make room before recovery
  uint64_t checksum;         // over header (this field 0) and tombstones
};
static_assert(sizeof(NvmeStateHeader) == 72);
inline constexpr uint32_t kNvmeMaxTombstones =
    (kNvmeStateBytes - sizeof(NvmeStateHeader)) / sizeof(NvmeTombstone);

struct NvmeState {
  NvmeDeviceId device_id{};
  uint64_t serial = 0, epoch = 0, written_bytes = 0;
  int64_t budget_bytes = 0;
  bool clean = false;
  uint32_t blocks = 0;
  std::vector<NvmeTombstone> tombstones;
};

// A block in a segment's table, and in the index in memory.
struct NvmeEntry {
  uint64_t fingerprint;
  uint32_t space_tag;   // of the key space, for flushes
  uint16_t page;        // of the record in its segment
  uint16_t pages;       // of the record, header included; 0: none (any more)
};
static_assert(sizeof(NvmeEntry) == 16);
inline constexpr uint32_t kNvmeMaxRecordPages = 8191;  // 13 bits; one page of checksums is the tighter limit

struct NvmeSlotHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t sealed;        // nothing is written to this segment any more
  NvmeDeviceId device_id;
  uint32_t segment;
  uint32_t n_entries;
  uint64_t sequence;      // of this use of the segment; grows, never repeats. 0: not in use
  uint64_t covered_pages; // entries tell everything about the pages before it
  uint64_t reserved[8];
  uint64_t entries_checksum;
  uint64_t header_checksum;  // over the header, this field 0
};
static_assert(sizeof(NvmeSlotHeader) == 128);

inline constexpr uint16_t kNvmeRecordHasParent = 1;

// The first page of a record; the payload follows from the next page on, padded with zeros.
struct NvmeRecordHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t flags;
  NvmeDeviceId device_id;
  uint64_t sequence;      // of the segment
  uint32_t segment;
  uint32_t page;          // of this header in the segment
  uint64_t payload_bytes;
  uint32_t pages;         // of the record
  uint32_t n_checksums;
  uint8_t key_space_digest[32];
  uint8_t key[32];
  uint8_t parent[32];     // 0 without the flag
  uint64_t reserved;
  uint64_t checksum;      // over the whole page, this field 0
  // n_checksums * u64 follow, zeros to the end of the page
  const uint64_t* checksums() const { return reinterpret_cast<const uint64_t*>(this + 1); }
  uint64_t* checksums() { return reinterpret_cast<uint64_t*>(this + 1); }
};
static_assert(sizeof(NvmeRecordHeader) == 168);
inline constexpr uint64_t kNvmeMaxPayload =
    (kNvmePage - sizeof(NvmeRecordHeader)) / 8 * kChecksumSegmentBytes;

constexpr uint32_t NvmeRecordPages(uint64_t payload_bytes) {
  return static_cast<uint32_t>(1 + (payload_bytes + kNvmePage - 1) / kNvmePage);
}

// Keyed: the index knows blocks by this. Includes the length.
uint64_t NvmeFingerprint(const NvmeBlock& block, uint64_t seed);
uint32_t NvmeSpaceTag(const std::array<uint8_t, 32>& digest, uint64_t seed);

// Where a record lies and in which use of its segment.
struct NvmePlace {
  uint32_t segment = 0, page = 0;
  uint64_t sequence = 0;
};

// All write into a buffer of zeros or of anything; sizes as the REQUIRES say.
void EncodeSuperblock(NvmeSuperblock super, std::span<std::byte> page);  // REQUIRES: kNvmePage
// The number of bytes to write, a multiple of the page. REQUIRES: kNvmeStateBytes.
uint64_t EncodeState(const NvmeState& state, std::span<std::byte> out);
uint64_t EncodeSlot(NvmeSlotHeader header, std::span<const NvmeEntry> entries, std::span<std::byte> out);
void EncodeRecordHeader(const NvmeDeviceId& device, const NvmePlace& place, const NvmeBlock& block,
                        const std::optional<kv::BlockKey>& parent, std::span<const uint64_t> checksums,
                        std::span<std::byte> page);

enum class SuperVerdict { kOk, kBlank /* all zero */, kForeign, kOtherVersion, kDamaged };
SuperVerdict DecodeSuperblock(std::span<const std::byte> page, NvmeSuperblock* out);
std::optional<NvmeState> DecodeState(std::span<const std::byte> in, const NvmeDeviceId& device);
// The header alone; bytes of the slot with all its entries are SlotBytes(header).
std::optional<NvmeSlotHeader> DecodeSlotHeader(std::span<const std::byte> in, const NvmeDeviceId& device,
                                               uint32_t segment, const NvmeGeometry& geometry);
uint64_t NvmeSlotBytes(uint32_t n_entries);
// False: the entries are not those of the header. REQUIRES: in has NvmeSlotBytes(n_entries).
bool DecodeSlotEntries(const NvmeSlotHeader& header, std::span<const std::byte> in,
                       std::vector<NvmeEntry>* out);

enum class RecordVerdict { kOk, kTorn /* no header there */, kChecksum, kIdentity, kStale };
// Is this the header of a record at that place? sequence 0: of any use. Looks at one page.
RecordVerdict CheckRecordHeader(std::span<const std::byte> page, const NvmeDeviceId& device,
                                const NvmePlace& place);
// ... and of that block? REQUIRES: CheckRecordHeader said kOk.
bool IsRecordOf(std::span<const std::byte> page, const NvmeBlock& block);

}  // namespace terrace::tiering
