// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/thread.h"

#include <signal.h>

#include <utility>

namespace terrace::client {

bool Thread::Start(const char* name, std::function<void()> body) {
  body_ = std::move(body);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread inherits it
  started_ = pthread_create(&thread_, nullptr, Main, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (started_) pthread_setname_np(thread_, name);
  return started_;
}

void Thread::Join() {
  if (!started_) return;
  pthread_join(thread_, nullptr);
  started_ = false;
}

void* Thread::Main(void* self) {
  static_cast<Thread*>(self)->body_();
  return nullptr;
}

}  // namespace terrace::client
