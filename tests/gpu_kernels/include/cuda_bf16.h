// Runs CUDA kernels on the CPU: every thread of a block is a thread, blocks run one after another, and what is shared is static. Slow, and of
// use for one thing: whether a kernel computes what it should, on a machine without a GPU. It has the parts of CUDA that src/kernels/gpu uses.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

using std::isfinite;

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __launch_bounds__(threads)

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (std::isnan(x)) return {0x7fc0};
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }

struct Place { unsigned x, y, z; };
inline thread_local Place threadIdx;
inline Place blockIdx, blockDim;

namespace emulator {
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<std::barrier<>>> warps;
inline double numbers[1024];
inline int flags[1024];
inline std::barrier<> &warp() { return *warps[threadIdx.x / 32]; }
}  // namespace emulator

inline void __syncthreads() { emulator::block->arrive_and_wait(); }
inline void __syncwarp() { emulator::warp().arrive_and_wait(); }
template <typename T>
T __shfl_xor_sync(unsigned, T x, int other) {
    emulator::numbers[threadIdx.x] = x;
    __syncwarp();
    const T found = static_cast<T>(emulator::numbers[threadIdx.x ^ other]);
    __syncwarp();
    return found;
}
inline unsigned __ballot_sync(unsigned, int flag) {
    emulator::flags[threadIdx.x] = flag;
    __syncwarp();
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; lane++) all |= static_cast<unsigned>(emulator::flags[threadIdx.x / 32 * 32 + lane] != 0) << lane;
    __syncwarp();
    return all;
}
inline int count_of_block(int flag) {
    emulator::flags[threadIdx.x] = flag;
    __syncthreads();
    int count = 0;
    for (unsigned thread = 0; thread < blockDim.x; thread++) count += emulator::flags[thread] != 0;
    __syncthreads();
    return count;
}
inline int __syncthreads_or(int flag) { return count_of_block(flag) > 0; }
inline int __syncthreads_and(int flag) { return count_of_block(flag) == static_cast<int>(blockDim.x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }

// kernel(), on x times y blocks of this many threads.
template <typename Kernel>
void launch(unsigned x, unsigned y, unsigned threads, Kernel kernel) {
    blockDim = {threads, 1, 1};
    for (blockIdx = {0, 0, 0}; blockIdx.y < y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) {
            emulator::block = std::make_unique<std::barrier<>>(threads);
            emulator::warps.clear();
            for (unsigned warp = 0; warp < threads / 32; warp++) emulator::warps.push_back(std::make_unique<std::barrier<>>(32));
            std::vector<std::thread> all;
            for (unsigned thread = 0; thread < threads; thread++)
                all.emplace_back([=] {
                    threadIdx = {thread, 0, 0};
                    kernel();
                    emulator::block->arrive_and_drop();
                });
            for (auto &thread : all) thread.join();
        }
}
