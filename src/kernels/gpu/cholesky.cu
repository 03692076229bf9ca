// Cholesky factors of Gram matrices and their inverses, in f64, a block of threads for each matrix.
#include <stdint.h>

// The sum over all threads of a block of up to 1024; each gets it.
__device__ double sum_over_block(double x) {
    __shared__ double parts[32];
    for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0;
    for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}

// L with L L^T = D^-1 G D^-1 + shift I, its columns one after another in `factor`, for the lengths D; false if a pivot falls below `least`.
template <typename T>
__device__ bool factorize(const T *gram, const double *lengths, double *factor, double *column, uint32_t n, double shift, double least) {
    for (uint32_t place = threadIdx.x; place < n * n; place += blockDim.x) {
        const uint32_t j = place / n, i = place % n;
        factor[place] = i == j ? 1 + shift : static_cast<double>(gram[place]) / (lengths[i] * lengths[j]);
    }
    __syncthreads();
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (uint32_t k = 0; k < n; k++) {
        const double pivot = factor[k * n + k];
        if (!(pivot > 0 && pivot >= least)) return false;
        const double root = sqrt(pivot);
        __syncthreads();
        for (uint32_t i = k + threadIdx.x; i < n; i += blockDim.x) factor[k * n + i] = column[i] = i == k ? root : factor[k * n + i] / root;
        __syncthreads();
        for (uint32_t j = k + 1 + warp; j < n; j += warps)
            for (uint32_t i = j + lane; i < n; i += 32) factor[j * n + i] -= column[i] * column[j];
        __syncthreads();
    }
    return true;
}

// R^-1 for R^T R = G, upper triangular, with what decides about the matrix in `notes`: whether it has a factor at all (then 1), the distance
// of G from I, R's diagonal, and the lengths of the columns, 2 n + 2 numbers. Scaled to unit diagonal, and shifted by `shift` where a pivot
// falls below it. Without a factor R^-1 is I. `scratch` is two matrices of f64.
template <typename T>
__device__ void cholesky_inverse(const T *gram, T *inverse, double *notes, double *scratch, uint32_t n, double shift) {
    extern __shared__ double column[];
    const size_t place = static_cast<size_t>(blockIdx.x) * n * n;
    gram += place, inverse += place, scratch += 2 * place, notes += static_cast<size_t>(blockIdx.x) * (2 * n + 2);
    double *factor = scratch, *solved = scratch + static_cast<size_t>(n) * n, *diagonal = notes + 2, *lengths = notes + 2 + n;
    double distance = 0;
    for (uint32_t at = threadIdx.x; at < n * n; at += blockDim.x) {
        const double x = static_cast<double>(gram[at]) - (at / n == at % n ? 1 : 0);
        distance += x * x;
    }
    distance = sqrt(sum_over_block(distance));
    int sound = 1;
    for (uint32_t j = threadIdx.x; j < n; j += blockDim.x) {
        const double length = sqrt(static_cast<double>(gram[j * n + j]));
        lengths[j] = length;
        // Squares below 1e-30 have lost digits to f32's subnormal range.
        sound = sound && isfinite(length) && length > 1e-15;
    }
    sound = __syncthreads_and(sound);
    if (sound && !factorize(gram, lengths, factor, column, n, 0, shift)) {
        __syncthreads();
        sound = factorize(gram, lengths, factor, column, n, shift, 0);
    }
    __syncthreads();
    if (threadIdx.x == 0) notes[0] = sound, notes[1] = distance;
    for (uint32_t j = threadIdx.x; j < n; j += blockDim.x) {
        diagonal[j] = sound ? factor[j * n + j] * lengths[j] : 0;
        if (!sound) continue;
        // Column j of L^-1, by this thread; zero above its diagonal, so that all threads of a warp read the same elements of L.
        const uint32_t first = j / 32 * 32;
        for (uint32_t i = first; i < n; i++) {
            double sum = i == j ? 1 : 0;
            for (uint32_t k = first; k < i; k++) sum -= factor[k * n + i] * solved[k * n + j];
            solved[i * n + j] = i < j ? 0 : sum / factor[i * n + i];
        }
    }
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < n * n; at += blockDim.x) {
        const uint32_t i = at / n, j = at % n;
        const double x = sound ? (i <= j ? solved[j * n + i] / lengths[i] : 0) : (i == j ? 1 : 0);
        inverse[at] = static_cast<T>(x);
    }
}

extern "C" __global__ void cholesky_inverse_f32(const float *gram, float *inverse, double *notes, double *scratch, uint32_t n, double shift) {
    cholesky_inverse<float>(gram, inverse, notes, scratch, n, shift);
}
