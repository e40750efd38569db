// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The compiled kernels (kernels/copy_kernels.cu), as cuModuleLoadData takes them: part of this program, so that there
// is no file to be found at run time.
#pragma once

namespace terrace::gpu {

const void* KernelImage();

}  // namespace terrace::gpu
