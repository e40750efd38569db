// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace terrace::tiering {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TraceFile : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/terrace_trace_XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  absl::StatusOr<Trace> Read(const std::string& text) {
    const std::string path = folder_ + "/trace";
    std::ofstream(path, std::ios::binary) << text;
    return ReadTraceFile(path);
  }
  void ExpectRefused(const std::string& text, const char* why) {
    const auto trace = Read(text);
    ASSERT_FALSE(trace.ok()) << text;
    EXPECT_TRUE(absl::IsInvalidArgument(trace.status()));
    EXPECT_THAT(std::string(trace.status().message()), HasSubstr(why)) << text;
  }
  std::string folder_;
};

constexpr char kGood[] = R"({"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [7, 8]})";

TEST_F(TraceFile, MooncakeLinesAreRead) {
  const auto trace = Read(std::string(kGood) + "\n\n" +
                          R"({"hash_ids":[7,9,10],"output_length":6,"extra":{"a":[1,"]}"]},"input_length":1500,)" +
                          R"("timestamp":27.5})" + "\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[1].time_ns, 27'500'000);
  EXPECT_EQ(trace->requests[1].input_tokens, 1500u);
  EXPECT_EQ(trace->requests[1].output_tokens, 6u);
  EXPECT_EQ(trace->input_tokens, 2500u);
  EXPECT_EQ(trace->distinct_blocks, 4u);
  EXPECT_THAT(trace->references, ElementsAre(0, 1, 0, 2, 3));
}

TEST_F(TraceFile, CsvSaysTheSame) {
  const auto json = Read(std::string(kGood) + "\n");
  const auto csv = Read("timestamp_ms,input_length,output_length,hash_ids\n0,1000,5,7 8\n");
  ASSERT_TRUE(json.ok() && csv.ok()) << csv.status();
  EXPECT_EQ(csv->references, json->references);
  EXPECT_EQ(csv->input_tokens, json->input_tokens);
}

TEST_F(TraceFile, CompressedFilesAreReadAsTheyAre) {
  const std::string path = folder_ + "/trace.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_GT(gzwrite(file, kGood, sizeof(kGood) - 1), 0);
  gzclose(file);
  const auto trace = ReadTraceFile(path);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->references.size(), 2u);
  // Cut short: an error, not a shorter trace.
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 12);
  EXPECT_FALSE(ReadTraceFile(path).ok());
}

// The message names the last whole line, and the file once.
TEST_F(TraceFile, OneThatWasCutShortIsSaidToBe) {
  const std::string path = folder_ + "/trace.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  std::string lines;
  uint64_t id = 88172645463325252;  // numbers that do not compress to nothing
  for (int i = 0; i < 2000; ++i) {
    id = id * 6364136223846793005 + 1442695040888963407;
    lines += absl::StrCat("{\"timestamp\": ", i, ", \"input_length\": 1, \"hash_ids\": [", id, "]}\n");
  }
  ASSERT_EQ(gzwrite(file, lines.data(), static_cast<unsigned>(lines.size())), static_cast<int>(lines.size()));
  gzclose(file);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  const std::string message(ReadTraceFile(path).status().message());
  EXPECT_THAT(message, testing::ContainsRegex("after line [1-9][0-9]+: the compressed file was cut short"));
  EXPECT_EQ(message.find(path), message.rfind(path)) << message;
}

// One id behind different prefixes: different blocks.
TEST_F(TraceFile, IdsAreChained) {
  const auto trace = Read("timestamp_ms,input_length,output_length,hash_ids\n0,1024,0,1 5\n1,1024,0,2 5\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_THAT(trace->references, ElementsAre(0, 1, 2, 3));
}

TEST_F(TraceFile, BadLinesAreNamed) {
  const std::string good = std::string(kGood) + "\n";
  ExpectRefused(good + "{\"timestamp\": 1,\n", "line 2");
  ExpectRefused(good + "[1, 2]\n", "line 2");
  ExpectRefused(good + R"({"timestamp": "x", "input_length": 1, "hash_ids": []})", "timestamp");
  ExpectRefused(good + R"({"timestamp": 1, "input_length": -1, "hash_ids": []})", "input_length");
  ExpectRefused(good + R"({"timestamp": 1, "input_length": 1, "hash_ids": [1, "a"]})", "hash_ids");
  ExpectRefused(good + R"({"timestamp": 1, "input_length": 1})", "must be there");
  ExpectRefused(good + R"({"timestamp": 1, "input_length": 1, "hash_ids": []} x)", "line 2");
  ExpectRefused(R"({"timestamp": 5, "input_length": 1, "hash_ids": [1]})" + ("\n" + good), "line 2");
  ExpectRefused(R"({"timestamp": -5, "input_length": 1, "hash_ids": [1]})", "out of range");
  ExpectRefused(R"({"timestamp": nan, "input_length": 1, "hash_ids": [1]})", "timestamp");
  ExpectRefused(std::string(100000, '['), "line 1");
  ExpectRefused(R"({"deep": )" + std::string(100000, '['), "deep");
  ExpectRefused("", "no blocks");
  ExpectRefused("time,input,output,ids\n0,1,2,3\n", "line 1: neither a JSON object nor the header of a CSV, which is "
                                                    "exactly timestamp_ms,input_length,output_length,hash_ids");
  const std::string header = "timestamp_ms,input_length,output_length,hash_ids\n";
  ExpectRefused(header + "1,2,3\n", "line 2: must have four columns");
  ExpectRefused(header + "1,x,3,4\n", "must be numbers");
  ExpectRefused(header + "1,2,3,4 -5\n", "-5");
  EXPECT_TRUE(absl::IsNotFound(ReadTraceFile(folder_ + "/none").status()));
}

TEST_F(TraceFile, NextUsesAreThoseOfTheTrace) {
  const auto trace = Read("timestamp_ms,input_length,output_length,hash_ids\n0,1,0,1 2\n1,1,0,3\n2,1,0,1\n3,1,0,1 2\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_THAT(NextUses(*trace), ElementsAre(2, 3, kNever, 3, kNever, kNever));
}

}  // namespace
}  // namespace terrace::tiering
