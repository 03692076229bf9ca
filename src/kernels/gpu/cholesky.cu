// Cholesky factors of Gram matrices and their inverses, in f64, a block of threads for each matrix, which is taken in tiles of 32 x 32.
#include <stdint.h>

#define TILE 32
// The larger steps are functions of their own: together they would ask for more registers than a thread has.

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

// A square matrix of `size` numbers a side, a multiple of the tile; element (i, j) is in place j size + i, so that threads of neighbouring rows
// read neighbouring places.
struct Square {
    double *numbers;
    uint32_t size;
    __device__ double &operator()(uint32_t i, uint32_t j) const { return numbers[static_cast<size_t>(j) * size + i]; }
};

// tile[k][r] = matrix(row + r, column + k).
__device__ void fetch(const Square &matrix, uint32_t row, uint32_t column, double (*tile)[TILE]) {
    for (uint32_t at = threadIdx.x; at < TILE * TILE; at += blockDim.x) tile[at / TILE][at % TILE] = matrix(row + at % TILE, column + at / TILE);
    __syncthreads();
}

// L L^T of the tile on the diagonal from `first` on, by the first warp; `inverse` gets 1 / L_kk. False if a pivot falls below `least`.
__device__ __noinline__ bool factorize_tile(const Square &matrix, uint32_t first, double least, double *inverse) {
    __shared__ double tile[TILE][TILE + 1];
    __shared__ int sound;
    if (threadIdx.x < TILE) {
        const uint32_t i = threadIdx.x;
        for (uint32_t j = 0; j < TILE; j++) tile[i][j] = matrix(first + i, first + j);
        __syncwarp();
        bool own = true;
        for (uint32_t k = 0; k < TILE && own; k++) {
            const double pivot = tile[k][k];
            // All threads see the same pivot.
            own = pivot > 0 && pivot >= least;
            if (!own) break;
            const double root = sqrt(pivot);
            const double factor = i == k ? root : tile[i][k] / root;
            __syncwarp();
            if (i >= k) tile[i][k] = factor;
            if (i == k) inverse[k] = 1 / root;
            __syncwarp();
            for (uint32_t j = k + 1; j <= i; j++) tile[i][j] -= factor * tile[j][k];
            __syncwarp();
        }
        for (uint32_t j = 0; j <= i; j++) matrix(first + i, first + j) = tile[i][j];
        if (i == 0) sound = own;
    }
    __syncthreads();
    return sound;
}

// The rows of L below a tile of the diagonal: L_i = A_i L_kk^-T, a thread for each.
__device__ __noinline__ void solve_below(const Square &matrix, uint32_t first, double (*tile)[TILE], const double *inverse) {
    fetch(matrix, first, first, tile);
    for (uint32_t i = first + TILE + threadIdx.x; i < matrix.size; i += blockDim.x) {
        double row[TILE];
#pragma unroll
        for (uint32_t c = 0; c < TILE; c++) row[c] = matrix(i, first + c);
#pragma unroll
        for (uint32_t c = 0; c < TILE; c++) {
            row[c] *= inverse[c];
#pragma unroll
            for (uint32_t later = c + 1; later < TILE; later++) row[later] -= row[c] * tile[c][later];
        }
#pragma unroll
        for (uint32_t c = 0; c < TILE; c++) matrix(i, first + c) = row[c];
    }
    __syncthreads();
}

// A -= L_first L_first^T on and below the diagonal, to the right of the tiles from `first` on.
__device__ __noinline__ void update_rest(const Square &matrix, uint32_t first, double (*tile)[TILE]) {
    for (uint32_t column = first + TILE; column < matrix.size; column += TILE) {
        fetch(matrix, column, first, tile);
        for (uint32_t i = column + threadIdx.x; i < matrix.size; i += blockDim.x) {
            double row[TILE];
#pragma unroll
            for (uint32_t k = 0; k < TILE; k++) row[k] = matrix(i, first + k);
            for (uint32_t c = 0; c < TILE; c += 4) {
                double sums[4];
#pragma unroll
                for (uint32_t s = 0; s < 4; s++) sums[s] = matrix(i, column + c + s);
#pragma unroll
                for (uint32_t k = 0; k < TILE; k++)
#pragma unroll
                    for (uint32_t s = 0; s < 4; s++) sums[s] -= row[k] * tile[k][c + s];
#pragma unroll
                for (uint32_t s = 0; s < 4; s++) matrix(i, column + c + s) = sums[s];
            }
        }
        __syncthreads();
    }
}

// L with L L^T = D^-1 G D^-1 + shift I for the lengths D; false if a pivot falls below `least`. What stands above the diagonal is no part of it.
__device__ bool factorize(const float *gram, const double *lengths, const Square &factor, uint32_t n, double shift, double least,
                          double (*tile)[TILE]) {
    __shared__ double inverse[TILE];
    for (uint32_t at = threadIdx.x; at < factor.size * factor.size; at += blockDim.x) {
        const uint32_t j = at / factor.size, i = at % factor.size;
        const bool inside = i < n && j < n;
        factor.numbers[at] = i == j ? (inside ? 1 + shift : 1) : inside ? static_cast<double>(gram[j * n + i]) / (lengths[i] * lengths[j]) : 0;
    }
    __syncthreads();
    for (uint32_t first = 0; first < factor.size; first += TILE) {
        if (!factorize_tile(factor, first, least, inverse)) return false;
        solve_below(factor, first, tile, inverse);
        update_rest(factor, first, tile);
    }
    return true;
}

// L^-1, a thread for each column, tile by tile of its rows.
__device__ __noinline__ void invert(const Square &factor, const Square &inverse, double (*tile)[TILE]) {
    const uint32_t columns = (factor.size + blockDim.x - 1) / blockDim.x * blockDim.x;
    for (uint32_t row = 0; row < factor.size; row += TILE)
        // Every thread comes along, since all fetch the tiles.
        for (uint32_t j = threadIdx.x; j < columns; j += blockDim.x) {
            const bool has_column = j < factor.size;
            double sums[TILE];
#pragma unroll
            for (uint32_t r = 0; r < TILE; r++) sums[r] = row + r == j ? 1 : 0;
            for (uint32_t before = 0; before < row; before += TILE) {
                fetch(factor, row, before, tile);
                if (has_column)
                    for (uint32_t k = 0; k < TILE; k++) {
                        const double x = inverse(j, before + k);
#pragma unroll
                        for (uint32_t r = 0; r < TILE; r++) sums[r] -= tile[k][r] * x;
                    }
                __syncthreads();
            }
            fetch(factor, row, row, tile);
            if (has_column) {
#pragma unroll
                for (uint32_t r = 0; r < TILE; r++) {
                    const double x = sums[r] / tile[r][r];
#pragma unroll
                    for (uint32_t later = r + 1; later < TILE; later++) sums[later] -= tile[r][later] * x;
                    inverse(j, row + r) = x;
                }
            }
            __syncthreads();
        }
}

// R^-1 for R^T R = G, upper triangular, with what decides about the matrix in `notes`: whether it has a factor at all (then 1), the distance
// of G from I, R's diagonal, and the lengths of the columns, 2 n + 2 numbers. Scaled to unit diagonal, and shifted by `shift` where a pivot
// falls below it. Without a factor R^-1 is I. `scratch` is two matrices of f64 whose sides are `padded`, n up to a multiple of the tile.
extern "C" __global__ void __launch_bounds__(256) cholesky_inverse_f32(const float *gram, float *inverse, double *notes, double *scratch, uint32_t n, uint32_t padded,
                                                double shift) {
    __shared__ double tile[TILE][TILE];
    const size_t place = static_cast<size_t>(blockIdx.x) * n * n, numbers = static_cast<size_t>(padded) * padded;
    gram += place, inverse += place, scratch += 2 * blockIdx.x * numbers, notes += static_cast<size_t>(blockIdx.x) * (2 * n + 2);
    // The inverse is written with rows and columns in each other's place: that of R is wanted.
    const Square factor = {scratch, padded}, solved = {scratch + numbers, padded};
    double *diagonal = notes + 2, *lengths = notes + 2 + n;
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
    if (sound && !factorize(gram, lengths, factor, n, 0, shift, tile)) {
        __syncthreads();
        sound = factorize(gram, lengths, factor, n, shift, 0, tile);
    }
    __syncthreads();
    if (threadIdx.x == 0) notes[0] = sound, notes[1] = distance;
    for (uint32_t j = threadIdx.x; j < n; j += blockDim.x) diagonal[j] = sound ? factor(j, j) * lengths[j] : 0;
    if (sound) invert(factor, solved, tile);
    for (uint32_t at = threadIdx.x; at < n * n; at += blockDim.x) {
        const uint32_t i = at / n, j = at % n;
        // R = L^T D, so R^-1 = D^-1 L^-T.
        inverse[at] = static_cast<float>(!sound ? (i == j ? 1 : 0) : i <= j ? solved(i, j) / lengths[i] : 0);
    }
}
