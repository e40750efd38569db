// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The engine socket's wire format: fixed-size little-endian messages over a Unix SOCK_SEQPACKET
// socket, one message a packet, descriptors by SCM_RIGHTS. Plain structs shared by the daemon and
// libterrace; no code but size checks. Described in docs/engine_protocol.md, bytes held by a golden test.
//
// Every packet starts with a Header. A request carries an id that its reply repeats. The daemon copies
// a packet before it looks at it and trusts no field. Requests of one connection are answered in order,
// except kPut, which is answered when the block is visible or refused.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::wire {

inline constexpr uint32_t kMagic = 0x43525254;  // "TRRC"
inline constexpr uint16_t kVersionMin = 2;      // oldest protocol this build speaks
inline constexpr uint16_t kVersion = 3;         // 3: regions
inline constexpr size_t kKeyBytes = 32;
inline constexpr uint32_t kMaxKeysPerMessage = 4096;  // 128 KiB: fits Linux's default socket buffer
inline constexpr uint32_t kMaxIdentityBytes = 16384;
inline constexpr size_t kMaxPacketBytes = 160 * 1024;  // the longest legal packet, either direction
inline constexpr uint32_t kSegmentBytes = 64 * 1024;   // bytes under one checksum
inline constexpr uint64_t kMaxBlockBytes = 1ull << 30;

enum class Type : uint16_t {
  kHello = 1,         // Hello -> Welcome. First packet of a connection
  kOpenKeySpace = 2,  // OpenKeySpace + identity bytes -> KeySpaceOpened
  kLookup = 3,        // Lookup + keys -> LookupDone + refs
  kRelease = 4,       // Release -> Status, or nothing with kFlagNoReply
  kGetSegment = 5,    // GetSegment -> SegmentInfo + 2 descriptors (payload, headers), both read-only
  kGetStaging = 6,    // GetStaging -> StagingInfo + 1 descriptor (read-write). Once per connection
  kPut = 7,           // Put + checksums -> PutDone
  kReport = 8,        // Report (client saw a bad block; the daemon checks for itself) -> Status
  kPing = 9,          // empty -> Status
  kLocate = 10,       // Locate + keys -> LookupDone + refs, once the first of them is settled (see there)
  kHint = 11,         // Hint + keys -> Status: retention hints for blocks that are here
  kRegisterRegion = 12,    // RegisterRegion + arrays + descriptors -> RegionRegistered + 1 descriptor. From 3 on
  kUnregisterRegion = 13,  // UnregisterRegion -> Status
  kRegionStore = 14,       // RegionStore + blocks -> RegionDone + reasons, when all are visible or refused
  kRegionLoad = 15,        // RegionLoad + blocks -> RegionDone + reasons, when all are there or have failed
  kSegmentGone = 64,  // daemon -> client, unasked: SegmentGone. Unmap the segment, its memory was given up
};

inline constexpr uint16_t kFlagReply = 1;    // set in every reply
inline constexpr uint16_t kFlagNoReply = 2;  // request: do not answer

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t type;        // Type
  uint16_t flags;       // kFlag*
  uint16_t status;      // replies: canonical status code, 0 = OK
  uint32_t request_id;  // chosen by the client, repeated in the reply
  uint64_t body_bytes;  // bytes behind this header; must match the packet's length
};
static_assert(sizeof(Header) == 24);

// A reply with status != 0 has this body and nothing else, whatever its type.
struct ErrorBody {
  uint32_t reason;  // Reason or 0
  uint32_t text_bytes;
  char text[256];  // not terminated; what is wrong and what to do
};
static_assert(sizeof(ErrorBody) == 264);

struct Hello {
  uint16_t version_min, version_max;  // what the client speaks; the daemon picks the highest common one
  uint32_t pid;                       // informative; the kernel's word counts
  uint64_t features;                  // 0
  char tenant[64];                    // zero-padded
  char token[128];                    // zero-padded
  char client_name[64];               // zero-padded
};
static_assert(sizeof(Hello) == 272);

struct Welcome {
  uint16_t version;   // of this connection
  uint16_t reserved0;
  uint32_t max_keys;  // per kLookup
  uint64_t session_id;
  uint64_t epoch;  // of the daemon process: refs of another epoch are stale
  uint64_t staging_bytes_default, staging_bytes_max;
  uint64_t reserved[3];
};
static_assert(sizeof(Welcome) == 64);

// Identity bytes: for each of the eight texts of terrace_keyspace_desc, in declaration order (model,
// model_fingerprint, kv_dtype, layout, parallel, hash, group, extra): u32 length, then the bytes.
struct OpenKeySpace {
  uint64_t block_bytes;
  uint32_t tokens_per_block;
  uint32_t identity_bytes;  // <= kMaxIdentityBytes
  uint32_t block_class;     // 0 KV, 1 training shard: whose floor of the budget protects it
  uint32_t reserved;
};
static_assert(sizeof(OpenKeySpace) == 24);

struct KeySpaceOpened {
  uint32_t key_space_id;  // valid on every connection of the tenant, for this daemon's epoch
  uint32_t segment_bytes;  // = kSegmentBytes
  uint8_t digest[32];
};
static_assert(sizeof(KeySpaceOpened) == 40);

inline constexpr uint32_t kLookupAll = 1;      // answer for every key, do not stop at the first miss
inline constexpr uint32_t kLookupNoLease = 2;  // only ask
inline constexpr uint32_t kLookupProbe = 4;    // about to store: not counted as hits or misses; no lease
inline constexpr uint32_t kLookupMayWait = 8;  // start loads from lower tiers and answer kPending for them;
                                               // without it such blocks are misses
struct Lookup {
  uint32_t key_space_id;
  uint32_t n_keys;  // 1 .. kMaxKeysPerMessage; n_keys * 32 bytes follow
  uint32_t flags;
  uint32_t recompute_ns_per_token;  // what computing it again costs the asker; 0: it does not say
  uint64_t lease_id;  // 0: a new lease; else add to this one (chains longer than one message)
};
static_assert(sizeof(Lookup) == 24);

// Where a block lies. reason != 0: not here, the other fields are 0, but for kPending: payload_bytes is
// set, the block is on its way from a lower tier under this lease, and Locate tells when it is here.
struct Ref {
  uint32_t segment_id;
  uint32_t header_offset;   // in the segment's header mapping, in units of 64 bytes
  uint64_t payload_offset;  // in the segment's payload mapping, bytes
  uint64_t generation;      // != 0
  uint32_t payload_bytes;
  uint32_t reason;  // Reason; 0 = here
};
static_assert(sizeof(Ref) == 32);

struct LookupDone {
  uint64_t lease_id;  // 0: no lease
  uint32_t n_prefix;  // leading run that is here or pending
  uint32_t n_here;    // here or pending
  uint32_t n_refs;  // prefix mode: n_prefix, or n_prefix + 1 with the first miss's reason; all: n_keys
  uint32_t n_pending;
};
static_assert(sizeof(LookupDone) == 24);

// Where blocks are that some lease of the tenant holds pending: answered as soon as the first key's block
// is here or has failed, or after timeout_us, out of order with other requests. The answer is a LookupDone
// (lease_id 0) with refs of the leading keys that are settled, at least one of them unless the time is up;
// kPending then. No lease comes of it: the one that made the blocks pending keeps them.
struct Locate {
  uint32_t key_space_id;
  uint32_t n_keys;  // 1 .. kMaxKeysPerMessage; n_keys * 32 bytes follow
  uint32_t timeout_us;  // at most kMaxLocateUs
  uint32_t reserved;
};
static_assert(sizeof(Locate) == 16);
inline constexpr uint32_t kMaxLocateUs = 60'000'000;

// What a client knows of blocks' future. All zero: nothing. Durations end at an hour.
struct Retention {
  uint32_t reuse_after_ms;  // expected next use, from now; 0: unknown
  uint32_t pin_ms;          // not to be evicted for so long; counts against the tenant's share of pins
  uint8_t done;             // 1: will not be used again
  uint8_t priority;         // 0 .. 7
  uint16_t reserved;
};
static_assert(sizeof(Retention) == 12);

struct Hint {
  uint32_t key_space_id;
  uint32_t n_keys;  // 1 .. kMaxKeysPerMessage; n_keys * 32 bytes follow, in chain order
  Retention retention;
  uint32_t reserved;
};
static_assert(sizeof(Hint) == 24);

struct Release {
  uint64_t lease_id;
};

struct GetSegment {
  uint32_t segment_id;
  uint32_t reserved;
};
struct SegmentInfo {
  uint32_t segment_id;
  uint32_t reserved;
  uint64_t payload_bytes, header_bytes;  // sizes to map
};
static_assert(sizeof(SegmentInfo) == 24);

struct SegmentGone {
  uint32_t segment_id;
  uint32_t reserved;
};

struct GetStaging {
  uint64_t bytes;  // 0: the daemon's default
};
struct StagingInfo {
  uint64_t bytes;
};

inline constexpr uint32_t kPutHasParent = 1;
struct Put {
  uint32_t key_space_id;
  uint32_t flags;
  uint64_t staging_offset;  // payload lies here in the connection's staging memory; any alignment
  uint64_t payload_bytes;   // must equal the key space's block_bytes
  uint8_t key[32];
  uint8_t parent[32];
  uint32_t n_checksums;  // = ceil(payload_bytes / kSegmentBytes); that many u64 follow, see block_header.h
  Retention retention;
  uint32_t reserved[4];
};
static_assert(sizeof(Put) == 120);

struct PutDone {
  uint32_t reason;  // Reason: 0 visible, kDuplicate, or why it was not stored
  uint32_t reserved;
};

struct Report {
  uint32_t key_space_id;
  uint32_t reserved;
  uint64_t generation;
  uint8_t key[32];
};
static_assert(sizeof(Report) == 48);

}  // namespace terrace::wire
