// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LazyArray: a fixed-length array whose memory the kernel gives page by page when first written. Tables
// are made for the largest number of blocks that can ever be, and cost what they are used for.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <type_traits>

#include "kvstore/base/check.h"

namespace terrace {

// Elements start as all zero bytes. Owner: whoever declares it. Not movable.
template <typename T>
class LazyArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit LazyArray(size_t size) : size_(size) {
    void* memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TERRACE_CHECK(memory != MAP_FAILED);
    data_ = static_cast<T*>(memory);
  }
  ~LazyArray() { munmap(data_, bytes()); }
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;

  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return (size_ == 0 ? 1 : size_) * sizeof(T); }

 private:
  const size_t size_;
  T* data_;
};

}  // namespace terrace
