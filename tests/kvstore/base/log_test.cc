// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace terrace {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// What was written to standard error by `work`, line by line.
template <typename Work>
std::vector<std::string> LinesOf(const Work& work) {
  testing::internal::CaptureStderr();
  work();
  std::vector<std::string> lines = absl::StrSplit(testing::internal::GetCapturedStderr(), '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

class LogTest : public testing::Test {
 protected:
  void TearDown() override {
    SetLogLevel(LogLevel::kInfo);
    SetLogFormat(LogFormat::kLogfmt);
  }
};

TEST_F(LogTest, LogfmtQuotesOnlyWhatNeedsIt) {
  const auto lines = LinesOf([] {
    Log(LogLevel::kInfo, "logfmt_event", {{"plain", "a-b/c.d"}, {"number", 42}, {"blank", "a b"}, {"none", ""}});
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], StartsWith("ts=2"));
  EXPECT_THAT(lines[0], EndsWith("Z level=info event=logfmt_event plain=a-b/c.d number=42 blank=\"a b\" none=\"\""));
}

TEST_F(LogTest, ATextCannotForgeALineOrAField) {
  const auto lines = LinesOf([] {
    Log(LogLevel::kWarning, "forged", {{"name", "x\nlevel=error event=fake\" y=1\x1b[31m\xff"}});
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], EndsWith(R"(name="x\nlevel=error event=fake\" y=1\u001b[31m?")"));
}

TEST_F(LogTest, JsonKeepsNumbersAndUtf8) {
  SetLogFormat(LogFormat::kJson);
  const auto lines = LinesOf([] {
    Log(LogLevel::kError, "json_event", {{"name", "\"ä\"\t"}, {"bytes", uint64_t{1} << 40}, {"digits", "0123"}});
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], StartsWith("{\"ts\":\"2"));
  EXPECT_THAT(lines[0], EndsWith(R"("level":"error","event":"json_event","name":"\"ä\"\u0009",)"
                                 R"("bytes":1099511627776,"digits":"0123"})"));
}

TEST_F(LogTest, JsonHasNoNumberThatJsonDoesNotKnow) {
  SetLogFormat(LogFormat::kJson);
  const auto lines = LinesOf([] { Log(LogLevel::kError, "nan_event", {{"ratio", 0.0 / 0.0}}); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], Not(HasSubstr(":nan")));
  EXPECT_THAT(lines[0], Not(HasSubstr(":-nan")));
}

TEST_F(LogTest, LevelsBelowTheChosenOneAreNotWritten) {
  const auto none = LinesOf([] { Log(LogLevel::kDebug, "hidden"); });
  EXPECT_TRUE(none.empty());
  SetLogLevel(LogLevel::kDebug);
  const auto one = LinesOf([] { Log(LogLevel::kDebug, "shown"); });
  EXPECT_EQ(one.size(), 1u);
  SetLogLevel(LogLevel::kError);
  EXPECT_TRUE(LinesOf([] { Log(LogLevel::kWarning, "hidden"); }).empty());
}

TEST_F(LogTest, ARepeatedEventIsCountedNotWritten) {
  const auto lines = LinesOf([] {
    for (int i = 0; i < 500; ++i) Log(LogLevel::kInfo, "flood", {{"i", i}});
    Log(LogLevel::kInfo, "another_name");
  });
  // 20 a second; a slow machine may see a new second begin, never 500 lines.
  EXPECT_GE(lines.size(), 21u);
  EXPECT_LT(lines.size(), 200u);
  EXPECT_THAT(lines.back(), HasSubstr("event=another_name"));
}

TEST_F(LogTest, LongValuesAreCut) {
  const std::string long_text(100'000, 'x');
  const auto lines = LinesOf([&] { Log(LogLevel::kInfo, "long", {{"text", long_text}}); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_LT(lines[0].size(), 2000u);
}

}  // namespace
}  // namespace terrace
