// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_copy_engine_frames.h"

namespace terrace::gpu {
namespace {

struct Range {
  uint64_t begin = 0, end = 0;
  uint64_t to_device = 0;  // added to an address of this process gives the GPU's (modulo 2^64)
  CUmemorytype type = CU_MEMORYTYPE_HOST;
  bool Has(uint64_t address, uint64_t bytes) const {
    return address >= begin && address < end && bytes <= end - address;
  }
};

// What the driver knows of [address, +bytes): false: nothing, so it is ordinary memory.
bool FindRange(const Driver& driver, uint64_t address, uint64_t bytes, Range* range) {
  unsigned type = 0;
  if (driver.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) != CUDA_SUCCESS) return false;
  range->type = static_cast<CUmemorytype>(type);
  CUdeviceptr start = 0, on_device = 0;
  size_t size = 0;
  if (driver.cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address) == CUDA_SUCCESS &&
      driver.cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, address) == CUDA_SUCCESS) {
    range->begin = start;
    range->end = start + size;
  } else {
    // The driver does not say: this much of it is known, if the end is the same kind of memory.
    unsigned last_type = 0;
    if (driver.cuPointerGetAttribute(&last_type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address + bytes - 1) !=
            CUDA_SUCCESS ||
        last_type != type) {
      return false;
    }
    range->begin = address;
    range->end = address + bytes;
  }
  if (driver.cuPointerGetAttribute(&on_device, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, address) != CUDA_SUCCESS) {
    return false;
  }
  // Of host memory that is mapped elsewhere for the GPU the driver may name the GPU's range.
  if (address < range->begin || address >= range->end) {
    if (on_device < range->begin || on_device >= range->end) return false;
    range->end += address - on_device;
    range->begin += address - on_device;
  }
  range->to_device = on_device - address;
  return range->Has(address, bytes);
}

}  // namespace

absl::StatusOr<FramePlaces> FindFrames(const Driver& driver, CUdevice device, const CopyBatch& batch) {
  const uint64_t bytes = batch.region->page_bytes();
  FramePlaces places;
  places.addresses.reserve(batch.pages.size());
  Range range;
  for (const PageCopy& page : batch.pages) {
    const uint64_t address = reinterpret_cast<uint64_t>(page.frame);
    if (!range.Has(address, bytes)) {
      Range found;
      const bool known = FindRange(driver, address, bytes, &found);
      if (known && (found.type == CU_MEMORYTYPE_DEVICE) != batch.frames_on_device) {
        return absl::InvalidArgumentError(batch.frames_on_device ? "a frame in host memory, not the GPU's"
                                                                 : "a frame in the GPU's memory, not the host's");
      }
      if (!known) {
        if (batch.frames_on_device) return absl::InvalidArgumentError("a frame that is not the GPU's memory");
        places.bounced = true;
        places.addresses.clear();
        continue;
      }
      int owner = device;
      if (batch.frames_on_device &&
          driver.cuPointerGetAttribute(&owner, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address) == CUDA_SUCCESS &&
          owner != device) {
        return absl::InvalidArgumentError("a frame that is another GPU's memory");
      }
      range = found;
    }
    if (!places.bounced) places.addresses.push_back(address + range.to_device);
  }
  return places;
}

}  // namespace terrace::gpu
