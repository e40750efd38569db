// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Ref: what the 48 opaque bytes of a terrace_ref hold. They may come back damaged or made up, hence a
// check value; it guards against accidents only. Wrong bytes are kept out by the block's header.
#pragma once

#include <cstdint>
#include <cstring>

#include "api/client/terrace.h"
#include "api/engine/wire.h"
#include "kvstore/base/reason.h"

namespace terrace::client {

// A plain value.
struct Ref {
  wire::Ref place;
  uint64_t epoch;  // of the daemon that gave it
};

// A sum of independent products: about 2 ns, so that 1,000 refs of a lookup cost 2 us. The factors are
// odd: a difference in a single word, above all a flipped bit, always shows.
inline uint64_t RefCheckValue(const Ref& ref) {
  uint64_t words[5];
  static_assert(sizeof(Ref) == sizeof(words));
  std::memcpy(words, &ref, sizeof(ref));
  return 0x7465727261636531 +  // "terrace1": a ref of zeros does not pass
         words[0] * 0x9e3779b97f4a7c15 + words[1] * 0xbf58476d1ce4e5b9 +
         words[2] * 0x94d049bb133111eb + words[3] * 0xd6e8feb86659fd93 +
         words[4] * 0xa0761d6478bd642f;
}

inline terrace_ref EncodeRef(const Ref& ref) {
  terrace_ref out;
  static_assert(sizeof(Ref) + sizeof(uint64_t) == TERRACE_REF_BYTES);
  const uint64_t check = RefCheckValue(ref);
  std::memcpy(out.opaque, &ref, sizeof(ref));
  std::memcpy(out.opaque + sizeof(ref), &check, sizeof(check));
  return out;
}

// The block is on its way from a lower tier: the ref has its length, but no place yet.
inline bool IsPending(const Ref& ref) {
  return ref.place.reason == static_cast<uint32_t>(Reason::kPending);
}

// False: these bytes were never a ref.
inline bool DecodeRef(const terrace_ref& in, Ref* ref) {
  uint64_t check;
  std::memcpy(ref, in.opaque, sizeof(*ref));
  std::memcpy(&check, in.opaque + sizeof(*ref), sizeof(check));
  if (check != RefCheckValue(*ref)) return false;
  return IsPending(*ref) || (ref->place.reason == 0 && ref->place.generation != 0);
}

}  // namespace terrace::client
