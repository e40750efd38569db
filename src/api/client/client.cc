// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The C entry points for clients, key spaces, pages, lookups, leases and views. Each checks its
// arguments, says what is wrong with them, and calls down. Loads and stores: client_ops.cc.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "api/client/core.h"
#include "api/client/load_op.h"
#include "api/client/locate.h"
#include "api/client/lookup.h"
#include "api/client/ref.h"
#include "kvstore/base/reason.h"

namespace terrace::client {
namespace {

constexpr char kDefaultSocket[] = "/run/terrace/engine.sock";
constexpr uint32_t kMaxCopyThreads = 16;
constexpr uint32_t kMaxRequestTimeoutMs = 3'600'000;
constexpr uint32_t kMaxLoadTimeoutMs = 3'600'000;
constexpr uint32_t kMaxLookupKeys = 1'048'576;
constexpr uint32_t kMaxLookupParts = 1024;

// Cores this process may use. The threads inherit the affinity of the thread that connects.
uint32_t UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
}

Result TextOption(const char* name, const char* text, size_t room, std::string* out) {
  if (text == nullptr) return {};
  if (strnlen(text, room) >= room) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_options.%s is longer than %zu bytes", name,
                room - 1);
  }
  *out = text;
  return {};
}

Result ReadOptions(const terrace_options* options, Core::Options* out) {
  if (options == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "options is NULL");
  if (options->struct_bytes < sizeof(*options)) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_options.struct_bytes is %zu, must be %zu",
                options->struct_bytes, sizeof(*options));
  }
  const char* from_environment = secure_getenv("TERRACE_SOCKET");
  out->link.path = options->socket_path != nullptr                              ? options->socket_path
                   : from_environment != nullptr && from_environment[0] != '\0' ? from_environment
                                                                                : kDefaultSocket;
  if (out->link.path.empty() || out->link.path.size() >= 108) {
    return Fail(TERRACE_INVALID_ARGUMENT,
                "terrace_options.socket_path has %zu bytes, a socket's path 1 to 107",
                out->link.path.size());
  }
  out->link.tenant = "default";
  out->link.client_name = program_invocation_short_name;
  out->link.client_name.resize(
      std::min(out->link.client_name.size(), sizeof(wire::Hello::client_name) - 1));
  Result read = TextOption("tenant", options->tenant, sizeof(wire::Hello::tenant), &out->link.tenant);
  if (read.ok()) {
    read = TextOption("token", options->token, sizeof(wire::Hello::token), &out->link.token);
  }
  if (read.ok()) {
    read = TextOption("client_name", options->client_name, sizeof(wire::Hello::client_name),
                      &out->link.client_name);
  }
  if (!read.ok()) return read;
  if (options->copy_threads > kMaxCopyThreads) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_options.copy_threads is %u, at most %u",
                options->copy_threads, kMaxCopyThreads);
  }
  out->copy_threads =
      options->copy_threads > 0 ? options->copy_threads : (UsableCores() <= 2 ? 1 : 2);
  if (options->request_timeout_ms > kMaxRequestTimeoutMs) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_options.request_timeout_ms is %u, at most %u",
                options->request_timeout_ms, kMaxRequestTimeoutMs);
  }
  if (options->request_timeout_ms > 0) out->link.request_timeout_ms = options->request_timeout_ms;
  out->staging_bytes = options->staging_bytes;
  if (options->load_timeout_ms > kMaxLoadTimeoutMs) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_options.load_timeout_ms is %u, at most %u",
                options->load_timeout_ms, kMaxLoadTimeoutMs);
  }
  if (options->load_timeout_ms > 0) out->load_timeout_ms = options->load_timeout_ms;
  return {};
}

Result CheckClient(const terrace_client* client) {
  if (client == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "client is NULL");
  return CheckFork(client->core->fork_generation);
}

Result Connect(const terrace_options* options, terrace_client** client) {
  if (client == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "client is NULL");
  *client = nullptr;
  Core::Options core_options;
  if (Result read = ReadOptions(options, &core_options); !read.ok()) return read;
  auto core = std::make_shared<Core>(core_options);
  if (Result started = core->link.Start(); !started.ok()) return started;
  Result first =
      core->link.WaitFirstAttempt(Deadline::AfterMs(core_options.link.request_timeout_ms));
  if (first.ok() || first.code == TERRACE_UNAVAILABLE) {
    *client = new terrace_client{std::move(core)};
  } else {
    core->Stop();
  }
  return first;
}

Result CheckPart(const terrace_client* client, const terrace_lookup_part& part, uint32_t i) {
  if (part.keyspace == nullptr || part.keyspace->core != client->core) {
    return Fail(TERRACE_INVALID_ARGUMENT, "parts[%u].keyspace is %s", i,
                part.keyspace == nullptr ? "NULL" : "another client's");
  }
  if (part.keys == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "parts[%u].keys is NULL", i);
  if (part.n_keys == 0 || part.n_keys > kMaxLookupKeys) {
    return Fail(TERRACE_INVALID_ARGUMENT, "parts[%u].n_keys is %u, must be 1 to %u", i, part.n_keys,
                kMaxLookupKeys);
  }
  if (part.mode != TERRACE_MODE_PREFIX && part.mode != TERRACE_MODE_ALL) {
    return Fail(TERRACE_INVALID_ARGUMENT, "parts[%u].mode is %u, must be TERRACE_MODE_*", i,
                part.mode);
  }
  return {};
}

Result Lookup(terrace_client* client, terrace_lookup_part* parts, uint32_t n_parts, uint32_t flags,
              uint32_t timeout_us) {
  if (Result checked = CheckClient(client); !checked.ok()) return checked;
  if (parts == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "parts is NULL");
  if (n_parts == 0 || n_parts > kMaxLookupParts) {
    return Fail(TERRACE_INVALID_ARGUMENT, "n_parts is %u, must be 1 to %u", n_parts,
                kMaxLookupParts);
  }
  if ((flags & ~uint32_t{TERRACE_LOOKUP_NO_LEASE | TERRACE_LOOKUP_MAY_WAIT}) != 0) {
    return Fail(TERRACE_INVALID_ARGUMENT, "flags has unknown bits: 0x%x", flags);
  }
  for (uint32_t i = 0; i < n_parts; ++i) {
    if (Result checked = CheckPart(client, parts[i], i); !checked.ok()) return checked;
  }
  Link& link = client->core->link;
  const Deadline deadline = timeout_us > 0 ? Deadline::AfterUs(timeout_us)
                                           : Deadline::AfterMs(link.request_timeout_ms());
  LookupQuestion few[4];
  std::vector<LookupQuestion> many;
  if (n_parts > std::size(few)) many.resize(n_parts);
  LookupQuestion* questions = n_parts > std::size(few) ? many.data() : few;
  for (uint32_t i = 0; i < n_parts; ++i) {
    questions[i] = {&parts[i], parts[i].keyspace->key_space.get()};
  }
  return RunLookup(&link, client->core->stats.get(), {questions, n_parts},
                   {.lease = (flags & TERRACE_LOOKUP_NO_LEASE) == 0,
                    .may_wait = (flags & TERRACE_LOOKUP_MAY_WAIT) != 0},
                   deadline);
}

Result Release(terrace_client* client, uint64_t lease, bool wait) {
  if (Result checked = CheckClient(client); !checked.ok()) return checked;
  if (lease == 0) return {};
  Link& link = client->core->link;
  std::shared_ptr<Connection> connection;
  if (Result usable = link.UseForRelease(&connection); !usable.ok()) return usable;
  return connection->Release(lease, wait, Deadline::AfterMs(link.request_timeout_ms()));
}

Result View(terrace_client* client, terrace_keyspace* keyspace, const terrace_ref* encoded,
            const uint8_t key[32], const void** data, uint64_t* bytes, terrace_reason* reason) {
  if (Result checked = CheckClient(client); !checked.ok()) return checked;
  if (keyspace == nullptr || encoded == nullptr || key == nullptr || data == nullptr) {
    return Fail(TERRACE_INVALID_ARGUMENT, "keyspace, ref, key or data is NULL");
  }
  if (keyspace->core != client->core) {
    return Fail(TERRACE_INVALID_ARGUMENT, "keyspace is another client's");
  }
  *data = nullptr;
  if (bytes != nullptr) *bytes = 0;
  Reason found = Reason::kUnavailable;
  if (reason != nullptr) *reason = TERRACE_REASON_UNAVAILABLE;
  Core& core = *client->core;
  std::shared_ptr<Connection> connection;
  if (Result usable = core.link.Use(&connection); !usable.ok()) return usable;
  const KeySpace::Opened opened = keyspace->key_space->opened();
  if (opened.epoch != connection->welcome().epoch) {
    return Fail(TERRACE_UNAVAILABLE, "the key space is not open at this daemon yet");
  }
  Ref ref{};
  std::shared_ptr<Segment> segment;
  found = Reason::kNone;
  if (!DecodeRef(*encoded, &ref) || ref.epoch != opened.epoch) {
    found = Reason::kStale;
  } else if (IsPending(ref)) {
    const Result located =
        LocateOne(connection.get(), opened.id, key, Deadline::AfterMs(core.link.request_timeout_ms()),
                  &ref.place);
    if (!located.ok()) return located;
    found = ref.place.reason < kReasonCount ? static_cast<Reason>(ref.place.reason) : Reason::kUnavailable;
  }
  if (found == Reason::kNone) {
    const Result got = core.link.segments()->Get(
        connection.get(), ref.epoch, ref.place.segment_id,
        Deadline::AfterMs(core.link.request_timeout_ms()), &segment);
    if (got.code == TERRACE_NOT_FOUND) {
      found = Reason::kStale;
    } else if (!got.ok()) {
      return got;
    }
  }
  const uint64_t block_bytes = keyspace->key_space->block_bytes();
  if (segment != nullptr) {
    // Before the check: from here on the mapping stays, whatever the daemon says meanwhile.
    segment->KeepForViews();
    BlockReader reader;
    found = reader.Read(*segment, ref.place, opened.digest.data(), key, block_bytes, {});
    if (found == Reason::kCorrupt || found == Reason::kStale) {
      ReportBadBlock(connection.get(), opened.id, ref.place.generation, key);
    }
    // Given up just before we asked for it to be kept: then it may be unmapped with our reference.
    if (core.link.segments()->Find(ref.epoch, ref.place.segment_id) != segment) {
      found = Reason::kStale;
    }
  }
  if (reason != nullptr) *reason = static_cast<terrace_reason>(found);
  core.stats->AddReason(found);
  Stats::Add(found == Reason::kNone ? core.stats->load_blocks : core.stats->load_failed_blocks, 1);
  if (found != Reason::kNone) {
    return Fail(TERRACE_DATA_LOSS, "the block cannot be viewed: %s",
                std::string(ReasonName(found)).c_str());
  }
  Stats::Add(core.stats->load_bytes, block_bytes);
  *data = segment->PayloadOf(ref.place);
  if (bytes != nullptr) *bytes = block_bytes;
  return {};
}

}  // namespace

Result CheckFork(uint32_t fork_generation) {
  if (fork_generation == ForkGeneration()) return {};
  return Fail(TERRACE_FAILED_PRECONDITION,
              "this client was made before fork(): connect anew in the child");
}

}  // namespace terrace::client

using namespace terrace::client;  // NOLINT: the entry points are outside of any namespace

extern "C" {

const char* terrace_version(void) { return TERRACE_VERSION; }

const char* terrace_status_name(terrace_status status) {
  switch (status) {
    case TERRACE_OK:
      return "OK";
    case TERRACE_INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case TERRACE_DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case TERRACE_NOT_FOUND:
      return "NOT_FOUND";
    case TERRACE_PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case TERRACE_RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case TERRACE_FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case TERRACE_INTERNAL:
      return "INTERNAL";
    case TERRACE_UNAVAILABLE:
      return "UNAVAILABLE";
    case TERRACE_DATA_LOSS:
      return "DATA_LOSS";
  }
  return "UNKNOWN";
}

const char* terrace_reason_name(terrace_reason reason) {
  // The names are literals, hence terminated.
  return terrace::ReasonName(static_cast<terrace::Reason>(reason)).data();
}

const char* terrace_error_text(void) { return LastErrorText(); }

terrace_status terrace_connect(const terrace_options* options, terrace_client** client) {
  return Answer(Connect(options, client));
}

terrace_status terrace_wait_ready(terrace_client* client, uint32_t timeout_ms) {
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  return Answer(client->core->link.WaitReady(Deadline::AfterMs(timeout_ms)));
}

int terrace_is_ready(terrace_client* client) {
  return client != nullptr && !client->core->InForkedChild() && client->core->link.ready() ? 1 : 0;
}

void terrace_close(terrace_client* client) {
  // In a forked child there are no threads to stop and locks may be held for ever: leave it all.
  if (client == nullptr || client->core->InForkedChild()) return;
  client->core->Stop();
  delete client;
}

terrace_status terrace_keyspace_open(terrace_client* client, const terrace_keyspace_desc* desc,
                                     terrace_keyspace** keyspace) {
  if (keyspace != nullptr) *keyspace = nullptr;
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  if (desc == nullptr || keyspace == nullptr) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "%s is NULL", desc == nullptr ? "desc" : "keyspace"));
  }
  std::shared_ptr<KeySpace> key_space;
  if (Result made = KeySpace::Create(*desc, &key_space); !made.ok()) return Answer(made);
  Result added = client->core->link.AddKeySpace(key_space);
  if (added.ok() || added.code == TERRACE_UNAVAILABLE) {
    *keyspace = new terrace_keyspace{client->core, std::move(key_space)};
  }
  return Answer(added);
}

terrace_status terrace_keyspace_digest(terrace_keyspace* keyspace, uint8_t digest[32]) {
  if (keyspace == nullptr || digest == nullptr) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "keyspace or digest is NULL"));
  }
  if (Result checked = CheckFork(keyspace->core->fork_generation); !checked.ok()) {
    return Answer(checked);
  }
  const KeySpace::Opened opened = keyspace->key_space->opened();
  if (opened.epoch == 0) {
    return Answer(Fail(TERRACE_UNAVAILABLE, "the key space was not opened by a daemon yet"));
  }
  std::memcpy(digest, opened.digest.data(), opened.digest.size());
  return TERRACE_OK;
}

void terrace_keyspace_free(terrace_keyspace* keyspace) {
  if (keyspace == nullptr || keyspace->core->InForkedChild()) return;
  keyspace->core->link.RemoveKeySpace(keyspace->key_space);
  delete keyspace;
}

terrace_status terrace_pages_register(terrace_client* client, const terrace_plane* planes,
                                      uint32_t n_planes, uint64_t n_blocks, terrace_pages** pages) {
  if (pages != nullptr) *pages = nullptr;
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  if (pages == nullptr) return Answer(Fail(TERRACE_INVALID_ARGUMENT, "pages is NULL"));
  std::shared_ptr<Pages> made;
  Result result = Pages::Create(planes, n_planes, n_blocks, &made);
  if (result.ok()) *pages = new terrace_pages{client->core, std::move(made)};
  return Answer(result);
}

terrace_status terrace_shared_pages_register(terrace_client* client, const terrace_shared_memory* memory,
                                             uint32_t n_memory, const terrace_plane* planes,
                                             uint32_t n_planes, uint64_t n_blocks, terrace_pages** pages) {
  if (pages != nullptr) *pages = nullptr;
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  if (pages == nullptr) return Answer(Fail(TERRACE_INVALID_ARGUMENT, "pages is NULL"));
  std::shared_ptr<Pages> made;
  Result result = Pages::Create(planes, n_planes, n_blocks, &made);
  if (result.ok()) {
    result = Region::FromSharedMemory(memory, n_memory, planes, n_planes, n_blocks, &made->region);
  }
  Core& core = *client->core;
  if (result.ok()) {
    result = core.regions.Add(made->region, Deadline::AfterMs(core.link.request_timeout_ms()));
  }
  if (result.ok()) *pages = new terrace_pages{client->core, std::move(made)};
  return Answer(result);
}

terrace_status terrace_device_pages_register(terrace_client* client, const terrace_device_pages* wanted,
                                             terrace_pages** pages) {
  if (pages != nullptr) *pages = nullptr;
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  if (pages == nullptr || wanted == nullptr || wanted->struct_bytes < sizeof(*wanted)) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "pages or device_pages is NULL, or its struct_bytes is not %zu",
                       sizeof(*wanted)));
  }
  if ((wanted->flags & ~uint32_t{TERRACE_PAGES_NO_EXPORT}) != 0) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "flags has unknown bits: 0x%x", wanted->flags));
  }
  if (wanted->n_planes > terrace::wire::kMaxRegionPlanes) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "n_planes is %u, at most %u", wanted->n_planes,
                       terrace::wire::kMaxRegionPlanes));
  }
  std::shared_ptr<Pages> made;
  Result result = Pages::Create(wanted->planes, wanted->n_planes, wanted->n_blocks, &made);
  if (result.ok()) {
    result = DevicePages::Create(*wanted, &made->device, &made->region, &made->why_not_exported);
  }
  Core& core = *client->core;
  if (result.ok() && made->region != nullptr) {
    result = core.regions.Add(made->region, Deadline::AfterMs(core.link.request_timeout_ms()));
    if (!result.ok()) made->device->Close();
  }
  if (result.ok()) *pages = new terrace_pages{client->core, std::move(made)};
  return Answer(result);
}

terrace_copier terrace_pages_copier(terrace_pages* pages, const char** text) {
  thread_local char kept[256];
  std::string why = "not pages that a daemon could open: registered by terrace_pages_register";
  if (text != nullptr) *text = kept;
  terrace_copier copier = TERRACE_COPIER_LIBRARY;
  if (pages == nullptr) {
    why = "pages is NULL";
  } else if (pages->core->InForkedChild()) {
    why = "these pages were registered before fork()";
  } else {
    const Pages& asked = *pages->pages;
    if (asked.device != nullptr) copier = TERRACE_COPIER_LIBRARY_STREAM;
    if (!asked.why_not_exported.empty()) why = asked.why_not_exported;
    if (asked.region != nullptr) why = asked.region->why();
    if (asked.region != nullptr && asked.region->opened() != nullptr) copier = TERRACE_COPIER_DAEMON;
  }
  kept[why.copy(kept, sizeof(kept) - 1)] = '\0';
  return copier;
}

void terrace_pages_free(terrace_pages* pages) {
  if (pages == nullptr || pages->core->InForkedChild()) return;
  pages->pages->gate().Close();
  Core& core = *pages->core;
  if (pages->pages->region != nullptr) {
    core.regions.Remove(pages->pages->region, Deadline::AfterMs(core.link.request_timeout_ms()));
  }
  if (pages->pages->device != nullptr) pages->pages->device->Close();
  delete pages;
}

terrace_status terrace_lookup(terrace_client* client, terrace_lookup_part* parts, uint32_t n_parts,
                              uint32_t flags, uint32_t timeout_us) {
  return Answer(Lookup(client, parts, n_parts, flags, timeout_us));
}

terrace_status terrace_release(terrace_client* client, uint64_t lease) {
  return Answer(Release(client, lease, /*wait=*/false));
}

terrace_status terrace_release_sync(terrace_client* client, uint64_t lease) {
  return Answer(Release(client, lease, /*wait=*/true));
}

terrace_status terrace_view(terrace_client* client, terrace_keyspace* keyspace,
                            const terrace_ref* ref, const uint8_t key[32], const void** data,
                            uint64_t* bytes, terrace_reason* reason) {
  return Answer(View(client, keyspace, ref, key, data, bytes, reason));
}

int terrace_view_valid(terrace_client* client, const terrace_ref* encoded) {
  Ref ref;
  if (client == nullptr || encoded == nullptr || client->core->InForkedChild()) return 0;
  if (!DecodeRef(*encoded, &ref) || IsPending(ref)) return 0;
  const auto segment = client->core->link.segments()->Find(ref.epoch, ref.place.segment_id);
  if (segment == nullptr || !segment->Contains(ref.place)) return 0;
  // The reads of the view come before this one.
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto* header = segment->HeaderOf(ref.place);
  return terrace::kv::LoadGeneration(header) == ref.place.generation ? 1 : 0;
}

terrace_status terrace_get_stats(terrace_client* client, terrace_client_stats* stats) {
  if (Result checked = CheckClient(client); !checked.ok()) return Answer(checked);
  if (stats == nullptr || stats->struct_bytes < sizeof(*stats)) {
    return Answer(Fail(TERRACE_INVALID_ARGUMENT, "stats is NULL or its struct_bytes is not %zu",
                       sizeof(*stats)));
  }
  const Stats& from = *client->core->stats;
  stats->connects = from.connects;
  stats->lookups = from.lookups;
  stats->lookup_blocks = from.lookup_blocks;
  stats->hit_blocks = from.hit_blocks;
  stats->load_blocks = from.load_blocks;
  stats->load_bytes = from.load_bytes;
  stats->load_failed_blocks = from.load_failed_blocks;
  stats->store_blocks = from.store_blocks;
  stats->store_bytes = from.store_bytes;
  stats->store_duplicate_blocks = from.store_duplicate_blocks;
  stats->store_failed_blocks = from.store_failed_blocks;
  std::copy(from.reasons.begin(), from.reasons.end(), stats->reasons);
  return TERRACE_OK;
}

}  // extern "C"
