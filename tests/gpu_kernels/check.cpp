// Every kernel of src/kernels/gpu against its formula in f64, in f32 and bf16, one number and four numbers at a time. Prints a line for each and
// ends with 1 if one is off.
#include "cuda_bf16.h"

#include "../../src/kernels/gpu/cholesky.cu"
#include "../../src/kernels/gpu/operations.cu"

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>

namespace {

std::mt19937 random_bits(1);
bool all_agree = true;

template <typename T>
T number_of(double x) {
    if constexpr (std::is_same_v<T, float>) return static_cast<float>(x);
    else return __float2bfloat16(static_cast<float>(x));
}
double wide(float x) { return x; }
double wide(bf16 x) { return __bfloat162float(x); }

template <typename T>
std::vector<T> draw(size_t count) {
    std::normal_distribution<double> normal;
    std::vector<T> numbers(count);
    for (auto &x : numbers) x = number_of<T>(normal(random_bits));
    return numbers;
}
// Filled with what no kernel writes.
template <typename T>
std::vector<T> unwritten(size_t count) { return std::vector<T>(count, number_of<T>(NAN)); }

template <typename T>
void check(const std::string &what, const std::vector<T> &found, const std::vector<double> &expected) {
    const double bound = std::is_same_v<T, bf16> ? 8e-3 : 2e-6;
    double largest = 1e-30, error = found.size() == expected.size() ? 0 : NAN;
    for (double x : expected) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < expected.size(); i++) {
        const double distance = std::fabs(wide(found[i]) - expected[i]);
        error = std::isnan(distance) ? NAN : std::max(error, distance / largest);
    }
    const bool agrees = error <= bound;
    all_agree = all_agree && agrees;
    std::printf("%s %s %.1e\n", agrees ? "ok  " : "MISS", what.c_str(), error);
}

unsigned warps_of_eight(size_t rows) { return (rows + 7) / 8; }
unsigned threads_of_256(size_t count) { return (count + 255) / 256; }

// Of each kernel that is there for both types and both widths.
template <typename T>
struct Of;
#define KERNELS(T, NAME)                                                                                                             \
    template <>                                                                                                                      \
    struct Of<T> {                                                                                                                   \
        static constexpr const char *name = #NAME;                                                                                   \
        static constexpr auto causal_softmax = std::make_pair(causal_softmax_##NAME, causal_softmax_##NAME##_4);                     \
        static constexpr auto softmax_backward = std::make_pair(causal_softmax_backward_##NAME, causal_softmax_backward_##NAME##_4); \
        static constexpr auto cross_entropy = std::make_pair(cross_entropy_##NAME, cross_entropy_##NAME##_4);                        \
        static constexpr auto norm = std::make_pair(norm_##NAME, norm_##NAME##_4);                                                   \
        static constexpr auto norm_backward = std::make_pair(norm_backward_##NAME, norm_backward_##NAME##_4);                        \
        static constexpr auto gelu = std::make_pair(gelu_##NAME, gelu_##NAME##_4);                                                   \
        static constexpr auto gelu_backward = std::make_pair(gelu_backward_##NAME, gelu_backward_##NAME##_4);                        \
        static constexpr auto swiglu = std::make_pair(swiglu_##NAME, swiglu_##NAME##_4);                                             \
        static constexpr auto swiglu_backward = std::make_pair(swiglu_backward_##NAME, swiglu_backward_##NAME##_4);                  \
        static constexpr auto add_bias = std::make_pair(add_bias_##NAME, add_bias_##NAME##_4);                                       \
        static constexpr auto add = std::make_pair(add_f32_##NAME, add_f32_##NAME##_4);                                              \
        static constexpr auto norm_parameters = norm_parameters_##NAME;                                                              \
        static constexpr auto column_sums = column_sums_##NAME;                                                                      \
        static constexpr auto rotary = rotary_##NAME;                                                                                \
    };
KERNELS(float, f32)
KERNELS(bf16, bf16)

template <typename Pair>
auto of_width(const Pair &pair, bool by_four) { return by_four ? pair.second : pair.first; }

template <typename T>
void attention(bool by_four) {
    const uint32_t tasks = 6, rows = 5, keys = 12, first = 7, heads = 3, length = 12;
    const double scale = 0.3;
    const size_t count = tasks * rows * keys;
    const auto s = draw<T>(count), dp = draw<T>(count);
    std::vector<float> starts(2 * length);
    for (uint32_t i = 0; i < starts.size(); i++) starts[i] = i % length / 4 * 4;
    for (const float *documents : {static_cast<const float *>(nullptr), static_cast<const float *>(starts.data())}) {
        std::vector<double> p(count), ds(count);
        for (uint32_t row = 0; row < tasks * rows; row++) {
            const uint32_t query = first + row % rows, start = documents ? starts[row / rows / heads * length + query] : 0;
            double sum = 0, along = 0;
            for (uint32_t j = start; j <= query; j++) sum += std::exp(scale * wide(s[row * keys + j]));
            for (uint32_t j = start; j <= query; j++) {
                p[row * keys + j] = std::exp(scale * wide(s[row * keys + j])) / sum;
                along += p[row * keys + j] * wide(dp[row * keys + j]);
            }
            for (uint32_t j = start; j <= query; j++) ds[row * keys + j] = scale * p[row * keys + j] * (wide(dp[row * keys + j]) - along);
        }
        auto forward = unwritten<T>(count), again = unwritten<T>(count), gradient = unwritten<T>(count);
        launch(warps_of_eight(tasks * rows), 1, 256, [&] {
            of_width(Of<T>::causal_softmax, by_four)(s.data(), documents, forward.data(), tasks, rows, keys, first, heads, length, scale);
        });
        launch(warps_of_eight(tasks * rows), 1, 256, [&] {
            of_width(Of<T>::softmax_backward, by_four)(s.data(), dp.data(), documents, again.data(), gradient.data(), tasks, rows, keys, first, heads,
                                                       length, scale);
        });
        const std::string what = documents ? " within documents" : "";
        check("softmax" + what, forward, p);
        check("softmax again" + what, again, p);
        check("softmax backward" + what, gradient, ds);
    }
}

template <typename T>
void loss(bool by_four) {
    const uint32_t rows = 3, width = 1000;
    const double factor = 0.25;
    const auto logits = draw<T>(rows * width);
    const std::vector<uint32_t> targets = {5, 999, 0};
    std::vector<double> losses(rows), gradient(rows * width);
    for (uint32_t row = 0; row < rows; row++) {
        double sum = 0;
        for (uint32_t j = 0; j < width; j++) sum += std::exp(wide(logits[row * width + j]));
        losses[row] = std::log(sum) - wide(logits[row * width + targets[row]]);
        for (uint32_t j = 0; j < width; j++) gradient[row * width + j] = factor * (std::exp(wide(logits[row * width + j])) / sum - (j == targets[row]));
    }
    auto found = unwritten<float>(rows), alone = unwritten<float>(rows);
    auto found_gradient = unwritten<T>(rows * width);
    const auto kernel = of_width(Of<T>::cross_entropy, by_four);
    launch(rows, 1, 512, [&] { kernel(logits.data(), targets.data(), found.data(), found_gradient.data(), width, factor); });
    launch(rows, 1, 512, [&] { kernel(logits.data(), targets.data(), alone.data(), nullptr, width, 0); });
    check("loss", found, losses);
    check("loss without gradient", alone, losses);
    check("loss backward", found_gradient, gradient);
    const std::vector<uint32_t> outside = {5, width, 0};
    launch(rows, 1, 512, [&] { kernel(logits.data(), outside.data(), alone.data(), nullptr, width, 0); });
    const bool is_named = std::isnan(alone[1]) && !std::isnan(alone[0]);
    all_agree = all_agree && is_named;
    std::printf("%s a target outside has no loss\n", is_named ? "ok  " : "MISS");
}

template <typename T>
void norms(bool by_four) {
    const uint32_t rows = 70, width = 72, parts = 2, per_part = 64;
    const size_t count = rows * width;
    const float epsilon = 1e-5f;
    const auto x = draw<float>(count), w = draw<float>(width), b = draw<float>(width);
    const auto delta = draw<T>(count);
    for (const bool centered : {true, false}) {
        std::vector<double> y(count), dx(count), dw(width), db(width);
        for (uint32_t row = 0; row < rows; row++) {
            const float *in = &x[row * width];
            const T *d = &delta[row * width];
            double mean = 0, variance = 0, sum = 0, along = 0;
            for (uint32_t j = 0; j < width && centered; j++) mean += in[j] / static_cast<double>(width);
            for (uint32_t j = 0; j < width; j++) variance += (in[j] - mean) * (in[j] - mean) / width;
            const double inverse = 1 / std::sqrt(variance + epsilon);
            for (uint32_t j = 0; j < width; j++) {
                const double hat = (in[j] - mean) * inverse;
                y[row * width + j] = hat * w[j] + b[j];
                sum += centered ? w[j] * wide(d[j]) / width : 0;
                along += w[j] * wide(d[j]) * hat / width;
                dw[j] += wide(d[j]) * hat;
                db[j] += wide(d[j]);
            }
            for (uint32_t j = 0; j < width; j++) dx[row * width + j] = (w[j] * wide(d[j]) - sum - (in[j] - mean) * inverse * along) * inverse;
        }
        auto found = unwritten<T>(count);
        auto found_dx = unwritten<float>(count), dw_parts = unwritten<float>(parts * width), db_parts = dw_parts, found_dw = unwritten<float>(width),
             found_db = found_dw;
        std::vector<float2> of_rows(rows);
        launch(warps_of_eight(rows), 1, 256,
               [&] { of_width(Of<T>::norm, by_four)(x.data(), w.data(), b.data(), found.data(), rows, width, epsilon, centered); });
        launch(warps_of_eight(rows), 1, 256, [&] {
            of_width(Of<T>::norm_backward, by_four)(x.data(), w.data(), delta.data(), found_dx.data(), of_rows.data(), rows, width, epsilon, centered);
        });
        launch(1, parts, 256,
               [&] { Of<T>::norm_parameters(x.data(), delta.data(), of_rows.data(), dw_parts.data(), db_parts.data(), rows, width, per_part); });
        launch(1, 1, 256, [&] { column_sums_f32(dw_parts.data(), found_dw.data(), parts, width, per_part); });
        launch(1, 1, 256, [&] { column_sums_f32(db_parts.data(), found_db.data(), parts, width, per_part); });
        const std::string what = centered ? "layer norm" : "RMS norm";
        check(what, found, y);
        check(what + " dx", found_dx, dx);
        check(what + " dw", found_dw, dw);
        check(what + " db", found_db, db);
        auto sums = unwritten<float>(parts * width);
        launch(1, parts, 256, [&] { Of<T>::column_sums(delta.data(), sums.data(), rows, width, per_part); });
        for (uint32_t j = 0; j < width; j++) sums[j] += sums[width + j];
        sums.resize(width);
        check("column sums", sums, db);
    }
}

template <typename T>
void pointwise(bool by_four) {
    const size_t count = 1000;
    const uint32_t width = 40;
    auto x = draw<T>(count);
    const auto up = draw<T>(count), delta = draw<T>(count);
    const auto wide_x = draw<float>(count), bias = draw<float>(width);
    for (size_t i = 0; i < count; i++) x[i] = number_of<T>(3 * wide(x[i]));
    const double root = std::sqrt(2 / std::acos(-1.0)), cubic = 0.044715;
    const auto gate = [](double x) { return 1 / (1 + std::exp(-x)); };
    std::vector<double> gelu(count), gelu_dx(count), swiglu(count), d_gate(count), d_up(count), biased(count), sum(count);
    for (size_t i = 0; i < count; i++) {
        const double v = wide(x[i]), u = wide(up[i]), d = wide(delta[i]), s = gate(2 * root * (v + cubic * v * v * v)), t = gate(v);
        gelu[i] = v * s;
        gelu_dx[i] = d * (s + v * s * (1 - s) * 2 * root * (1 + 3 * cubic * v * v));
        swiglu[i] = v * t * u;
        d_gate[i] = d * u * (t + v * t * (1 - t));
        d_up[i] = d * v * t;
        biased[i] = v + bias[i % width];
        sum[i] = wide_x[i] + v;
    }
    const unsigned blocks = threads_of_256(by_four ? count / 4 : count);
    auto y = unwritten<T>(count), other = y;
    launch(blocks, 1, 256, [&] { of_width(Of<T>::gelu, by_four)(x.data(), y.data(), count); });
    check("GELU", y, gelu);
    launch(blocks, 1, 256, [&] { of_width(Of<T>::gelu_backward, by_four)(x.data(), delta.data(), y.data(), count); });
    check("GELU backward", y, gelu_dx);
    launch(blocks, 1, 256, [&] { of_width(Of<T>::swiglu, by_four)(x.data(), up.data(), y.data(), count); });
    check("SwiGLU", y, swiglu);
    launch(blocks, 1, 256, [&] { of_width(Of<T>::swiglu_backward, by_four)(x.data(), up.data(), delta.data(), y.data(), other.data(), count); });
    check("SwiGLU backward, gate", y, d_gate);
    check("SwiGLU backward, up", other, d_up);
    launch(blocks, 1, 256, [&] { of_width(Of<T>::add_bias, by_four)(x.data(), bias.data(), y.data(), count, width); });
    check("bias", y, biased);
    auto in_f32 = unwritten<float>(count);
    launch(blocks, 1, 256, [&] { of_width(Of<T>::add, by_four)(wide_x.data(), x.data(), in_f32.data(), count); });
    check("sum", in_f32, sum);
}

template <typename T>
void rotations() {
    const uint32_t rows = 6, heads = 2, half = 4, positions = 3;
    const size_t count = rows * heads * 2 * half;
    const auto x = draw<T>(count);
    const auto cosines = draw<float>(positions * half), sines = draw<float>(positions * half);
    std::vector<double> y(count);
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t head = 0; head < heads; head++)
            for (uint32_t j = 0; j < half; j++) {
                const size_t at = (row * heads + head) * 2 * half + j;
                const double c = cosines[row % positions * half + j], s = sines[row % positions * half + j];
                y[at] = wide(x[at]) * c - wide(x[at + half]) * s;
                y[at + half] = wide(x[at + half]) * c + wide(x[at]) * s;
            }
    auto found = unwritten<T>(count);
    launch(threads_of_256(count / 2), 1, 256,
           [&] { Of<T>::rotary(x.data(), cosines.data(), sines.data(), found.data(), count / 2, positions, heads, half); });
    check("rotary", found, y);
}

template <typename Unit>
void axes(void (*kernel)(const Unit *, Unit *, size_t, uint32_t, uint32_t, uint32_t)) {
    const uint32_t outer = 2, a = 3, b = 4, bytes = 16, inner = bytes / sizeof(Unit);
    std::vector<uint8_t> x(outer * a * b * bytes), y(x.size()), expected(x.size());
    for (auto &byte : x) byte = random_bits();
    for (uint32_t o = 0; o < outer; o++)
        for (uint32_t i = 0; i < a; i++)
            for (uint32_t j = 0; j < b; j++) std::memcpy(&expected[((o * b + j) * a + i) * bytes], &x[((o * a + i) * b + j) * bytes], bytes);
    const size_t count = x.size() / sizeof(Unit);
    launch(threads_of_256(count), 1, 256, [&] { kernel(reinterpret_cast<Unit *>(x.data()), reinterpret_cast<Unit *>(y.data()), count, a, b, inner); });
    all_agree = all_agree && y == expected;
    std::printf("%s axes in units of %zu bytes\n", y == expected ? "ok  " : "MISS", sizeof(Unit));
}

void embeddings() {
    const uint32_t rows = 700, width = 300, vocabulary = 7;
    std::vector<uint32_t> ids(rows);
    for (auto &id : ids) id = random_bits() % 5;
    const auto delta = draw<float>(rows * width);
    std::vector<float> table(vocabulary * width);
    std::vector<double> expected(table.size());
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t j = 0; j < width; j++) expected[ids[row] * width + j] += delta[row * width + j];
    // Later rows only find that theirs is not the first of its token; forty are enough to have all five.
    launch(40, 2, 256, [&] { embedding_gradient_f32(ids.data(), delta.data(), table.data(), rows, width, vocabulary); });
    check("embedding gradient", table, expected);
}

void cholesky(uint32_t n) {
    const uint32_t rows = 2 * n, padded = (n + 31) / 32 * 32;
    const auto a = draw<float>(rows * n);
    std::vector<float> gram(n * n);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++) {
            double sum = 0;
            for (uint32_t k = 0; k < rows; k++) sum += static_cast<double>(a[k * n + i]) * a[k * n + j];
            gram[i * n + j] = sum;
        }
    auto inverse = unwritten<float>(n * n);
    std::vector<double> notes(2 * n + 2), scratch(2 * padded * padded, NAN);
    const auto run = [&] {
        launch(1, 1, 256, [&] { cholesky_inverse_f32(gram.data(), inverse.data(), notes.data(), scratch.data(), n, padded, 1e-6); });
    };
    const auto expect = [&](const char *what, double error, double bound) {
        all_agree = all_agree && error <= bound;
        std::printf("%s Cholesky of %u: %s %.1e\n", error <= bound ? "ok  " : "MISS", n, what, error);
    };
    run();
    double worst = notes[0] == 1 ? 0 : NAN, below = 0, diagonal = 0, distance = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++) {
            double sum = 0;
            for (uint32_t k = 0; k < n; k++)
                for (uint32_t l = 0; l < n; l++) sum += static_cast<double>(inverse[k * n + i]) * gram[k * n + l] * inverse[l * n + j];
            worst = std::max(worst, std::fabs(sum - (i == j)));
            if (i > j) below = std::max(below, static_cast<double>(std::fabs(inverse[i * n + j])));
            if (i == j) diagonal = std::max(diagonal, std::fabs(notes[2 + j] * inverse[j * n + j] - 1));
            const double from_identity = static_cast<double>(gram[i * n + j]) - (i == j);
            distance += from_identity * from_identity;
        }
    expect("R^-T G R^-1 is I", worst, 1e-6);
    expect("upper triangular", below, 0);
    expect("R's diagonal", diagonal, 1e-6);
    expect("distance from I", std::fabs(notes[1] / std::sqrt(distance) - 1), 1e-12);
    // Two equal columns need the shift: a pivot of about its root, where there would be none.
    for (uint32_t j = 0; j < n; j++) gram[j * n + 1] = gram[j * n];
    for (uint32_t j = 0; j < n; j++) gram[n + j] = gram[j];
    run();
    expect("dependent columns are shifted", notes[0] == 1 ? std::fabs(notes[3] / notes[2 + n + 1] / std::sqrt(2e-6) - 1) : NAN, 1e-3);
    gram[0] = NAN;
    run();
    const bool is_identity = notes[0] == 0 && inverse[0] == 1 && inverse[1] == 0 && inverse[n * n - 1] == 1;
    expect("none of what is not a number", is_identity ? 0 : NAN, 0);
}

template <typename T>
void all_of_type() {
    for (const bool by_four : {false, true}) {
        std::printf("%s%s\n", Of<T>::name, by_four ? ", four at a time" : "");
        attention<T>(by_four);
        loss<T>(by_four);
        norms<T>(by_four);
        pointwise<T>(by_four);
    }
    rotations<T>();
}

}  // namespace

int main() {
    all_of_type<float>();
    all_of_type<bf16>();
    axes<uint16_t>(swap_axes_2);
    axes<uint32_t>(swap_axes_4);
    axes<uint2>(swap_axes_8);
    axes<uint4>(swap_axes_16);
    embeddings();
    for (const uint32_t n : {5u, 32u, 40u, 100u}) cholesky(n);
    return all_agree ? 0 : 1;
}
