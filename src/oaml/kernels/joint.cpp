// The joint embedding's cosines for a CPU: plain arrays in, plain arrays out, any number of callers at once.
// The weighted sums of a few faces by a few others stay in the first cache, where they are compared.

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr long kFew = 6;  // faces a side; so many vectors of their sums fill the registers
#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4;
#else
constexpr int kLanes = 8, kVectors = 2;
#endif
constexpr long kCells = 64;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline float total(Floats x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// What the cells [R,E] of one face sum to by N sets of weights, `step` apart; K vectors of each sum, `sums_step` vectors apart.
template <int N, int K>
inline void sum_cells(const float* cells, long R, long E, const float* weights, long step, Floats* sums, long sums_step) {
  Floats sum[N][K] = {};
  for (long r = 0; r < R; ++r) {
    Floats x[K];
    for (int k = 0; k < K; ++k) x[k] = load(cells + r * E + k * kLanes);
    for (int n = 0; n < N; ++n) {
      const Floats weight = Floats{} + weights[n * step + r];
      for (int k = 0; k < K; ++k) sum[n][k] += weight * x[k];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) sums[n * sums_step + k] = sum[n][k];
}

// The dot products and squared lengths of the pairs of a few faces, over the vectors so far.
struct Sums {
  Floats dot[kFew][kFew], left[kFew][kFew], right[kFew][kFew];
};

// Adds K vectors of both faces' sums for P by G pairs with the weights [P,G,R] of their cells.
template <int K>
inline void add_vectors(const float* a, const float* b, long P, long G, long R, long E, const float* weights, Sums* sums) {
  Floats left[kFew][kFew][K], right[kFew][kFew][K];
  constexpr long row = kFew * kCells;
  for (long p = 0; p < P; ++p) {
    if (G == kFew)
      sum_cells<kFew, K>(a + p * R * E, R, E, weights + p * row, kCells, left[p][0], K);
    else
      for (long g = 0; g < G; ++g)
        sum_cells<1, K>(a + p * R * E, R, E, weights + p * row + g * kCells, 0, left[p][g], K);
  }
  for (long g = 0; g < G; ++g) {
    if (P == kFew)
      sum_cells<kFew, K>(b + g * R * E, R, E, weights + g * kCells, row, right[0][g], kFew * K);
    else
      for (long p = 0; p < P; ++p)
        sum_cells<1, K>(b + g * R * E, R, E, weights + p * row + g * kCells, 0, right[p][g], K);
  }
  for (long p = 0; p < P; ++p)
    for (long g = 0; g < G; ++g)
      for (int k = 0; k < K; ++k) {
        const Floats x = left[p][g][k], y = right[p][g][k];
        sums->dot[p][g] += x * y;
        sums->left[p][g] += x * x;
        sums->right[p][g] += y * y;
      }
}

// All pairs of a few faces.
inline void compare_few(const float* a, const float* v_a, const float* b, const float* v_b, long P, long G, long R, long E,
                        float* cosine, long step) {
  float weights[kFew][kFew][kCells];
  for (long p = 0; p < P; ++p)
    for (long g = 0; g < G; ++g)
      for (long r = 0; r < R; ++r) weights[p][g][r] = v_a[p * R + r] * v_b[g * R + r];
  Sums sums = {};
  long e = 0;
  for (; e + kVectors * kLanes <= E; e += kVectors * kLanes)
    add_vectors<kVectors>(a + e, b + e, P, G, R, E, weights[0][0], &sums);
  for (; e < E; e += kLanes) add_vectors<1>(a + e, b + e, P, G, R, E, weights[0][0], &sums);
  for (long p = 0; p < P; ++p)
    for (long g = 0; g < G; ++g) {
      const float lengths = std::sqrt(total(sums.left[p][g])) * std::sqrt(total(sums.right[p][g]));
      cosine[p * step + g] = total(sums.dot[p][g]) / std::max(lengths, 1e-6f);
    }
}

}  // namespace

extern "C" {

// Per-cell embeddings a [P,R,E] and b [G,R,E], E a multiple of 16 and R at most 64, visibility v_a [P,R] and v_b [G,R] -> cosine of
// both faces' sums by the product of the two visibilities, [P,G] in rows `step` apart.
void joint_cosine(const float* a, const float* v_a, const float* b, const float* v_b, long P, long G, long R, long E,
                  float* cosine, long step) {
  for (long g = 0; g < G; g += kFew)
    for (long p = 0; p < P; p += kFew)
      compare_few(a + p * R * E, v_a + p * R, b + g * R * E, v_b + g * R, std::min(kFew, P - p), std::min(kFew, G - g), R, E,
                  cosine + p * step + g, step);
}

}  // extern "C"
