// Operations of training on NVIDIA GPUs, each one pass over its numbers where candle's operations make many.
//
// Sums are in f32, and in an order that depends on the sizes alone, so a result repeats bit for bit. Numbers of half precision are read and
// written as bf16 and computed with in f32. A kernel of name `x_f32` or `x_bf16` has these numbers, `x_f32_bf16` f32 and bf16; kernels that
// end in `_4` take four numbers of a row at a time, for rows and places in memory that are multiples of four.
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// V consecutive numbers in f32.
__device__ __forceinline__ void load(const float *p, float (&v)[1]) { v[0] = *p; }
__device__ __forceinline__ void load(const bf16 *p, float (&v)[1]) { v[0] = __bfloat162float(*p); }
__device__ __forceinline__ void load(const float *p, float (&v)[4]) {
    const float4 x = *reinterpret_cast<const float4 *>(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
__device__ __forceinline__ void load(const bf16 *p, float (&v)[4]) {
    const __nv_bfloat162 *pairs = reinterpret_cast<const __nv_bfloat162 *>(p);
    const float2 low = __bfloat1622float2(pairs[0]), high = __bfloat1622float2(pairs[1]);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}
__device__ __forceinline__ void store(float *p, const float (&v)[1]) { *p = v[0]; }
__device__ __forceinline__ void store(bf16 *p, const float (&v)[1]) { *p = __float2bfloat16(v[0]); }
__device__ __forceinline__ void store(float *p, const float (&v)[4]) { *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ void store(bf16 *p, const float (&v)[4]) {
    __nv_bfloat162 *pairs = reinterpret_cast<__nv_bfloat162 *>(p);
    pairs[0] = __floats2bfloat162_rn(v[0], v[1]);
    pairs[1] = __floats2bfloat162_rn(v[2], v[3]);
}

// Over the 32 threads of a warp; each gets the result.
__device__ __forceinline__ float warp_sum(float x) {
    for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, other));
    return x;
}

// A row of numbers by one warp: `body` sees V of them at a time, from the place i on.
#define FOR_ROW(i, from, to) for (uint32_t i = (from) + V * (threadIdx.x % 32); i < (to); i += 32 * V)
#define ROW_OF_WARP (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32)

// What a row of scores sees: keys from `start` to `live`, and where the row lies.
struct CausalRow {
    uint32_t start, live;
    size_t place;
    __device__ __forceinline__ bool sees(uint32_t key) const { return key >= start && key < live; }
};

__device__ __forceinline__ CausalRow causal_row(uint32_t row, const float *starts, uint32_t rows, uint32_t keys, uint32_t first, uint32_t heads,
                                                uint32_t length) {
    const uint32_t query = first + row % rows, live = query + 1 < keys ? query + 1 : keys;
    const uint32_t start = starts ? static_cast<uint32_t>(starts[row / rows / heads * length + query]) : 0;
    return {start, live, static_cast<size_t>(row) * keys};
}

// The largest score that a row sees, by a warp.
template <int V, typename T>
__device__ __forceinline__ float largest(const T *s, const CausalRow &row) {
    float v[V], most = -INFINITY;
    FOR_ROW(i, 0, row.live) {
        load(s + i, v);
        for (int k = 0; k < V; k++)
            if (row.sees(i + k)) most = fmaxf(most, v[k]);
    }
    return warp_max(most);
}

// p = softmax(scale s) of each row of scores (tasks, rows, keys), where row r of a task is query first + r, which sees the keys up to its own
// and, with `starts` (sequences, length), from that of its document on. What it does not see is 0.
template <typename T, int V>
__device__ void causal_softmax(const T *s, const float *starts, T *p, uint32_t tasks, uint32_t rows, uint32_t keys, uint32_t first, uint32_t heads,
                               uint32_t length, float scale) {
    const uint32_t index = ROW_OF_WARP;
    if (index >= tasks * rows) return;
    const CausalRow row = causal_row(index, starts, rows, keys, first, heads, length);
    s += row.place, p += row.place;
    const float most = largest<V>(s, row);
    float v[V], sum = 0;
    FOR_ROW(i, 0, row.live) {
        load(s + i, v);
        for (int k = 0; k < V; k++)
            if (row.sees(i + k)) sum += expf(scale * (v[k] - most));
    }
    const float inverse = 1 / warp_sum(sum);
    FOR_ROW(i, 0, keys) {
        float out[V];
        for (int k = 0; k < V; k++) out[k] = 0;
        if (i < row.live) {
            load(s + i, v);
            for (int k = 0; k < V; k++)
                if (row.sees(i + k)) out[k] = inverse * expf(scale * (v[k] - most));
        }
        store(p + i, out);
    }
}

// p of causal_softmax, and with the gradient dp by p that by s: ds = scale p (dp - sum p dp).
template <typename T, int V>
__device__ void causal_softmax_backward(const T *s, const T *dp, const float *starts, T *p, T *ds, uint32_t tasks, uint32_t rows, uint32_t keys,
                                        uint32_t first, uint32_t heads, uint32_t length, float scale) {
    const uint32_t index = ROW_OF_WARP;
    if (index >= tasks * rows) return;
    const CausalRow row = causal_row(index, starts, rows, keys, first, heads, length);
    s += row.place, dp += row.place, p += row.place, ds += row.place;
    const float most = largest<V>(s, row);
    float v[V], d[V], sum = 0, along = 0;
    FOR_ROW(i, 0, row.live) {
        load(s + i, v), load(dp + i, d);
        for (int k = 0; k < V; k++)
            if (row.sees(i + k)) {
                const float e = expf(scale * (v[k] - most));
                sum += e, along += e * d[k];
            }
    }
    const float inverse = 1 / warp_sum(sum);
    along = inverse * warp_sum(along);
    FOR_ROW(i, 0, keys) {
        float probability[V], gradient[V];
        for (int k = 0; k < V; k++) probability[k] = gradient[k] = 0;
        if (i < row.live) {
            load(s + i, v), load(dp + i, d);
            for (int k = 0; k < V; k++)
                if (row.sees(i + k)) {
                    probability[k] = inverse * expf(scale * (v[k] - most));
                    gradient[k] = scale * probability[k] * (d[k] - along);
                }
        }
        store(p + i, probability), store(ds + i, gradient);
    }
}

// The sum, or the largest, over all threads of a block of up to 1024; each gets the result.
template <bool SUM>
__device__ float over_block(float x) {
    __shared__ float parts[32];
    x = SUM ? warp_sum(x) : warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    const float own = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : (SUM ? 0 : -INFINITY);
    return SUM ? warp_sum(own) : warp_max(own);
}

// Loss of each row of logits (rows, width) against its target, and, where wanted, the gradient factor (softmax - onehot) by the logits. One
// block for each row. A target outside of the vocabulary has no loss that is a number.
template <typename T, int V>
__device__ void cross_entropy(const T *logits, const uint32_t *targets, float *losses, T *gradient, uint32_t width, float factor) {
    const size_t place = static_cast<size_t>(blockIdx.x) * width;
    const uint32_t target = targets[blockIdx.x];
    logits += place;
    float v[V], most = -INFINITY, sum = 0;
    for (uint32_t i = V * threadIdx.x; i < width; i += V * blockDim.x) {
        load(logits + i, v);
        for (int k = 0; k < V; k++) most = fmaxf(most, v[k]);
    }
    most = over_block<false>(most);
    for (uint32_t i = V * threadIdx.x; i < width; i += V * blockDim.x) {
        load(logits + i, v);
        for (int k = 0; k < V; k++) sum += expf(v[k] - most);
    }
    sum = over_block<true>(sum);
    if (threadIdx.x == 0) {
        float at_target[1] = {NAN};
        if (target < width) load(logits + target, at_target);
        losses[blockIdx.x] = logf(sum) + most - at_target[0];
    }
    if (!gradient) return;
    gradient += place;
    for (uint32_t i = V * threadIdx.x; i < width; i += V * blockDim.x) {
        load(logits + i, v);
        for (int k = 0; k < V; k++) v[k] = factor * (expf(v[k] - most) / sum - (i + k == target ? 1 : 0));
        store(gradient + i, v);
    }
}

// Mean (0 where nothing is taken off) and 1 / sqrt(variance + epsilon) of a row, by a warp.
template <int V>
__device__ float2 statistics(const float *x, uint32_t width, float epsilon, bool centered) {
    float v[V], sum = 0;
    if (centered) {
        FOR_ROW(i, 0, width) {
            load(x + i, v);
            for (int k = 0; k < V; k++) sum += v[k];
        }
    }
    const float mean = centered ? warp_sum(sum) / width : 0;
    float squares = 0;
    FOR_ROW(i, 0, width) {
        load(x + i, v);
        for (int k = 0; k < V; k++) squares += (v[k] - mean) * (v[k] - mean);
    }
    return make_float2(mean, 1 / sqrtf(warp_sum(squares) / width + epsilon));
}

// y = w (x - mean) / sqrt(variance + epsilon) + b of each row of x (rows, width); b may be absent.
template <typename T, int V>
__device__ void norm(const float *x, const float *w, const float *b, T *y, uint32_t rows, uint32_t width, float epsilon, uint32_t centered) {
    const uint32_t row = ROW_OF_WARP;
    if (row >= rows) return;
    x += static_cast<size_t>(row) * width, y += static_cast<size_t>(row) * width;
    const float2 of_row = statistics<V>(x, width, epsilon, centered);
    FOR_ROW(i, 0, width) {
        float v[V], weight[V], bias[V];
        load(x + i, v), load(w + i, weight);
        for (int k = 0; k < V; k++) v[k] = (v[k] - of_row.x) * of_row.y * weight[k];
        if (b) {
            load(b + i, bias);
            for (int k = 0; k < V; k++) v[k] += bias[k];
        }
        store(y + i, v);
    }
}

// dx, and the statistics of each row for norm_parameters.
template <typename T, int V>
__device__ void norm_backward(const float *x, const float *w, const T *delta, float *dx, float2 *of_rows, uint32_t rows, uint32_t width,
                              float epsilon, uint32_t centered) {
    const uint32_t row = ROW_OF_WARP;
    if (row >= rows) return;
    const size_t place = static_cast<size_t>(row) * width;
    x += place, delta += place, dx += place;
    const float2 of_row = statistics<V>(x, width, epsilon, centered);
    float v[V], weight[V], d[V], sum = 0, along = 0;
    FOR_ROW(i, 0, width) {
        load(x + i, v), load(w + i, weight), load(delta + i, d);
        for (int k = 0; k < V; k++) {
            const float g = weight[k] * d[k];
            sum += g, along += g * (v[k] - of_row.x);
        }
    }
    const float mean = centered ? warp_sum(sum) / width : 0;
    along = warp_sum(along) * of_row.y / width;
    FOR_ROW(i, 0, width) {
        load(x + i, v), load(w + i, weight), load(delta + i, d);
        for (int k = 0; k < V; k++) v[k] = (weight[k] * d[k] - mean - (v[k] - of_row.x) * of_row.y * along) * of_row.y;
        store(dx + i, v);
    }
    if (threadIdx.x % 32 == 0) of_rows[row] = of_row;
}

// Sums over `count` rows each, one thread for a column: of delta times the normed rows, and of delta where wanted.
template <typename T>
__device__ void norm_parameters(const float *x, const T *delta, const float2 *of_rows, float *dw, float *db, uint32_t rows, uint32_t width,
                                uint32_t count) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * count;
    if (column >= width) return;
    const uint32_t end = first + count < rows ? first + count : rows;
    float w = 0, b = 0, d[1];
    for (uint32_t row = first; row < end; row++) {
        const size_t place = static_cast<size_t>(row) * width + column;
        load(delta + place, d);
        w += d[0] * (x[place] - of_rows[row].x) * of_rows[row].y;
        b += d[0];
    }
    const size_t place = static_cast<size_t>(blockIdx.y) * width + column;
    dw[place] = w;
    if (db) db[place] = b;
}

// Sums over `count` rows each of x (rows, width).
template <typename T>
__device__ void column_sums(const T *x, float *out, uint32_t rows, uint32_t width, uint32_t count) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * count;
    if (column >= width) return;
    const uint32_t end = first + count < rows ? first + count : rows;
    float sum = 0, v[1];
    for (uint32_t row = first; row < end; row++) {
        load(x + static_cast<size_t>(row) * width + column, v);
        sum += v[0];
    }
    out[static_cast<size_t>(blockIdx.y) * width + column] = sum;
}

// V numbers of this thread, of `count` in all.
#define FOR_EACH(i, count)                                                                   \
    const size_t i = V * (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x); \
    if (i < (count))

// y = f(a) and y = f(a, b), number by number.
template <int V, typename A, typename Y, typename F>
__device__ __forceinline__ void map(const A *a, Y *y, size_t count, F f) {
    FOR_EACH(i, count) {
        float v[V];
        load(a + i, v);
        for (int k = 0; k < V; k++) v[k] = f(v[k]);
        store(y + i, v);
    }
}
template <int V, typename A, typename B, typename Y, typename F>
__device__ __forceinline__ void map(const A *a, const B *b, Y *y, size_t count, F f) {
    FOR_EACH(i, count) {
        float v[V], w[V];
        load(a + i, v), load(b + i, w);
        for (int k = 0; k < V; k++) v[k] = f(v[k], w[k]);
        store(y + i, v);
    }
}

// The tanh form of GELU: x s(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
#define ROOT 0.7978845608028654f
#define CUBIC 0.044715f
__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }
__device__ __forceinline__ float gelu_gate(float x) { return sigmoid(2 * ROOT * x * (1 + CUBIC * x * x)); }

template <typename T, int V>
__device__ void gelu(const T *x, T *y, size_t count) {
    map<V>(x, y, count, [](float x) { return x * gelu_gate(x); });
}

template <typename T, int V>
__device__ void gelu_backward(const T *x, const T *delta, T *dx, size_t count) {
    map<V>(x, delta, dx, count, [](float x, float delta) {
        // Beyond 10 the slope is 0 or 1 to the last bit, and the square of a huge x would overflow.
        x = fminf(fmaxf(x, -10.0f), 10.0f);
        const float s = gelu_gate(x);
        return delta * s * (1 + x * (1 - s) * (2 * ROOT * (1 + 3 * CUBIC * x * x)));
    });
}

// gate s(gate) up.
template <typename T, int V>
__device__ void swiglu(const T *gate, const T *up, T *y, size_t count) {
    map<V>(gate, up, y, count, [](float gate, float up) { return gate * sigmoid(gate) * up; });
}

template <typename T, int V>
__device__ void swiglu_backward(const T *gate, const T *up, const T *delta, T *d_gate, T *d_up, size_t count) {
    FOR_EACH(i, count) {
        float g[V], u[V], d[V];
        load(gate + i, g), load(up + i, u), load(delta + i, d);
        for (int k = 0; k < V; k++) {
            // Beyond 88 the slope is 0 or 1, and 0 times infinity would be none.
            const float x = fminf(fmaxf(g[k], -88.0f), 88.0f), s = sigmoid(x);
            u[k] = d[k] * u[k] * (s * (1 + x * (1 - s)));
            d[k] *= g[k] * s;
        }
        store(d_gate + i, u), store(d_up + i, d);
    }
}

// y + b on each row of y, `width` numbers.
template <typename T, int V>
__device__ void add_bias(const T *y, const float *b, T *out, size_t count, uint32_t width) {
    FOR_EACH(i, count) {
        float v[V], bias[V];
        load(y + i, v), load(b + i % width, bias);
        for (int k = 0; k < V; k++) v[k] += bias[k];
        store(out + i, v);
    }
}

// a + b in f32.
template <typename T, int V>
__device__ void add(const float *a, const T *b, float *out, size_t count) {
    map<V>(a, b, out, count, [](float a, float b) { return a + b; });
}

// Every head of every row turned by the angles of the row's position, of which there are `positions`: x (rows, heads, 2 half).
template <typename T>
__device__ void rotary(const T *x, const float *cosines, const float *sines, T *y, size_t pairs, uint32_t positions, uint32_t heads,
                       uint32_t half) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    const uint32_t j = i % half;
    const size_t head = i / half, at = head * 2 * half + j, angle = head / heads % positions * half + j;
    float low[1], high[1];
    load(x + at, low), load(x + at + half, high);
    const float c = cosines[angle], s = sines[angle];
    const float turned[2][1] = {{low[0] * c - high[0] * s}, {high[0] * c + low[0] * s}};
    store(y + at, turned[0]), store(y + at + half, turned[1]);
}

// (outer, a, b, inner) as (outer, b, a, inner), in units of some bytes.
template <typename U>
__device__ void swap_axes(const U *x, U *y, size_t count, uint32_t a, uint32_t b, uint32_t inner) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const uint32_t in = i % inner;
    const size_t rest = i / inner;
    const uint32_t at_a = rest % a;
    const size_t upper = rest / a;
    const uint32_t at_b = upper % b;
    y[i] = x[((upper / b * a + at_a) * b + at_b) * inner + in];
}

// table[id] = the sum of the rows of delta (rows, width) whose id it is, in their order; the table was zero. A block for each row and 256
// columns: the first row of an id sums those of all.
__device__ void embedding_gradient(const uint32_t *ids, const float *delta, float *table, uint32_t rows, uint32_t width, uint32_t vocabulary) {
    __shared__ uint32_t in_warps[8];
    const uint32_t own = blockIdx.x, id = ids[own], column = blockIdx.y * blockDim.x + threadIdx.x;
    int earlier = 0;
    for (uint32_t row = threadIdx.x; row < own && !earlier; row += blockDim.x) earlier = ids[row] == id;
    if (__syncthreads_or(earlier) || id >= vocabulary) return;
    float sum = 0;
    for (uint32_t first = own; first < rows; first += blockDim.x) {
        const uint32_t row = first + threadIdx.x;
        const uint32_t matches = __ballot_sync(0xffffffffu, row < rows && ids[row] == id);
        if (threadIdx.x % 32 == 0) in_warps[threadIdx.x / 32] = matches;
        __syncthreads();
        for (uint32_t warp = 0; warp < blockDim.x / 32; warp++)
            for (uint32_t rest = in_warps[warp]; rest; rest &= rest - 1) {
                const uint32_t match = first + 32 * warp + __ffs(rest) - 1;
                if (column < width) sum += delta[static_cast<size_t>(match) * width + column];
            }
        __syncthreads();
    }
    if (column < width) table[static_cast<size_t>(id) * width + column] = sum;
}

#define KERNEL extern "C" __global__ void

#define OF_TYPE(T, NAME, V, SUFFIX)                                                                                                              \
    KERNEL causal_softmax_##NAME##SUFFIX(const T *s, const float *starts, T *p, uint32_t tasks, uint32_t rows, uint32_t keys, uint32_t first,    \
                                         uint32_t heads, uint32_t length, float scale) {                                                        \
        causal_softmax<T, V>(s, starts, p, tasks, rows, keys, first, heads, length, scale);                                                      \
    }                                                                                                                                            \
    KERNEL causal_softmax_backward_##NAME##SUFFIX(const T *s, const T *dp, const float *starts, T *p, T *ds, uint32_t tasks, uint32_t rows,      \
                                                  uint32_t keys, uint32_t first, uint32_t heads, uint32_t length, float scale) {                 \
        causal_softmax_backward<T, V>(s, dp, starts, p, ds, tasks, rows, keys, first, heads, length, scale);                                     \
    }                                                                                                                                            \
    KERNEL cross_entropy_##NAME##SUFFIX(const T *logits, const uint32_t *targets, float *losses, T *gradient, uint32_t width, float factor) {    \
        cross_entropy<T, V>(logits, targets, losses, gradient, width, factor);                                                                   \
    }                                                                                                                                            \
    KERNEL norm_##NAME##SUFFIX(const float *x, const float *w, const float *b, T *y, uint32_t rows, uint32_t width, float epsilon,               \
                               uint32_t centered) {                                                                                              \
        norm<T, V>(x, w, b, y, rows, width, epsilon, centered);                                                                                  \
    }                                                                                                                                            \
    KERNEL norm_backward_##NAME##SUFFIX(const float *x, const float *w, const T *delta, float *dx, float2 *of_rows, uint32_t rows,               \
                                        uint32_t width, float epsilon, uint32_t centered) {                                                      \
        norm_backward<T, V>(x, w, delta, dx, of_rows, rows, width, epsilon, centered);                                                           \
    }                                                                                                                                            \
    KERNEL gelu_##NAME##SUFFIX(const T *x, T *y, size_t count) { gelu<T, V>(x, y, count); }                                                      \
    KERNEL gelu_backward_##NAME##SUFFIX(const T *x, const T *delta, T *dx, size_t count) { gelu_backward<T, V>(x, delta, dx, count); }           \
    KERNEL swiglu_##NAME##SUFFIX(const T *gate, const T *up, T *y, size_t count) { swiglu<T, V>(gate, up, y, count); }                           \
    KERNEL swiglu_backward_##NAME##SUFFIX(const T *gate, const T *up, const T *delta, T *d_gate, T *d_up, size_t count) {                        \
        swiglu_backward<T, V>(gate, up, delta, d_gate, d_up, count);                                                                             \
    }                                                                                                                                            \
    KERNEL add_bias_##NAME##SUFFIX(const T *y, const float *b, T *out, size_t count, uint32_t width) { add_bias<T, V>(y, b, out, count, width); } \
    KERNEL add_f32_##NAME##SUFFIX(const float *a, const T *b, float *out, size_t count) { add<T, V>(a, b, out, count); }

OF_TYPE(float, f32, 1, )
OF_TYPE(float, f32, 4, _4)
OF_TYPE(bf16, bf16, 1, )
OF_TYPE(bf16, bf16, 4, _4)

#define BY_COLUMN(T, NAME)                                                                                                                       \
    KERNEL norm_parameters_##NAME(const float *x, const T *delta, const float2 *of_rows, float *dw, float *db, uint32_t rows, uint32_t width,    \
                                  uint32_t count) {                                                                                              \
        norm_parameters<T>(x, delta, of_rows, dw, db, rows, width, count);                                                                       \
    }                                                                                                                                            \
    KERNEL column_sums_##NAME(const T *x, float *out, uint32_t rows, uint32_t width, uint32_t count) { column_sums<T>(x, out, rows, width, count); } \
    KERNEL rotary_##NAME(const T *x, const float *cosines, const float *sines, T *y, size_t pairs, uint32_t positions, uint32_t heads,           \
                         uint32_t half) {                                                                                                        \
        rotary<T>(x, cosines, sines, y, pairs, positions, heads, half);                                                                          \
    }

BY_COLUMN(float, f32)
BY_COLUMN(bf16, bf16)

#define OF_UNIT(U, BYTES)                                                                                              \
    KERNEL swap_axes_##BYTES(const U *x, U *y, size_t count, uint32_t a, uint32_t b, uint32_t inner) { swap_axes<U>(x, y, count, a, b, inner); }

OF_UNIT(uint16_t, 2)
OF_UNIT(uint32_t, 4)
OF_UNIT(uint2, 8)
OF_UNIT(uint4, 16)

KERNEL embedding_gradient_f32(const uint32_t *ids, const float *delta, float *table, uint32_t rows, uint32_t width, uint32_t vocabulary) {
    embedding_gradient(ids, delta, table, rows, width, vocabulary);
}
