// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// WarmTest: a host tier whose memory lies in a directory, and the processes that follow each other on it.
// A process that is killed is played by a tier that is destroyed: the tier does nothing to its files then.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "testing/memory_dir.h"
#include "testing/payload.h"
#include "tiering/host_memory_dir.h"
#include "tiering/host_tier.h"

namespace terrace::testing {

class WarmTest : public ::testing::Test {
 protected:
  using Block = tiering::HostTier::AdoptedBlock;

  // Ends the process, if there is one, and starts the next.
  void Start() {
    End();
    auto dir = tiering::HostMemoryDir::Open(path_, run_dir_, root_.path());
    ASSERT_TRUE(dir.ok()) << dir.status();
    dir_ = *std::move(dir);
    budget_ = std::make_unique<MemoryBudget>(budget_bytes_);
    key_spaces_ = std::make_unique<kv::KeySpaceTable>(100);
    tiering::HostTier::Options options = options_;
    options.memory_dir = dir_.get();
    options.key_spaces = key_spaces_.get();
    options.tenants = tenants_;
    tier_ = std::make_unique<tiering::HostTier>(options, budget_.get(), [](kv::TenantId, uint32_t) {});
  }
  void End() {
    tier_.reset();
    if (budget_ != nullptr) EXPECT_EQ(budget_->used(), 0u) << "all is given back";
    key_spaces_.reset();
    budget_.reset();
    dir_.reset();
  }
  void TearDown() override { End(); }

  const kv::KeySpace& Space(uint64_t block_bytes, kv::TenantId tenant = 0) {
    kv::KeySpaceIdentity identity;
    identity.model = "model";
    identity.block_bytes = block_bytes;
    identity.tokens_per_block = 16;
    return **key_spaces_->Open(tenant, tenants_[tenant], identity);
  }
  kv::FrameId Store(const kv::KeySpace& space, uint64_t number,
                    const std::optional<kv::BlockKey>& parent = std::nullopt) {
    const auto frame = tier_->TryAllocate(space.tenant, space.identity.block_bytes);
    if (!frame.has_value()) return kv::kNoFrame;
    const std::span<std::byte> payload{tier_->Payload(*frame), space.identity.block_bytes};
    FillPayload(KeyOf(number), 0, payload);
    const auto checksums = ChecksumsOf(space.digest.data(), KeyOf(number), payload);
    tier_->pool().MakeReady(*frame, tier_->WriteHeader(*frame, space, KeyOf(number), checksums, parent));
    return *frame;
  }
  // Stores numbers first .. until nothing fits any more, at most n. Returns their frames.
  std::map<uint64_t, kv::FrameId> Fill(const kv::KeySpace& space, uint64_t first, uint64_t n) {
    std::map<uint64_t, kv::FrameId> frames;
    for (uint64_t i = first; i < first + n; ++i) {
      const kv::FrameId frame = Store(space, i);
      if (frame == kv::kNoFrame) break;
      frames[i] = frame;
    }
    return frames;
  }
  bool Holds(kv::FrameId frame, const kv::KeySpace& space, const kv::BlockKey& key) {
    std::vector<std::byte> out(space.identity.block_bytes);
    return tier_->Check(frame, space, key, out) && IsPayloadOf(key, out);
  }
  // Takes everything over.
  std::vector<Block> Adopt() {
    std::vector<Block> blocks;
    while (tier_->AdoptStep([&](const Block& block) {
      blocks.push_back(block);
      return true;
    })) {
    }
    EXPECT_EQ(tier_->adoption_ratio(), 1.0);
    return blocks;
  }
  // Expects that every block adopted is one of these numbers, with its own bytes. Returns how many there are.
  size_t CheckAll(const std::vector<Block>& blocks, uint64_t first, uint64_t n) {
    std::map<kv::BlockKey, uint64_t> numbers;
    for (uint64_t i = first; i < first + n; ++i) numbers[KeyOf(i)] = i;
    std::set<uint64_t> seen;
    for (const Block& block : blocks) {
      const auto it = numbers.find(block.key);
      EXPECT_NE(it, numbers.end()) << "a block that was never stored";
      if (it == numbers.end()) continue;
      EXPECT_TRUE(seen.insert(it->second).second) << "twice";
      EXPECT_TRUE(Holds(block.frame, *block.key_space, block.key)) << it->second;
    }
    return seen.size();
  }
  std::vector<std::filesystem::path> Files(const std::string& extension) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      if (entry.path().extension() == extension) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  // Changes a file between two processes.
  static void Patch(const std::filesystem::path& file, uint64_t offset, const std::function<void(uint8_t*)>& change) {
    chmod(file.c_str(), 0600);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    char byte = 0;
    stream.seekg(static_cast<std::streamoff>(offset));
    stream.read(&byte, 1);
    change(reinterpret_cast<uint8_t*>(&byte));
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.write(&byte, 1);
    ASSERT_TRUE(stream.good()) << file;
  }

  TempMemoryDir root_;
  std::string run_dir_ = root_.path() + "/run";
  std::string path_ = tiering::HostMemoryDir::PathFor(root_.path(), run_dir_);
  std::vector<std::string> tenants_ = {"a", "b"};
  uint64_t budget_bytes_ = uint64_t{1} << 40;
  tiering::HostTier::Options options_{.segment_bytes = 16 << 20, .arena_bytes = 64 << 20, .prefault = false,
                                      .huge_pages = false};

  std::unique_ptr<tiering::HostMemoryDir> dir_;
  std::unique_ptr<MemoryBudget> budget_;
  std::unique_ptr<kv::KeySpaceTable> key_spaces_;
  std::unique_ptr<tiering::HostTier> tier_;
};

}  // namespace terrace::testing
