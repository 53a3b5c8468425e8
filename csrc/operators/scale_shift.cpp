// CPU kernels of scale_shift; fastmlip/ops/scale_shift.py states the formula.
#include "operators/scale_shift.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/in_range.h"
#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int64_t kBlock = 512;   // atoms whose types are checked before they are used
constexpr int64_t kChunk = 8192;  // atoms of one partial sum, whatever the number of threads
constexpr int64_t kSums = 4;      // sums that run side by side: one alone waits for its own result

// f(a tag of the dtype) and the like: one branch a call, none in the loops.
template <class F>
auto with_float(bool single, const F& f) {
  return single ? f(float()) : f(double());
}
template <class F>
auto with_index(bool narrow, const F& f) {
  return narrow ? f(int32_t()) : f(int64_t());
}

// The smallest position that any thread reports.
class FirstBad {
 public:
  void report(int64_t position) {
    int64_t before = first_.load();
    while (position < before && !first_.compare_exchange_weak(before, position)) {
    }
  }
  int64_t get() const { return first_ == INT64_MAX ? -1 : first_.load(); }

 private:
  std::atomic<int64_t> first_{INT64_MAX};
};

template <class X, class Out>
void apply_single(const X* x, double scale, double shift, Out* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) out[i] = static_cast<Out>(scale * x[i] + shift);
}

using V = Vec<double>;

// The next lanes of `from`, converted to those of To; a vector of half the size where they are
// 32 bits wide.
template <class To, class From>
inline To load_as(const From* from) {
  typedef From Lanes __attribute__((vector_size(sizeof(From) * kLanes<double>)));
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return __builtin_convertvector(lanes, To);
}

template <class Out>
inline void store_as(Out* to, V v) {
  typedef Out Lanes __attribute__((vector_size(sizeof(Out) * kLanes<double>)));
  const Lanes lanes = __builtin_convertvector(v, Lanes);
  std::memcpy(to, &lanes, sizeof(lanes));
}

// The values of up to kMost types in two registers, where one instruction looks them up: with AVX2
// it takes several, and loads are faster.
struct Table {
  static constexpr int64_t kMost = FASTMLIP_VECTOR_BYTES == 64 ? 2 * kLanes<double> : 0;
  V low{}, high{};

  explicit Table(Values values) {
    for (int64_t t = 0; t < kMost; ++t)
      (t < kLanes<double> ? low : high)[t % kLanes<double>] =
          values.data[std::min(t, values.count - 1)];
  }
  V of(Vec<int64_t> types) const { return __builtin_shuffle(low, high, types); }
};

template <bool kScales, bool kShifts, class X, class Index, class Out>
int64_t apply_typed(const X* x, const Index* types, Values scales, Values shifts, int64_t num_types,
                    Out* out, int64_t begin, int64_t end) {
  const Table scale_of(scales), shift_of(shifts);
  for (int64_t from = begin; from < end; from += kBlock) {
    const int64_t to = std::min(from + kBlock, end);
    const int64_t bad = first_bad(types, from, to, num_types);
    if (bad >= 0) return bad;
    int64_t i = from;
    for (; num_types <= Table::kMost && i + kLanes<double> <= to; i += kLanes<double>) {
      const auto type = load_as<Vec<int64_t>>(types + i);
      store_as(out + i, scale_of.of(type) * load_as<V>(x + i) + shift_of.of(type));
    }
    for (; i < to; ++i)
      out[i] = static_cast<Out>(scales.data[kScales ? types[i] : 0] * x[i] +
                                shifts.data[kShifts ? types[i] : 0]);
  }
  return -1;
}

int64_t apply(Rows x, Types types, Values scales, Values shifts, Rows out, int64_t num_atoms,
              ParallelFor parallel_for, int64_t threads) {
  static const double one = 1.0, nothing = -0.0;  // y + -0.0 is y, also for y = -0.0
  if (!scales.data) scales = {&one, 1};
  if (!shifts.data) shifts = {&nothing, 1};
  const int64_t num_types = std::max(scales.count, shifts.count);
  FirstBad bad;
  auto part = [&](int64_t i) {
    const int64_t begin = num_atoms * i / threads, end = num_atoms * (i + 1) / threads;
    with_float(x.single, [&](auto x_tag) {
      with_float(out.single, [&](auto out_tag) {
        const auto* from = static_cast<const decltype(x_tag)*>(x.data);
        auto* to = static_cast<decltype(out_tag)*>(const_cast<void*>(out.data));
        if (num_types == 1) return apply_single(from, *scales.data, *shifts.data, to, begin, end);
        with_index(types.narrow, [&](auto index_tag) {
          const auto* index = static_cast<const decltype(index_tag)*>(types.data);
          const bool by_scale = scales.count > 1, by_shift = shifts.count > 1;
          const auto typed = [&](auto per_scale, auto per_shift) {
            return apply_typed<per_scale.value, per_shift.value>(from, index, scales, shifts,
                                                                 num_types, to, begin, end);
          };
          using Yes = std::true_type;
          using No = std::false_type;
          const int64_t position = by_scale && by_shift ? typed(Yes(), Yes())
                                   : by_scale           ? typed(Yes(), No())
                                                        : typed(No(), Yes());
          if (position >= 0) bad.report(position);
        });
      });
    });
  };
  run(parallel_for, threads, part);
  return bad.get();
}

// Adds g x and g of [begin, end) to sums[type][2]; lane l takes the atoms begin + l, + 4, + 8, ..
template <bool kTyped, class G, class X, class Index>
int64_t sum_chunk(const G* grad, const X* x, const Index* types, int64_t num_types, double* lanes,
                  int64_t begin, int64_t end) {
  const int64_t bad = kTyped ? first_bad(types, begin, end, num_types) : -1;
  if (bad >= 0) return bad;
  const int64_t stride = 2 * num_types;
  auto add = [&](int64_t i, int64_t lane) {
    double* sum = lanes + lane * stride + (kTyped ? 2 * types[i] : 0);
    sum[0] += static_cast<double>(grad[i]) * static_cast<double>(x[i]);
    sum[1] += static_cast<double>(grad[i]);
  };
  int64_t i = begin;
  for (; i + kSums <= end; i += kSums)
    for (int64_t lane = 0; lane < kSums; ++lane) add(i + lane, lane);
  for (; i < end; ++i) add(i, i % kSums);
  return -1;
}

int64_t sum(Rows grad, Rows x, Types types, double* dscales, double* dshifts, int64_t num_types,
            int64_t num_atoms, ParallelFor parallel_for, int64_t threads) {
  const int64_t chunks = std::max<int64_t>(1, (num_atoms + kChunk - 1) / kChunk);
  const int64_t stride = 2 * num_types;
  std::vector<double> partial(chunks * stride);
  FirstBad bad;
  auto part = [&](int64_t p) {
    std::vector<double> lanes(kSums * stride);
    for (int64_t c = chunks * p / threads; c < chunks * (p + 1) / threads; ++c) {
      const int64_t begin = c * kChunk, end = std::min(begin + kChunk, num_atoms);
      std::fill(lanes.begin(), lanes.end(), 0.0);
      const int64_t position = with_float(grad.single, [&](auto g_tag) {
        return with_float(x.single, [&](auto x_tag) {
          return with_index(types.narrow, [&](auto index_tag) {
            const auto* g = static_cast<const decltype(g_tag)*>(grad.data);
            const auto* rows = static_cast<const decltype(x_tag)*>(x.data);
            const auto* index = static_cast<const decltype(index_tag)*>(types.data);
            return (num_types == 1
                        ? sum_chunk<false, decltype(g_tag), decltype(x_tag), decltype(index_tag)>
                        : sum_chunk<true, decltype(g_tag), decltype(x_tag),
                                    decltype(index_tag)>)(g, rows, index, num_types, lanes.data(),
                                                          begin, end);
          });
        });
      });
      if (position >= 0) bad.report(position);
      for (int64_t k = 0; k < stride; ++k)
        partial[c * stride + k] =
            (lanes[k] + lanes[stride + k]) + (lanes[2 * stride + k] + lanes[3 * stride + k]);
    }
  };
  run(parallel_for, threads, part);
  for (int64_t t = 0; t < num_types; ++t) {
    double gx = 0.0, g = 0.0;
    for (int64_t c = 0; c < chunks; ++c) {
      gx += partial[c * stride + 2 * t];
      g += partial[c * stride + 2 * t + 1];
    }
    dscales[t] = gx;
    dshifts[t] = g;
  }
  return bad.get();
}

int64_t by_type(Types types, Values values, bool add, double* out, int64_t num_atoms,
                ParallelFor parallel_for, int64_t threads) {
  FirstBad bad;
  auto part = [&](int64_t p) {
    const int64_t begin = num_atoms * p / threads, end = num_atoms * (p + 1) / threads;
    with_index(types.narrow, [&](auto index_tag) {
      const auto* index = static_cast<const decltype(index_tag)*>(types.data);
      for (int64_t from = begin; from < end; from += kBlock) {
        const int64_t to = std::min(from + kBlock, end);
        const int64_t position =
            values.count > 1 ? first_bad(index, from, to, values.count) : int64_t(-1);
        if (position >= 0) return bad.report(position);
        for (int64_t i = from; i < to; ++i) {
          const double value = values.data[values.count > 1 ? index[i] : 0];
          out[i] = add ? out[i] + value : value;
        }
      }
    });
  };
  run(parallel_for, threads, part);
  return bad.get();
}

}  // namespace

extern const ScaleShift scale_shift;
const ScaleShift scale_shift = {apply, sum, by_type};

}  // namespace fastmlip::FASTMLIP_ISA
