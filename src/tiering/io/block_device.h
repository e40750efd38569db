// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockDevice seam: aligned reads and writes of one file or raw device, submitted and polled. The
// product's implementations are io_uring and POSIX threads; tests decorate them with faults or run on
// memory and virtual time. Knows offsets, not blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace terrace::tiering {

inline constexpr uint64_t kIoAlign = 4096;  // of offsets, lengths and addresses

enum class IoOp : uint8_t {
  kRead,
  kWrite,
  kSync,  // what was completed before it was submitted survives a power loss; offset and buffer unused
};

struct IoRequest {
  IoOp op = IoOp::kRead;
  uint64_t offset = 0;
  std::span<std::byte> buffer;  // stays valid until its result was polled
  uint64_t tag = 0;             // the caller's; comes back in the result
};

struct IoResult {
  uint64_t tag = 0;
  int error = 0;  // errno; a transfer that ends short is continued, at the end of the file it is EIO
};

// Owner: the store of this device. Threads: one at a time (the owner's), but for Wake.
// Limits: depth requests in flight. Failure: errno in the result; a request may never complete.
// The destructor waits until nothing in flight can touch a buffer any more: as long as the disk takes. Who
// cannot wait for a hung disk polls until its requests are back, and past its deadline leaves the device
// and its buffers where they are.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;
  virtual uint64_t bytes() const = 0;  // multiple of kIoAlign; constant
  virtual uint32_t depth() const = 0;
  virtual std::string_view backend() const = 0;  // "io_uring", "posix", ...
  // Memory that most requests will use; pins it where the machine allows. At most once, before Submit.
  virtual void RegisterBuffers(std::span<std::byte> memory) = 0;
  // False: depth requests are in flight. Requests may finish in any order.
  virtual bool Submit(const IoRequest& request) = 0;
  // Hands what was submitted to the kernel, then waits up to wait_ns (0: not at all) for the first
  // result or a Wake. Returns how many results were written; may come back early with none.
  virtual size_t Poll(std::span<IoResult> results, int64_t wait_ns) = 0;
  // False: the file was removed or replaced, or its file system unmounted, under its name; what is written to
  // it now is gone at the end. Looks at names only, never waits for the disk.
  virtual bool IsInPlace() const { return true; }
  // Removes the file if this opening made it: for a start that fails. False: it was there before.
  virtual bool RemoveIfNew() { return false; }
  // Any thread, any number of times: a Poll that waits, or the next one, returns at once.
  virtual void Wake() = 0;
};

struct BlockDeviceOptions {
  std::string path;    // a regular file (made and preallocated when missing) or a block device
  uint64_t bytes = 0;  // multiple of kIoAlign; of a block device 0 means all of it
  uint32_t depth = 64;
  enum class Backend { kAuto, kIoUring, kPosix } backend = Backend::kAuto;  // kAuto: io_uring where allowed
  bool direct = true;  // O_DIRECT; where the file system has none it goes without and says so once
  // Asked with the first MiB (or less) of an existing file that is not empty, before anything of it is
  // changed. False: it is somebody else's and stays as it is. None: any file will do.
  std::function<bool(std::span<const std::byte> head)> is_ours;
};

// Opens and locks it (one daemon a file; the error names the holder's pid), makes a file as large as
// bytes with all its space reserved. An existing file of ours of another size is extended or cut to bytes.
// ResourceExhausted: no space. FailedPrecondition: locked, or not a file or device of ours to use.
// Unavailable: it cannot be opened now (missing directory, read-only, I/O error).
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBlockDevice(const BlockDeviceOptions& options);

// How an NvmeTier gets its devices; tests put theirs in.
using BlockDeviceFactory =
    std::function<absl::StatusOr<std::unique_ptr<BlockDevice>>(const BlockDeviceOptions& options)>;

}  // namespace terrace::tiering
