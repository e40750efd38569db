// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// How often a test repeats itself. Under a sanitizer everything takes ten times as long, and what it looks for shows
// in a few repetitions of each case; the whole counts are those of the release build.
#pragma once

namespace terrace::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

template <typename T>
constexpr T Trials(T whole, T sanitized) {
  return kSanitized ? sanitized : whole;
}

}  // namespace terrace::testing
