// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/kernel_image.h"

// TERRACE_KERNEL_FILE: the fat binary that the build made. The driver wants it aligned to 8 bytes.
asm(".section .rodata\n"
    ".balign 64\n"
    "terrace_kernel_image:\n"
    ".incbin \"" TERRACE_KERNEL_FILE "\"\n"
    ".balign 8\n"
    ".previous\n");

extern "C" const char terrace_kernel_image[];

namespace terrace::gpu {

const void* KernelImage() { return terrace_kernel_image; }

}  // namespace terrace::gpu
