// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace_bench_matmul: what the engine is doing meanwhile. C = A * B in single precision, row-major, n a multiple of
// 64. A block of 16 x 16 threads makes a tile of 64 x 64; each thread 4 x 4 of it.
extern "C" __global__ void __launch_bounds__(256)
    terrace_bench_matmul(const float* a, const float* b, float* c, int n) {
  __shared__ float tile_a[16][64 + 4];
  __shared__ float tile_b[16][64 + 4];
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int first_row = blockIdx.y * 64, first_column = blockIdx.x * 64;
  float sums[4][4] = {};
  for (int k = 0; k < n; k += 16) {
    for (int i = threadIdx.x; i < 16 * 64; i += 256) {
      tile_a[i % 16][i / 16] = a[static_cast<size_t>(first_row + i / 16) * n + k + i % 16];
      tile_b[i / 64][i % 64] = b[static_cast<size_t>(k + i / 64) * n + first_column + i % 64];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float left[4], right[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        left[j] = tile_a[i][y * 4 + j];
        right[j] = tile_b[i][x * 4 + j];
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int s = 0; s < 4; ++s) sums[r][s] += left[r] * right[s];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      c[static_cast<size_t>(first_row + y * 4 + r) * n + first_column + x * 4 + s] = sums[r][s];
    }
  }
}
