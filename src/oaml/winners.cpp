// The inner loops of winners.py for a CPU: plain arrays in, plain arrays out, any number of callers at once.
// A line of a face's correlations is read once for both questions: the best of its column, the best of its row.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr long kLanes = 16;
constexpr long kCells = 256;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats load(const uint16_t* from) {  // bfloat16: the upper half of a float
  Halves half;
  std::memcpy(&half, from, sizeof half);
  return (Floats)(__builtin_convertvector(half, Ints) << 16);
}

inline float one(const float* from) { return *from; }

inline float one(const uint16_t* from) {
  const uint32_t bits = uint32_t(*from) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Keep the larger of two; of equals the one that comes first in the row.
inline void merge(Floats& best, Ints& place, Floats other, Ints other_place) {
  const Ints better = (other > best) | ((other == best) & (other_place < place));
  best = better ? other : best;
  place = better ? other_place : place;
}

#define FOLD(...) \
  merge(best, place, __builtin_shufflevector(best, best, __VA_ARGS__), __builtin_shufflevector(place, place, __VA_ARGS__))

inline int32_t first_of_best(Floats best, Ints place) {
  FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return place[0];
}

// One pair: rows of `line` numbers, bias [R,S], what a row (`log_r`) and a column (`log_s`) add to the choice.
template <typename T>
void pick(const T* rows, long line, long R, long S, const float* bias, const float* log_r, const float* log_s,
          float* value_s, uint8_t* partner_s, float* value_r, uint8_t* partner_r) {
  const float lowest = -INFINITY;
  alignas(64) float best_s[kCells + kLanes];
  alignas(64) int32_t place_s[kCells + kLanes];
  for (long s = 0; s < S + kLanes; ++s) best_s[s] = lowest, place_s[s] = 0;
  const Ints count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (long r = 0; r < R; ++r) {
    const T* row = rows + r * line;
    const float* add = bias + r * S;
    Floats best = lowest - Floats{};
    Ints place = Ints{};
    const auto step = [&](long s, Floats x) __attribute__((always_inline)) {
      const Floats for_s = x + log_r[r], for_r = x + load(log_s + s);
      Floats known = load(best_s + s);
      Ints where;
      std::memcpy(&where, place_s + s, sizeof where);
      const Ints better = for_s > known, ahead = for_r > best;
      known = better ? for_s : known;
      where = better ? Ints{} + int32_t(r) : where;
      std::memcpy(best_s + s, &known, sizeof known);
      std::memcpy(place_s + s, &where, sizeof where);
      best = ahead ? for_r : best;
      place = ahead ? count + int32_t(s) : place;
    };
    if (S >= kLanes) {
      long s = 0;
      for (; s + kLanes <= S; s += kLanes) step(s, load(row + s) + load(add + s));
      if (s < S) step(S - kLanes, load(row + S - kLanes) + load(add + S - kLanes));  // some twice: harmless
    } else {
      Floats x = lowest - Floats{};
      for (long s = 0; s < S; ++s) x[s] = one(row + s) + add[s];
      step(0, x);
    }
    const int32_t s = first_of_best(best, place);
    partner_r[r] = uint8_t(s);
    value_r[r] = one(row + s) + add[s];
  }
  for (long s = 0; s < S; ++s) {
    const long r = place_s[s];
    partner_s[s] = uint8_t(r);
    value_s[s] = one(rows + r * line + s) + bias[r * S + s];
  }
}

template <typename T>
void pick_block(const T* similarity, long A, long R, long B, long S, const float* bias, const float* log_r,
                const float* log_s, long log_s_step, float* value_s, uint8_t* partner_s, float* value_r,
                uint8_t* partner_r, long step_a, long step_b) {
  for (long a = 0; a < A; ++a)
    for (long b = 0; b < B; ++b) {
      const long pair = a * step_a + b * step_b;
      pick(similarity + (a * R * B + b) * S, B * S, R, S, bias, log_r + a * R, log_s + a * log_s_step + b * (S + kLanes),
           value_s + pair * S, partner_s + pair * S, value_r + pair * R, partner_r + pair * R);
    }
}

}  // namespace

extern "C" {

// Similarity [A,R,B,S]; bias [R,S]; log_r [A,R]; log_s [B,S+16] (and for each a its own, `log_s_step` apart).
// The results of pair (a, b) start at row a * step_a + b * step_b.
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

// Gradients of A faces with S cells from the winners against B faces with R cells, both [.,cells,C]:
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
