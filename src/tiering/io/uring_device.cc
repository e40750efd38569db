// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/io/uring_device.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"

namespace terrace::tiering {
namespace {

constexpr uint64_t kWakeTag = ~0ull;              // user_data of the read that waits for Wake
constexpr uint64_t kMaxRegisteredPiece = 1 << 30;  // the kernel's limit for one registered buffer
constexpr int kMaxRetries = 100;                  // of EAGAIN and EINTR, a request

// What io_uring lacks here and how to mend it.
absl::Status Refused(int error) {
  std::string fix = "it needs Linux 5.11 or newer";
  if (error == EPERM) fix = "sysctl kernel.io_uring_disabled=0, or allow io_uring_setup in the seccomp profile";
  if (error == ENOMEM) fix = "LimitMEMLOCK=infinity in the unit";
  return absl::UnavailableError(absl::StrCat("io_uring: ", std::strerror(error), "; ", fix));
}

// Owner and threads: as BlockDevice; slots_ and ring_ are the owner's thread's, Wake touches the event
// descriptor and is_woken_ only. Limits: depth requests; the ring has one entry more, for the wake-up.
class UringDevice final : public BlockDevice {
 public:
  explicit UringDevice(uint32_t depth) : depth_(depth), slots_(depth) {}
  ~UringDevice() override;
  int Start(DeviceFile* file);  // errno; takes the file only on success

  uint64_t bytes() const override { return file_.bytes(); }
  uint32_t depth() const override { return depth_; }
  std::string_view backend() const override { return file_.is_direct() ? "io_uring" : "io_uring, buffered"; }
  void RegisterBuffers(std::span<std::byte> memory) override;
  bool Submit(const IoRequest& request) override;
  size_t Poll(std::span<IoResult> results, int64_t wait_ns) override;
  bool IsInPlace() const override { return file_.IsInPlace(); }
  bool RemoveIfNew() override { return file_.RemoveIfNew(); }
  void Wake() override;

 private:
  struct Slot {
    IoRequest request;
    size_t done = 0;  // bytes transferred
    int retries = 0;
  };
  // Index of the registered piece that holds all of it, -1 when none does.
  int RegisteredPiece(std::span<const std::byte> buffer) const;
  void Prepare(uint32_t index);  // (the rest of) a slot's request into the ring
  void PrepareWake();
  bool Finish(uint32_t index, int result, int* error);  // false: goes on
  size_t Reap(std::span<IoResult> results, bool* was_woken);

  const uint32_t depth_;
  io_uring ring_{};
  bool has_ring_ = false;
  bool has_file_ = false;  // the file is number 0 of the ring's
  DeviceFile file_;
  int event_fd_ = -1;
  uint64_t event_count_ = 0;  // the kernel writes it
  std::atomic<bool> is_woken_{false};
  bool is_wake_armed_ = false;  // its read is in the ring
  bool is_closing_ = false;
  std::vector<std::span<std::byte>> registered_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
};

int UringDevice::Start(DeviceFile* file) {
  event_fd_ = eventfd(0, EFD_CLOEXEC);
  if (event_fd_ < 0) return errno;
  io_uring_params params{};
  params.flags = IORING_SETUP_CLAMP;
  const int result = io_uring_queue_init_params(depth_ + 1, &ring_, &params);
  if (result != 0) return -result;
  has_ring_ = true;
  constexpr uint32_t kNeeded = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_FAST_POLL;
  if ((params.features & kNeeded) != kNeeded || params.sq_entries < depth_ + 1) return ENOSYS;
  for (uint32_t i = depth_; i > 0; --i) free_slots_.push_back(i - 1);
  file_ = std::move(*file);
  const int fd = file_.fd();
  has_file_ = io_uring_register_files(&ring_, &fd, 1) == 0;
  PrepareWake();
  return 0;
}

UringDevice::~UringDevice() {
  if (has_ring_) {
    if (file_.fd() < 0) free_slots_.resize(slots_.size());  // never started
    // Nothing may write into the callers' memory, or ours, after this.
    IoResult results[64];
    is_closing_ = true;
    if (is_wake_armed_) Wake();
    while (is_wake_armed_ || free_slots_.size() < slots_.size()) Poll(results, 1'000'000'000);
    if (has_file_) io_uring_unregister_files(&ring_);
    io_uring_queue_exit(&ring_);
  }
  if (event_fd_ >= 0) close(event_fd_);
}

void UringDevice::RegisterBuffers(std::span<std::byte> memory) {
  TERRACE_CHECK(registered_.empty());
  std::vector<iovec> pieces;
  for (size_t at = 0; at < memory.size(); at += kMaxRegisteredPiece) {
    pieces.push_back({memory.data() + at, std::min<size_t>(kMaxRegisteredPiece, memory.size() - at)});
  }
  const int result = io_uring_register_buffers(&ring_, pieces.data(), static_cast<unsigned>(pieces.size()));
  if (result == 0) {
    for (const iovec& piece : pieces) registered_.push_back({static_cast<std::byte*>(piece.iov_base), piece.iov_len});
    return;
  }
  static std::atomic<bool> was_said{false};
  if (!was_said.exchange(true)) {
    Log(LogLevel::kWarning, "nvme_buffers_not_registered",
        {{"bytes", memory.size()}, {"error", std::strerror(-result)},
         {"fix", "LimitMEMLOCK=infinity in the unit (ulimit -l unlimited); until then each request pins its pages"}});
  }
}

int UringDevice::RegisteredPiece(std::span<const std::byte> buffer) const {
  for (size_t i = 0; i < registered_.size(); ++i) {
    const std::span<std::byte> piece = registered_[i];
    if (buffer.data() >= piece.data() && buffer.data() + buffer.size() <= piece.data() + piece.size()) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

bool UringDevice::Submit(const IoRequest& request) {
  if (free_slots_.empty()) return false;
  const uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  slots_[index] = {.request = request};
  Prepare(index);
  return true;
}

void UringDevice::Prepare(uint32_t index) {
  const Slot& slot = slots_[index];
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
  TERRACE_CHECK(sqe != nullptr);  // the ring has an entry for every slot
  const int fd = has_file_ ? 0 : file_.fd();
  const std::span<std::byte> rest = slot.request.buffer.subspan(slot.done);
  const uint64_t offset = slot.request.offset + slot.done;
  const auto length = static_cast<unsigned>(rest.size());
  const int piece = slot.request.op == IoOp::kSync ? -1 : RegisteredPiece(rest);
  switch (slot.request.op) {
    case IoOp::kRead:
      if (piece >= 0) io_uring_prep_read_fixed(sqe, fd, rest.data(), length, offset, piece);
      else io_uring_prep_read(sqe, fd, rest.data(), length, offset);
      break;
    case IoOp::kWrite:
      if (piece >= 0) io_uring_prep_write_fixed(sqe, fd, rest.data(), length, offset, piece);
      else io_uring_prep_write(sqe, fd, rest.data(), length, offset);
      break;
    case IoOp::kSync:
      io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
      break;
  }
  if (has_file_) sqe->flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_data64(sqe, index);
}

void UringDevice::PrepareWake() {
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
  TERRACE_CHECK(sqe != nullptr);
  io_uring_prep_read(sqe, event_fd_, &event_count_, sizeof(event_count_), 0);
  io_uring_sqe_set_data64(sqe, kWakeTag);
  is_wake_armed_ = true;
}

bool UringDevice::Finish(uint32_t index, int result, int* error) {
  Slot& slot = slots_[index];
  if ((result == -EAGAIN || result == -EINTR) && ++slot.retries < kMaxRetries) {
    Prepare(index);
    return false;
  }
  *error = result < 0 ? -result : 0;
  if (result >= 0 && slot.request.op != IoOp::kSync) {
    // A transfer goes on where it stopped, at a boundary; one that gets nowhere met the end of the file.
    const auto n = static_cast<size_t>(result);
    const size_t left = slot.request.buffer.size() - slot.done;
    const size_t whole = n == left ? left : n / kIoAlign * kIoAlign;
    slot.done += whole;
    if (whole > 0 && whole < left) {
      Prepare(index);
      return false;
    }
    if (whole < left) *error = EIO;
  }
  free_slots_.push_back(index);
  return true;
}

size_t UringDevice::Reap(std::span<IoResult> results, bool* was_woken) {
  size_t n = 0;
  io_uring_cqe* cqe = nullptr;
  while (n < results.size() && io_uring_peek_cqe(&ring_, &cqe) == 0) {
    const uint64_t tag = io_uring_cqe_get_data64(cqe);
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (tag == kWakeTag) {
      is_woken_.exchange(false);
      is_wake_armed_ = false;
      if (!is_closing_) PrepareWake();
      *was_woken = true;
      continue;
    }
    const auto index = static_cast<uint32_t>(tag);
    int error = 0;
    if (Finish(index, result, &error)) results[n++] = {slots_[index].request.tag, error};
  }
  return n;
}

size_t UringDevice::Poll(std::span<IoResult> results, int64_t wait_ns) {
  bool was_woken = false;
  size_t n = Reap(results, &was_woken);
  if (n > 0 || was_woken || wait_ns <= 0) {
    io_uring_submit(&ring_);  // what it does not take now it takes next time
    if (n == 0) n = Reap(results, &was_woken);
  } else {
    __kernel_timespec timeout = {wait_ns / 1'000'000'000, wait_ns % 1'000'000'000};
    io_uring_cqe* cqe = nullptr;
    io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
    n = Reap(results, &was_woken);
  }
  if (io_uring_sq_ready(&ring_) > 0) io_uring_submit(&ring_);  // the rest of short transfers
  return n;
}

void UringDevice::Wake() {
  if (is_woken_.exchange(true)) return;  // the event is on its way already
  const uint64_t one = 1;
  if (write(event_fd_, &one, sizeof(one)) != sizeof(one)) is_woken_.store(false);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> MakeUringDevice(DeviceFile* file, uint32_t depth) {
  auto device = std::make_unique<UringDevice>(depth);
  if (const int error = device->Start(file); error != 0) return Refused(error);
  return std::unique_ptr<BlockDevice>(std::move(device));
}

}  // namespace terrace::tiering
