// The inner loops of best_matches.py for a CPU: plain arrays in, plain arrays out, any number of callers at once.
// A line of a face's correlations is read once for both questions: the best of its column, the best of its row.

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr long kLanes = 16;
constexpr long kCells = 256;
constexpr int kRows = 6;  // of a product; with so many registers' columns their sums fill the processor's registers
#ifdef __AVX512F__
constexpr int kWide = 16, kRegisters = 4;
#else
constexpr int kWide = 8, kRegisters = 2;
#endif
typedef float Floats __attribute__((vector_size(64)));
typedef float Register __attribute__((vector_size(4 * kWide)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats load(const uint16_t* from) {  // bfloat16: the upper half of a float
#ifdef __AVX512F__  // in one instruction, where the compiler takes two and puts the halves together
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
  Halves half;
  std::memcpy(&half, from, sizeof half);
  return (Floats)(__builtin_convertvector(half, Ints) << 16);
#endif
}

inline float one(const float* from) { return *from; }

inline float one(const uint16_t* from) {
  const uint32_t bits = uint32_t(*from) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

#define HALVES(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define FOLD(x, better)                                                         \
  x = better(x, HALVES(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)); \
  x = better(x, HALVES(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)); \
  x = better(x, HALVES(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)); \
  x = better(x, HALVES(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Ints smaller(Ints a, Ints b) { return a < b ? a : b; }

// The place of the largest number; of equals the first, as every lane has kept its own first.
inline int32_t first_of_best(Floats best, Ints place) {
  Floats top = best;
  FOLD(top, larger);
  place = best == top ? place : Ints{} + INT32_MAX;
  FOLD(place, smaller);
  return place[0];
}

// The lanes of a row's maximum over columns so far.
struct Row {
  Floats best;
  Ints place;
};

// N vectors of columns from `first` on; their own maxima stay in registers all the way down.
template <int N, typename T>
inline void pick_columns(const T* rows, long line, const T* last, long first, long R, long width, const float* bias,
                         const float* log_r, const float* log_s, Row* row_best, float* best_s, int32_t* place_s) {
  Floats best[N], add_s[N];
  Ints place[N], column[N];
  for (int n = 0; n < N; ++n) {
    best[n] = Floats{} - INFINITY;
    place[n] = Ints{};
    add_s[n] = load(log_s + first + n * kLanes);
    column[n] = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + int32_t(first + n * kLanes);
  }
  for (long r = 0; r < R; ++r) {
    const T* row = (r + 1 < R ? rows + r * line : last) + first;
    const float* add = bias + r * width + first;
    const Floats add_r = Floats{} + log_r[r];
    const Ints here = Ints{} + int32_t(r);
    Row state = row_best[r];
    for (int n = 0; n < N; ++n) {
      const Floats x = load(row + n * kLanes) + load(add + n * kLanes);
      const Floats for_s = x + add_r, for_r = x + add_s[n];
      place[n] = for_s > best[n] ? here : place[n];
      best[n] = for_s > best[n] ? for_s : best[n];
      state.place = for_r > state.best ? column[n] : state.place;
      state.best = for_r > state.best ? for_r : state.best;
    }
    row_best[r] = state;
  }
  for (int n = 0; n < N; ++n) {
    std::memcpy(best_s + first + n * kLanes, &best[n], sizeof(Floats));
    std::memcpy(place_s + first + n * kLanes, &place[n], sizeof(Ints));
  }
}

// One pair: rows `line` numbers apart. Columns are padded to `width`, where the bias is -infinity: no best match is there,
// whatever is read (of the last row, which may be the end of the memory, a copy).
template <typename T>
void pick(const T* rows, long line, long R, long S, long width, const float* bias, const float* log_r,
          const float* log_s, float* value_s, uint8_t* partner_s, float* value_r, uint8_t* partner_r) {
  T last[kCells] = {};
  std::memcpy(last, rows + (R - 1) * line, S * sizeof(T));
  alignas(64) Row row_best[kCells];
  float best_s[kCells];
  int32_t place_s[kCells];
  for (long r = 0; r < R; ++r) row_best[r] = {Floats{} - INFINITY, Ints{}};
  long s = 0;
  for (; s + 4 * kLanes <= width; s += 4 * kLanes)
    pick_columns<4>(rows, line, last, s, R, width, bias, log_r, log_s, row_best, best_s, place_s);
  for (; s < width; s += kLanes)
    pick_columns<1>(rows, line, last, s, R, width, bias, log_r, log_s, row_best, best_s, place_s);
  for (long r = 0; r < R; ++r) {
    const int32_t at = first_of_best(row_best[r].best, row_best[r].place);
    partner_r[r] = uint8_t(at);
    value_r[r] = one(rows + r * line + at) + bias[r * width + at];
  }
  for (long i = 0; i < S; ++i) {
    const long at = place_s[i];
    partner_s[i] = uint8_t(at);
    value_s[i] = one(rows + at * line + i) + bias[at * width + i];
  }
}

// K registers of N rows of a product: rows [N,C] of one face times channels [C,width] of another.
template <int N, int K>
inline void multiply(const float* rows, const float* channels, long C, long width, float* product) {
  Register sum[N][K] = {};
  for (long c = 0; c < C; ++c) {
    Register x[K];
    for (int k = 0; k < K; ++k) std::memcpy(&x[k], channels + c * width + k * kWide, sizeof x[k]);
    for (int n = 0; n < N; ++n) {
      const Register weight = Register{} + rows[n * C + c];
      for (int k = 0; k < K; ++k) sum[n][k] += weight * x[k];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) std::memcpy(product + n * width + k * kWide, &sum[n][k], sizeof sum[n][k]);
}

template <int K>
inline void multiply_columns(const float* rows, const float* channels, long R, long C, long width, float* product) {
  long r = 0;
  for (; r + kRows <= R; r += kRows) multiply<kRows, K>(rows + r * C, channels, C, width, product + r * width);
  for (; r < R; ++r) multiply<1, K>(rows + r * C, channels, C, width, product + r * width);
}

template <typename T>
void pick_block(const T* similarity, long A, long R, long B, long S, const float* bias, const float* log_r,
                const float* log_s, long log_s_step, float* value_s, uint8_t* partner_s, float* value_r,
                uint8_t* partner_r, long step_a, long step_b) {
  const long width = (S + kLanes - 1) / kLanes * kLanes;
  for (long a = 0; a < A; ++a)
    for (long b = 0; b < B; ++b) {
      const long pair = a * step_a + b * step_b;
      pick(similarity + (a * R * B + b) * S, B * S, R, S, width, bias, log_r + a * R,
           log_s + a * log_s_step + b * width, value_s + pair * S, partner_s + pair * S, value_r + pair * R,
           partner_r + pair * R);
    }
}

}  // namespace

extern "C" {

// Similarity [A,R,B,S]; bias [R,W] and log_s [B,W] (for each a its own, `log_s_step` apart), W the next multiple of 16 from S
// on, the bias -infinity beyond S; log_r [A,R]. The results of pair (a, b) start at row a * step_a + b * step_b.
void pick_float32(const float* similarity, long A, long R, long B, long S, const float* bias, const float* log_r,
                  const float* log_s, long log_s_step, float* value_s, uint8_t* partner_s, float* value_r,
                  uint8_t* partner_r, long step_a, long step_b) {
  pick_block(similarity, A, R, B, S, bias, log_r, log_s, log_s_step, value_s, partner_s, value_r, partner_r, step_a,
             step_b);
}

void pick_bfloat16(const uint16_t* similarity, long A, long R, long B, long S, const float* bias, const float* log_r,
                   const float* log_s, long log_s_step, float* value_s, uint8_t* partner_s, float* value_r,
                   uint8_t* partner_r, long step_a, long step_b) {
  pick_block(similarity, A, R, B, S, bias, log_r, log_s, log_s_step, value_s, partner_s, value_r, partner_r, step_a,
             step_b);
}

// Listed pairs, `first[i]` of the probes with `second[i]` of the gallery faces: cells [P,S,C] and log_s [P,W] of probes, cells
// [G,R,C] and log_r [G,R] of gallery faces. `scratch` is for (R + C) * W numbers; the results are those of pair i at row i.
void pick_pairs(const float* probes, const float* gallery, const long* first, const long* second, long pairs, long R,
                long S, long C, const float* bias, const float* log_r, const float* log_s, float* scratch,
                float* value_s, uint8_t* partner_s, float* value_r, uint8_t* partner_r) {
  const long width = (S + kLanes - 1) / kLanes * kLanes;
  float* product = scratch;
  float* columns = scratch + R * width;
  std::memset(columns, 0, C * width * sizeof(float));
  for (long i = 0; i < pairs; ++i) {
    const float* rows = gallery + second[i] * R * C;
    if (i == 0 || first[i] != first[i - 1])
      for (long s = 0; s < S; ++s)
        for (long c = 0; c < C; ++c) columns[c * width + s] = probes[(first[i] * S + s) * C + c];
    long s = 0;
    for (; s + kRegisters * kWide <= width; s += kRegisters * kWide)
      multiply_columns<kRegisters>(rows, columns + s, R, C, width, product + s);
    for (; s < width; s += kWide) multiply_columns<1>(rows, columns + s, R, C, width, product + s);
    pick(product, width, R, S, width, bias, log_r + second[i] * R, log_s + first[i] * width, value_s + i * S,
         partner_s + i * S, value_r + i * R, partner_r + i * R);
  }
}

// Gradients of A faces with S cells from the best matches against B faces with R cells, both [.,cells,C]:
// to[a,s] += grad_s * from[b,partner_s] and to[a,partner_r] += grad_r * from[b,r]. Pair (a, b) as above.
// `to_bias` [S,R] or null gets the sum over all pairs.
void pull_gradients(float* to, const float* from, long A, long B, long S, long R, long C, const float* grad_s,
                    const uint8_t* partner_s, const float* grad_r, const uint8_t* partner_r, long step_a, long step_b,
                    float* to_bias) {
  const auto add = [C](float* __restrict to, const float* __restrict from, float weight) {
    for (long c = 0; c < C; ++c) to[c] += weight * from[c];
  };
  for (long b = 0; b < B; ++b)
    for (long a = 0; a < A; ++a) {
      const long pair = a * step_a + b * step_b;
      float* mine = to + a * S * C;
      const float* other = from + b * R * C;
      for (long s = 0; s < S; ++s) {
        const long r = partner_s[pair * S + s];
        const float weight = grad_s[pair * S + s];
        add(mine + s * C, other + r * C, weight);
        if (to_bias) to_bias[s * R + r] += weight;
      }
      for (long r = 0; r < R; ++r) {
        const long s = partner_r[pair * R + r];
        const float weight = grad_r[pair * R + r];
        add(mine + s * C, other + r * C, weight);
        if (to_bias) to_bias[s * R + r] += weight;
      }
    }
}

}  // extern "C"
