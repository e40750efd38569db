// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/stream_copier.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "api/client/store_op.h"

namespace terrace::client {
namespace {

// Looking costs a microsecond; a copy of a buffer takes about 100, a long prefill before it
// seconds.
constexpr auto kShortPause = std::chrono::microseconds(50);
constexpr auto kLongPause = std::chrono::microseconds(1000);
constexpr int kShortPauses = 40;
constexpr int64_t kStopNs = 2'000'000'000;

Reason ReasonOf(const Result& refused) {
  return refused.code == TERRACE_FAILED_PRECONDITION ? Reason::kCancelled : Reason::kUnavailable;
}

}  // namespace

Result StreamCopier::Submit(std::shared_ptr<DeviceOp> op) {
  {
    std::lock_guard lock(mu_);
    Result refused;
    if (stopping_) refused = client::Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (unfinished_ >= kMaxQueued) {
      refused =
          client::Fail(TERRACE_RESOURCE_EXHAUSTED,
                       "%zu copies wait for the GPU already; wait for some of them", unfinished_);
    }
    if (refused.ok() && !thread_.started() && !thread_.Start("terrace-gpu", [this] { Run(); })) {
      refused = client::Fail(TERRACE_RESOURCE_EXHAUSTED,
                             "no thread can be started; raise the process limit");
    }
    if (!refused.ok()) {
      op->device()->GiveBackMark(op->mark());
      return refused;
    }
    if (!op->Begin()) return {};  // it has ended
    queue_.push_back(std::move(op));
    ++unfinished_;
  }
  changed_.notify_one();
  return {};
}

void StreamCopier::Stop() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.Join();
}

void StreamCopier::Run() {
  int quiet = 0;
  Deadline stop_by{};
  for (;;) {
    bool happened = TakeNew();
    if (stopping_) {
      if (stop_by.at_ns == 0) stop_by = Deadline::AfterNs(kStopNs);
      for (const auto& op : ops_) op->EndRest(Reason::kCancelled);
    }
    for (const bool loads : {true, false}) {  // an engine waits for loads
      for (const auto& op : ops_) {
        if (op->is_load() == loads) happened |= StartChunks(op);
      }
    }
    for (auto chunk = chunks_.begin(); chunk != chunks_.end();) {
      happened |= Advance(&*chunk);
      chunk = chunk->state == Chunk::State::kEnded ? chunks_.erase(chunk) : std::next(chunk);
    }
    size_t finished = 0;
    for (auto op = ops_.begin(); op != ops_.end();) {
      const bool done = (*op)->done();
      finished += done ? 1 : 0;
      op = done ? ops_.erase(op) : std::next(op);
    }
    quiet = happened ? 0 : quiet + 1;
    std::unique_lock lock(mu_);
    unfinished_ -= finished;
    if (stopping_ && queue_.empty() && (ops_.empty() || (stop_by.at_ns != 0 && stop_by.Passed())))
      break;
    if (ops_.empty()) {
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    } else if (!happened) {
      changed_.wait_for(lock, quiet <= kShortPauses ? kShortPause : kLongPause);
    }
  }
  // The GPU did not end its copies: their buffers stay taken for good.
  for (Chunk& chunk : chunks_) {
    chunk.op->EndBlocks(chunk.begin, std::vector<Reason>(chunk.count, Reason::kCancelled));
  }
  chunks_.clear();
  ops_.clear();
}

bool StreamCopier::TakeNew() {
  std::lock_guard lock(mu_);
  if (queue_.empty()) return false;
  for (auto& op : queue_) ops_.push_back(std::move(op));
  queue_.clear();
  return true;
}

bool StreamCopier::StartChunks(const std::shared_ptr<DeviceOp>& op) {
  bool any = false;
  for (; op->next < op->n(); any = true) {
    if (op->abandoned()) {
      op->EndRest(Reason::kCancelled);
      return true;
    }
    uint32_t blocks = 0;
    if (Result prepared = op->device()->Prepare(op->work.key_space->block_bytes(), &blocks);
        !prepared.ok()) {
      op->EndRest(Reason::kUnavailable);
      return true;
    }
    DevicePages::Buffer* const buffer = op->device()->TakeBuffer(/*leave=*/1);
    const bool other_way_idle =
        std::none_of(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) {
          return chunk.op->device() == op->device() && chunk.op->is_load() == op->is_load();
        });
    DevicePages::Buffer* const last =
        buffer == nullptr && other_way_idle ? op->device()->TakeBuffer(/*leave=*/0) : buffer;
    if (last == nullptr) break;
    Chunk& chunk = chunks_.emplace_back();
    chunk.op = op;
    chunk.begin = op->next;
    chunk.count = std::min(blocks, op->n() - op->next);
    chunk.buffer = last;
    op->next += chunk.count;
    StartChunk(&chunk);
  }
  return any;
}

void StreamCopier::StartChunk(Chunk* chunk) {
  chunk->reasons.assign(chunk->count, Reason::kNone);
  if (chunk->op->is_load()) {
    chunk->state = Chunk::State::kToLoad;
  } else {
    chunk->state = Chunk::State::kFromDevice;
    CopyAll(chunk, DevicePages::Way::kFromDevice);
  }
}

// Copies the blocks that have no reason yet. A chunk of which something was enqueued has its event
// recorded.
void StreamCopier::CopyAll(Chunk* chunk, DevicePages::Way way) {
  DevicePages& device = *chunk->op->device();
  Result copied = device.Begin(chunk->op->mark());
  std::vector<Piece> pieces;
  const uint64_t block_bytes = chunk->op->work.key_space->block_bytes();
  for (uint32_t k = 0; k < chunk->count && copied.ok(); ++k) {
    if (chunk->reasons[k] != Reason::kNone) continue;
    chunk->op->work.memory.GetPieces(chunk->begin + k, &pieces);
    copied = device.Copy(way, pieces, chunk->buffer->data + k * block_bytes);
  }
  if (!copied.ok()) Fail(chunk, Reason::kUnavailable);
  if (device.End(chunk->buffer).ok()) return;
  // Whatever runs there still cannot be waited for: the buffer stays taken for good.
  Fail(chunk, Reason::kUnavailable);
  chunk->buffer = nullptr;
  EndChunk(chunk);
}

void StreamCopier::Fail(Chunk* chunk, Reason reason) {
  for (Reason& each : chunk->reasons) {
    if (each == Reason::kNone) each = reason;
  }
}

bool StreamCopier::GpuIsDone(Chunk* chunk) {
  bool done = false;
  const Result polled = chunk->op->device()->Poll(chunk->buffer, &done);
  if (!polled.ok()) {
    Fail(chunk, Reason::kUnavailable);
    chunk->buffer = nullptr;
    return true;
  }
  return done;
}

// One step; false: it has to wait for somebody.
bool StreamCopier::Advance(Chunk* chunk) {
  using State = Chunk::State;
  const bool given_up = stopping_ || chunk->op->abandoned();
  switch (chunk->state) {
    case State::kFromDevice:
      if (!GpuIsDone(chunk)) return false;
      chunk->op->NoteRead(chunk->count);
      if (given_up) Fail(chunk, Reason::kCancelled);
      chunk->state = State::kToStore;
      if (chunk->reasons[0] != Reason::kNone) EndChunk(chunk);
      return true;
    case State::kToStore:
    case State::kToLoad: {
      const bool store = chunk->state == State::kToStore;
      if (given_up) Fail(chunk, Reason::kCancelled);
      const Result submitted = given_up ? Result{} : store ? SubmitStore(chunk) : SubmitLoad(chunk);
      if (submitted.code == TERRACE_RESOURCE_EXHAUSTED) return false;  // the next round tries again
      if (!submitted.ok()) Fail(chunk, ReasonOf(submitted));
      chunk->state = store ? State::kStoring : State::kLoading;
      if (chunk->inner == nullptr) EndChunk(chunk);
      return true;
    }
    case State::kStoring:
    case State::kLoading:
      if (given_up) chunk->inner->Abandon();  // waits for the copying of one block at most
      if (given_up && !chunk->inner->done()) {
        Fail(chunk, Reason::kCancelled);
        EndChunk(chunk);
        return true;
      }
      return TakeInner(chunk);
    case State::kToDevice:
      if (!GpuIsDone(chunk)) return false;
      EndChunk(chunk);
      return true;
    case State::kEnded:
      break;
  }
  return false;
}

// The chunk's keys, and its buffer as the blocks' memory.
Result StreamCopier::PlaceInBuffer(const Chunk& chunk, Op::Work* work) {
  const auto first = chunk.op->work.keys.begin() + chunk.begin;
  const uint64_t block_bytes = work->key_space->block_bytes();
  work->keys.assign(first, first + chunk.count);
  const std::vector<uint32_t> counts(chunk.count, 1);
  std::vector<terrace_piece> pieces;
  for (uint32_t k = 0; k < chunk.count; ++k)
    pieces.push_back({chunk.buffer->data + k * block_bytes, block_bytes});
  return BlockMemory::FromPieces(pieces.data(), counts.data(), chunk.count, block_bytes,
                                 &work->memory);
}

Result StreamCopier::SubmitStore(Chunk* chunk) {
  const DeviceOp& op = *chunk->op;
  Op::Work work{.key_space = op.work.key_space, .opened = op.work.opened, .stats = inner_stats_};
  if (Result placed = PlaceInBuffer(*chunk, &work); !placed.ok()) return placed;
  std::optional<KeyBytes> parent = op.options.parent;
  if (chunk->begin > 0 && !op.options.independent) parent = op.work.keys[chunk->begin - 1];
  auto store = std::make_shared<StoreOp>(std::move(work), parent, op.options.independent,
                                         op.options.retention);
  Result submitted = stores_->Submit(store);
  if (submitted.ok()) chunk->inner = std::move(store);
  return submitted;
}

Result StreamCopier::SubmitLoad(Chunk* chunk) {
  const DeviceOp& op = *chunk->op;
  std::shared_ptr<Connection> connection;
  if (Result usable = link_->Use(&connection); !usable.ok()) return usable;
  if (connection->welcome().epoch != op.work.opened.epoch) {
    return client::Fail(TERRACE_UNAVAILABLE, "the daemon was restarted");
  }
  Op::Work work{.key_space = op.work.key_space, .opened = op.work.opened, .stats = inner_stats_};
  if (Result placed = PlaceInBuffer(*chunk, &work); !placed.ok()) return placed;
  auto load = std::make_shared<LoadOp>(std::move(work), op.refs().data() + chunk->begin,
                                       std::move(connection), link_->segments(),
                                       link_->request_timeout_ms());
  if (!load->pending().empty()) {
    if (Result queued = locator_->Submit(load); !queued.ok()) return queued;
  }
  if (Result queued = copies_->Submit(load); !queued.ok()) {
    load->Abandon();
    return queued;
  }
  chunk->inner = std::move(load);
  return {};
}

bool StreamCopier::TakeInner(Chunk* chunk) {
  if (!chunk->inner->done()) return false;
  for (uint32_t k = 0; k < chunk->count; ++k) {
    chunk->reasons[k] = static_cast<Reason>(chunk->inner->reasons()[k]);
  }
  if (!chunk->op->is_load()) {
    EndChunk(chunk);
    return true;
  }
  chunk->state = Chunk::State::kToDevice;
  CopyAll(chunk, DevicePages::Way::kToDevice);
  return true;
}

void StreamCopier::EndChunk(Chunk* chunk) {
  chunk->state = Chunk::State::kEnded;
  if (chunk->buffer != nullptr)
    chunk->op->device()->GiveBackBuffer(std::exchange(chunk->buffer, nullptr));
  chunk->op->EndBlocks(chunk->begin, chunk->reasons);
}

}  // namespace terrace::client
