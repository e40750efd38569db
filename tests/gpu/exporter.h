// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ExporterProcess: another process with GPU memory, as an engine is: it exports memory and events on demand
// (exporter_main.cc). Ends with its owner.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gpu/gpus.h"

extern char** environ;

namespace terrace::gpu {

struct ExporterRequest {
  enum Op : uint32_t { kAllocate, kVmm, kEvent, kFill, kRecord, kHang, kRead, kFree };
  Op op = kAllocate;
  uint32_t index = 0;  // of an allocation or event, in the order of their making
  uint64_t bytes = 0, offset = 0;
  int32_t device = 0;
  uint8_t value = 0;
  uint8_t unused[3] = {};
};
struct ExporterReply {
  int32_t result = 0;  // CUresult
  uint32_t unused = 0;
  std::byte handle[64] = {};  // of memory or an event; kRead: bytes
};

// Owner: a test. Threads: one.
class ExporterProcess {
 public:
  // driver: for dlopen(). environment: "NAME=value", beside this process's.
  explicit ExporterProcess(const std::string& driver, const std::vector<std::string>& environment = {}) {
    int sockets[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    socket_ = sockets[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, sockets[1], 3);
    std::vector<char*> variables;
    for (const std::string& one : environment) variables.push_back(const_cast<char*>(one.c_str()));
    for (char** one = environ; *one != nullptr; ++one) variables.push_back(*one);
    variables.push_back(nullptr);
    std::string program = GPU_EXPORTER, library = driver;
    char* const arguments[] = {program.data(), library.data(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments, variables.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(sockets[1]);
  }
  ~ExporterProcess() {
    Kill();
    close(socket_);
  }
  ExporterProcess(const ExporterProcess&) = delete;

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    EXPECT_EQ(waitpid(pid_, nullptr, 0), pid_);
    pid_ = -1;
  }

  // fd: receives the descriptor that came with the answer, the caller's. expected: the driver's answer there.
  ExporterReply Ask(const ExporterRequest& request, int* fd = nullptr, int expected = 0) {
    ExporterReply reply;
    EXPECT_EQ(send(socket_, &request, sizeof(request), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(request)));
    iovec data{&reply, sizeof(reply)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    EXPECT_EQ(recvmsg(socket_, &message, MSG_CMSG_CLOEXEC), static_cast<ssize_t>(sizeof(reply)));
    EXPECT_EQ(reply.result, expected);
    const cmsghdr* const header = CMSG_FIRSTHDR(&message);
    if (fd != nullptr && header != nullptr) std::memcpy(fd, CMSG_DATA(header), sizeof(int));
    return reply;
  }

  // Memory filled with value.
  AllocationHandle Allocate(uint64_t bytes, uint8_t value = 0, int device = 0) {
    const ExporterReply reply =
        Ask({.op = ExporterRequest::kAllocate, .bytes = bytes, .device = device, .value = value});
    AllocationHandle handle{.kind = HandleKind::kCudaIpc, .bytes = bytes};
    std::memcpy(handle.ipc.data(), reply.handle, sizeof(reply.handle));
    return handle;
  }
  AllocationHandle AllocateVmm(uint64_t bytes, uint8_t value = 0, int device = 0) {
    AllocationHandle handle{.kind = HandleKind::kCudaVmm, .bytes = bytes};
    Ask({.op = ExporterRequest::kVmm, .bytes = bytes, .device = device, .value = value}, &handle.fd);
    return handle;
  }
  EventHandle NewEvent() {
    const ExporterReply reply = Ask({.op = ExporterRequest::kEvent});
    EventHandle handle;
    std::memcpy(handle.data(), reply.handle, sizeof(reply.handle));
    return handle;
  }

 private:
  int socket_ = -1;
  pid_t pid_ = -1;
};

}  // namespace terrace::gpu
