// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/region_link.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace terrace::client {
namespace {

constexpr int64_t kFirstRetryNs = 20'000'000;
constexpr int64_t kLongestRetryNs = 200'000'000;  // nobody connects while the client has no daemon
constexpr int64_t kBusyPauseNs = 5'000'000;       // the daemon has too much to do
constexpr int64_t kLongestSleepNs = 100'000'000;  // operations that were freed are noticed
// A connection that is broken is looked at so often for its end, which wakes only who receives.
constexpr int64_t kEndPollNs = 2'000'000;
// A daemon is silent for two of these before it is given up: one to be asked, one to answer.
constexpr int64_t kShortestSilenceNs = 2'000'000'000;
// An operation that is not answered so long after its own time limit: the answer was lost.
constexpr int64_t kLostAnswerNs = 60'000'000'000;
constexpr int64_t kStopNs = 2'000'000'000;
// A process that died closes its sockets before the driver has taken its GPU memory down.
constexpr int64_t kDeviceQuietNs = 500'000'000;

}  // namespace

Result RegionLink::Add(const std::shared_ptr<Region>& region, Deadline deadline) {
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (!thread_.started() &&
        (wake_->fd() < 0 || !thread_.Start("terrace-region", [this] { Run(); }))) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED,
                  "no thread or descriptor is left; raise the process limits");
    }
    added_.push_back(region);
  }
  wake_->Wake();
  region->WaitFirstAttempt(deadline);
  return {};
}

void RegionLink::Remove(const std::shared_ptr<Region>& region, Deadline deadline) {
  std::unique_lock lock(mu_);
  if (stopping_) return;
  std::erase(added_, region);
  removed_.push_back(region);
  wake_->Wake();
  changed_.wait_until(lock, deadline.AsTimePoint(), [&] {
    return stopping_ || std::find(removed_.begin(), removed_.end(), region) == removed_.end();
  });
}

Result RegionLink::Submit(std::shared_ptr<RegionOp> op) {
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (unfinished_ >= kMaxQueued) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED,
                  "%zu operations wait for the daemon already; wait for some of them", unfinished_);
    }
    if (!op->Begin()) return {};  // it has ended
    queue_.push_back(std::move(op));
    ++unfinished_;
  }
  wake_->Wake();
  return {};
}

void RegionLink::Stop() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
    if (breakable_ != nullptr) breakable_->Break();
    changed_.notify_all();
  }
  wake_->Wake();
  thread_.Join();
}

void RegionLink::Run() {
  while (!stopping_) {
    TakeNew();
    Maintain();
    const bool sent = SendAll();
    const bool collected = CollectAnswers();
    WatchDaemon();
    if (!sent && !collected) Sleep();
  }
  TakeNew();
  if (connection_ != nullptr) connection_->Break();
  const Deadline deadline = Deadline::AfterNs(kStopNs);
  while (connection_ != nullptr && in_flight_ > 0 && !deadline.Passed()) {
    Finish();
    if (connection_ != nullptr) Sleep();
  }
  EndAll(Reason::kCancelled);
  for (const auto& region : regions_) region->SetClosed("the client is closed");
  if (daemon_fd_ >= 0) close(std::exchange(daemon_fd_, -1));
  std::lock_guard lock(mu_);
  connection_.reset();
  breakable_.reset();
}

void RegionLink::TakeNew() {
  std::vector<std::shared_ptr<Region>> added, removed;
  {
    std::lock_guard lock(mu_);
    added.swap(added_);
    removed = removed_;
    for (auto& op : queue_) ops_.push_back(std::move(op));
    queue_.clear();
  }
  for (auto& region : added) {
    regions_.push_back(region);
    untried_.push_back(std::move(region));
    retry_at_ns_ = 0;
  }
  if (removed.empty()) return;
  for (const auto& region : removed) {
    std::erase(regions_, region);
    std::erase(untried_, region);
    Unregister(region);
  }
  std::lock_guard lock(mu_);
  for (const auto& region : removed) std::erase(removed_, region);
  changed_.notify_all();
}

void RegionLink::Maintain() {
  if (connection_ != nullptr && connection_->broken()) {
    GiveUp("the connection to the daemon is gone");
    Finish();
  }
  if (connection_ == nullptr && !regions_.empty() && NowNs() >= retry_at_ns_) Connect();
  while (!untried_.empty() && connection_ != nullptr && !connection_->broken() && !stopping_) {
    const std::shared_ptr<Region> region = untried_.back();
    untried_.pop_back();
    Register(region);
  }
}

void RegionLink::Connect() {
  retry_ns_ = std::clamp(retry_ns_ * 2, kFirstRetryNs, kLongestRetryNs);
  retry_at_ns_ = NowNs() + retry_ns_;
  std::shared_ptr<Connection> control;
  Result usable = link_->Use(&control);
  std::string why = usable.text;
  if (usable.ok() && control->welcome().epoch == refused_epoch_) {
    usable.code = TERRACE_UNAVAILABLE;
    why = why_down_;
  }
  if (usable.ok()) {
    Connection::Options options = link_->ConnectionOptions();
    options.watch_end = true;
    auto connection = std::make_shared<Connection>(std::move(options));
    {
      std::lock_guard lock(mu_);
      if (stopping_) return;
      breakable_ = connection;
    }
    usable = connection->Open(Deadline::AfterMs(link_->request_timeout_ms()));
    why = usable.text;
    if (usable.ok() && connection->welcome().version < 3) {
      usable.code = TERRACE_UNAVAILABLE;
      refused_epoch_ = connection->welcome().epoch;
      why_down_ = why = "the daemon speaks protocol " +
                        std::to_string(connection->welcome().version) +
                        ", which knows no regions: install the same release";
    }
    if (usable.ok()) {
      connection_ = std::move(connection);
      const int pid = connection_->PeerPid();
      daemon_fd_ = pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1;
      ++connection_number_;
      last_sign_ns_ = NowNs();
      pinged_at_ns_ = ended_at_ns_ = 0;
      opened_here_.clear();
      untried_ = regions_;
      return;
    }
    connection->Break();
  }
  for (const auto& region : regions_) region->SetClosed(why);
}

void RegionLink::Register(const std::shared_ptr<Region>& region) {
  class RegisterRequest : public Request {
   public:
    RegisterRequest(uint64_t epoch, uint64_t connection) : epoch_(epoch), connection_(connection) {}
    std::shared_ptr<OpenRegion> opened;

   private:
    Result OnReply(Reply& reply) override {
      wire::RegionRegistered registered;
      const OwnedFd fd(reply.descriptors->Take(0));
      if (!reply.Read(&registered) || fd.get() < 0) {
        return Fail(TERRACE_INTERNAL, "the daemon's answer to a region has the wrong form");
      }
      return OpenRegion::Map(fd.get(), epoch_, connection_, registered.region_id, &opened);
    }
    const uint64_t epoch_, connection_;
  };
  const Region::Source& source = region->source();
  wire::RegisterRegion message{};
  std::copy(source.device_uuid.begin(), source.device_uuid.end(), message.device_uuid);
  message.n_pages = source.n_pages;
  message.n_allocations = static_cast<uint32_t>(source.allocations.size());
  message.n_planes = static_cast<uint32_t>(source.planes.size());
  message.n_events = static_cast<uint32_t>(source.events.size());
  std::vector<wire::RegionAllocation> allocations;
  std::vector<int> descriptors;
  for (const Region::Allocation& allocation : source.allocations) {
    allocations.push_back(allocation.said);
    if (allocation.fd.get() >= 0) descriptors.push_back(allocation.fd.get());
  }
  const size_t allocation_bytes = allocations.size() * sizeof(wire::RegionAllocation);
  const size_t plane_bytes = source.planes.size() * sizeof(wire::RegionPlane);
  const size_t event_bytes = source.events.size() * sizeof(source.events[0]);
  if (sizeof(wire::Header) + sizeof(message) + allocation_bytes + plane_bytes + event_bytes >
          wire::kMaxPacketBytes ||
      allocations.size() > wire::kMaxRegionAllocations ||
      descriptors.size() > wire::kMaxRegionFds) {
    region->SetClosed("the pages lie in too many pieces (" + std::to_string(allocations.size()) +
                      " allocations, " + std::to_string(source.planes.size()) +
                      " planes) to be opened by the daemon");
    return;
  }
  RegisterRequest request(connection_->welcome().epoch, connection_number_);
  const Result registered =
      connection_->Call(wire::Type::kRegisterRegion,
                        {{&message, sizeof(message)},
                         {allocations.data(), allocation_bytes},
                         {const_cast<wire::RegionPlane*>(source.planes.data()), plane_bytes},
                         {const_cast<std::array<uint8_t, 64>*>(source.events.data()), event_bytes}},
                        &request, Deadline::AfterMs(link_->request_timeout_ms()), descriptors);
  if (registered.ok()) {
    last_sign_ns_ = NowNs();
    retry_ns_ = 0;
    region->SetOpened(std::move(request.opened));
    return;
  }
  region->SetClosed(registered.text);
  // A late answer would leave it open there: end the connection, which closes it.
  if (!request.done() && !stopping_) GiveUp(registered.text);
}

void RegionLink::Unregister(const std::shared_ptr<Region>& region) {
  class UnregisterRequest : public Request {
    Result OnReply(Reply&) override { return {}; }
  };
  const std::shared_ptr<OpenRegion> opened = region->opened();
  region->SetClosed("the pages were freed");
  if (opened == nullptr || connection_ == nullptr || connection_->broken()) return;
  wire::UnregisterRegion message{opened->id(), 0};
  UnregisterRequest request;
  const Result closed =
      connection_->Call(wire::Type::kUnregisterRegion, {{&message, sizeof(message)}}, &request,
                        Deadline::AfterMs(link_->request_timeout_ms()));
  if (!request.done() && !stopping_) GiveUp(closed.text);
}

bool RegionLink::OpenKeySpace(RegionOp* op) {
  if (op->work.opened.epoch != connection_->welcome().epoch) return false;
  if (opened_here_.contains(op->work.opened.id)) return true;
  const Result opened =
      op->work.key_space->Open(connection_.get(), Deadline::AfterMs(link_->request_timeout_ms()));
  if (!opened.ok()) return false;
  opened_here_.insert(op->work.opened.id);
  return true;
}

// Loads first: an engine waits for them.
bool RegionLink::SendAll() {
  bool any = false;
  for (const bool loads : {true, false}) {
    const uint32_t limit = loads ? kMaxPartsInFlight : kMaxPartsInFlight / 2;
    for (size_t k = 0; k < ops_.size(); ++k) {
      if (ops_[k]->is_load() == loads) any |= SendSome(ops_[k], limit);
    }
  }
  return any;
}

bool RegionLink::SendSome(const std::shared_ptr<RegionOp>& op, uint32_t limit) {
  bool any = false;
  for (const auto& part : op->parts()) {
    if (part->ended()) continue;
    if (part->sent_at_ns != 0) {
      if (op->is_load()) continue;
      break;  // a chain's parents first
    }
    const bool usable = connection_ != nullptr && !connection_->broken() &&
                        op->region()->connection() == connection_number_;
    if (!usable || op->abandoned() || !OpenKeySpace(op.get())) {
      op->EndPart(part.get(), op->abandoned() ? Reason::kCancelled : Reason::kUnavailable);
      any = true;
      continue;
    }
    if ((op->is_load() ? in_flight_ : stores_in_flight_) >= limit ||
        in_flight_ >= kMaxPartsInFlight || part->retry_after_ns > NowNs() ||
        !op->region()->TakeSlot(&part->slot)) {
      break;
    }
    any = true;
    if (!op->SendPart(part.get(), connection_.get(), Deadline::AfterMs(link_->request_timeout_ms()))
             .ok()) {
      // Not sent, so nothing is copied for it.
      op->region()->GiveBackSlot(part->slot);
      op->EndPart(part.get(), Reason::kUnavailable);
      continue;
    }
    if (in_flight_ == 0) last_sign_ns_ = NowNs();
    ++in_flight_;
    if (!op->is_load()) ++stores_in_flight_;
  }
  return any;
}

bool RegionLink::CollectAnswers() {
  if (connection_ != nullptr && !connection_->broken() && connection_->Drain()) {
    last_sign_ns_ = NowNs();
    pinged_at_ns_ = 0;
  }
  bool any = false;
  size_t finished = 0;
  for (auto op = ops_.begin(); op != ops_.end();) {
    bool all_ended = true;
    for (const auto& part : (*op)->parts()) {
      if (!part->ended() && part->sent_at_ns != 0 && part->done())
        any |= TakeAnswer(op->get(), part.get());
      all_ended = all_ended && part->ended();
    }
    if (!all_ended) {
      ++op;
      continue;
    }
    op = ops_.erase(op);
    ++finished;
  }
  if (finished > 0) {
    std::lock_guard lock(mu_);
    unfinished_ -= finished;
  }
  return any;
}

bool RegionLink::TakeAnswer(RegionOp* op, RegionPart* part) {
  --in_flight_;
  if (!op->is_load()) --stores_in_flight_;
  const terrace_status code = part->result().code;
  if (code == TERRACE_RESOURCE_EXHAUSTED && op->is_load() && NowNs() < op->deadline_ns()) {
    op->region()->GiveBackSlot(part->slot);
    op->Again(part, NowNs() + kBusyPauseNs);
    return false;
  }
  // The daemon has not the region any more, or not its GPU: the pages are copied otherwise from now
  // on.
  if (code == TERRACE_NOT_FOUND || code == TERRACE_FAILED_PRECONDITION ||
      code == TERRACE_UNAVAILABLE) {
    for (const auto& region : regions_) {
      if (region->opened().get() == op->region()) region->SetClosed(part->result().text);
    }
  }
  op->EndPart(part, Reason::kUnavailable);
  op->region()->GiveBackSlot(part->slot);
  return true;
}

void RegionLink::WatchDaemon() {
  if (connection_ == nullptr || connection_->broken() || in_flight_ == 0) return;
  const int64_t now = NowNs();
  const int64_t patience_ns =
      std::max(kShortestSilenceNs, int64_t{link_->request_timeout_ms()} * 1'000'000);
  if (pinged_at_ns_ == 0 && now - last_sign_ns_ > patience_ns) {
    pinged_at_ns_ = now;
    connection_->Ping();
  } else if (pinged_at_ns_ != 0 && now - pinged_at_ns_ > patience_ns) {
    return GiveUp("the daemon hangs: it has not answered in time");
  }
  for (const auto& op : ops_) {
    for (const auto& part : op->parts()) {
      if (part->ended() || part->sent_at_ns == 0) continue;
      if (now - std::max(part->sent_at_ns, op->deadline_ns()) > kLostAnswerNs) {
        return GiveUp("the daemon has not answered an operation on a region");
      }
    }
  }
}

void RegionLink::GiveUp(std::string why) {
  connection_->Break();
  for (const auto& region : regions_) {
    if (region->opened() != nullptr) region->SetClosed(why);
  }
}

// The daemon's end may close before the driver has stopped a dead process's copies on the GPU.
bool RegionLink::DeviceIsQuiet() {
  bool device = false;
  for (const auto& op : ops_) device = device || op->work.memory.pages()->device != nullptr;
  if (!device || NowNs() - ended_at_ns_ > kDeviceQuietNs) return true;
  if (daemon_fd_ < 0) return false;
  pollfd process{daemon_fd_, POLLIN, 0};
  return poll(&process, 1, 0) > 0;
}

void RegionLink::Finish() {
  if (in_flight_ > 0) {
    if (ended_at_ns_ == 0 && connection_->AtEnd()) ended_at_ns_ = NowNs();
    if (ended_at_ns_ == 0 || !DeviceIsQuiet()) return;
  }
  EndAll(stopping_ ? Reason::kCancelled : Reason::kUnavailable);
  if (daemon_fd_ >= 0) close(std::exchange(daemon_fd_, -1));
  retry_at_ns_ = NowNs() + retry_ns_;
  connection_.reset();
  std::lock_guard lock(mu_);
  breakable_.reset();
}

void RegionLink::EndAll(Reason reason) {
  for (const auto& op : ops_) {
    for (const auto& part : op->parts()) {
      if (part->ended()) continue;
      if (connection_ != nullptr) connection_->Forget(part.get());
      op->EndPart(part.get(), reason);
    }
  }
  in_flight_ = stores_in_flight_ = 0;
  std::lock_guard lock(mu_);
  unfinished_ -= ops_.size();
  ops_.clear();
}

void RegionLink::Sleep() {
  int64_t limit_ns = 3'600'000'000'000;
  const int64_t now = NowNs();
  if (!ops_.empty()) limit_ns = kLongestSleepNs;
  for (const auto& op : ops_) {
    for (const auto& part : op->parts()) {
      if (part->ended() || part->sent_at_ns != 0 || part->retry_after_ns == 0) continue;
      limit_ns = std::min(limit_ns, std::max<int64_t>(0, part->retry_after_ns - now));
    }
  }
  if (connection_ != nullptr && connection_->broken()) limit_ns = std::min(limit_ns, kEndPollNs);
  if (connection_ == nullptr || ended_at_ns_ != 0) {
    if (!regions_.empty()) limit_ns = std::min(limit_ns, std::max(kEndPollNs, retry_at_ns_ - now));
    wake_->Wait(Deadline::AfterNs(limit_ns));
    wake_->Clear();
    return;
  }
  connection_->WaitForEvents(/*receive=*/true, *wake_, Deadline::AfterNs(limit_ns));
}

}  // namespace terrace::client
