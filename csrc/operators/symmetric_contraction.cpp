// CPU kernels of symmetric_contraction; fastmlip/ops/symmetric_contraction.py states the formula.
//
// A task takes nodes of one type and one vector of channels. It packs the coefficients of these in
// the order of their use, then takes kNodes nodes through them at a time, with the inputs of each
// and the factor 1, number 0, in memory of its own:
//   value:         out[m] = sum over i, j: x[i] x[j] (sum over k: C x[k]), output by output
//   dx:            of each monomial D = sum over m: C g[m], and the slopes of D x[i] x[j] x[k]
//   dcoefficients: x[i] x[j] x[k] g[m], summed over all nodes of a type in their order
// What is written once for values and for dual numbers gives the derivative along a direction.
#include "operators/symmetric_contraction.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "operators/polynomial_plan.h"
#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int64_t kTaskNodes = 32;  // that packed coefficients serve
template <bool kSecond>
constexpr int kNodes = FASTMLIP_VECTOR_BYTES < 64 && kSecond ? 2 : 4;

// A value, or with its derivative.
template <class T, bool kSecond>
struct Number {
  Vec<T> v[1 + kSecond];
};

template <class T>
FASTMLIP_INLINE inline Number<T, false> product(Number<T, false> x, Number<T, false> y) {
  return {x.v[0] * y.v[0]};
}
template <class T>
FASTMLIP_INLINE inline Number<T, true> product(Number<T, true> x, Number<T, true> y) {
  return {x.v[0] * y.v[0], x.v[0] * y.v[1] + x.v[1] * y.v[0]};
}

template <class T, bool kSecond>
FASTMLIP_INLINE inline void add(Number<T, kSecond>& sum, Vec<T> factor, Number<T, kSecond> x) {
  unroll<1 + kSecond>(1 + kSecond, [&](int i) FASTMLIP_INLINE { sum.v[i] += factor * x.v[i]; });
}

// The value of a product, or its derivative where it has one.
template <class T>
FASTMLIP_INLINE inline void add_highest(Vec<T>& sum, Number<T, false> x, Number<T, false> y) {
  sum += x.v[0] * y.v[0];
}
template <class T>
FASTMLIP_INLINE inline void add_highest(Vec<T>& sum, Number<T, true> x, Number<T, true> y) {
  sum += x.v[0] * y.v[1];
  sum += x.v[1] * y.v[0];
}

// ------------------------------------------------------------------ what a task works on

// Nodes first .. last of those of a type, and a vector of channels.
struct Task {
  int64_t type, first, last, channel;
};

template <class T>
std::vector<Task> make_tasks(const Typed& typed, int64_t channels) {
  std::vector<Task> tasks;
  for (int64_t type = 0, end = 0; type < typed.num_types; ++type)
    for (int64_t first = std::exchange(end, typed.type_end[type]); first < end; first += kTaskNodes)
      for (int64_t u = 0; u < channels; u += kLanes<T>)
        tasks.push_back({type, first, std::min(first + kTaskNodes, end), u});
  return tasks;
}

// Inputs and gradients of kNodes nodes, those that are not there zero.
template <class T, bool kSecond>
struct Nodes {
  static constexpr int R = kNodes<kSecond>;
  const PolynomialTensors<T>& t;
  const int64_t inputs, outputs;
  const Buffer<Number<T, kSecond>> x;  // [1 + inputs, R]
  const Buffer<Vec<T>> grad, result;   // [outputs, R], [1 + inputs or outputs, R]

  Nodes(const PolynomialTensors<T>& t, const PolynomialHeader& header)
      : t(t),
        inputs(header.inputs),
        outputs(header.outputs),
        x(allocate<Number<T, kSecond>>((1 + inputs) * R)),
        grad(allocate<Vec<T>>(outputs * R)),
        result(allocate<Vec<T>>(std::max(1 + inputs, outputs) * R)) {
    for (int r = 0; r < R; ++r) x[r] = {}, x[r].v[0] += T(1);
  }

  // Nodes node[0] .. node[count - 1].
  void read(const int64_t* node, int64_t count, int64_t channel) {
    const int left = int(std::min<int64_t>(kLanes<T>, t.channels - channel));
    for (int r = 0; r < R; ++r) {
      const bool there = r < count;
      const int64_t n = there ? node[r] : 0;
      const auto row = [&](const T* rows, int64_t size, int64_t i) {
        return there ? load_some(rows + (n * size + i) * t.channels + channel, left) : Vec<T>{};
      };
      for (int64_t i = 0; i < inputs; ++i) {
        Number<T, kSecond>& to = x[(i + 1) * R + r];
        to.v[0] = row(t.x, inputs, i);
        if (kSecond) to.v[kSecond] = row(t.along, inputs, i);
      }
      if (t.grad)
        for (int64_t m = 0; m < outputs; ++m) grad[m * R + r] = row(t.grad, outputs, m);
    }
  }

  // Of nodes that will be read next: rows are far apart, which the processor does not foresee.
  void prefetch(const int64_t* node, int64_t count, int64_t channel) const {
    for (int64_t r = 0; r < count; ++r) {
      const auto rows = [&](const T* from, int64_t size) {
        for (int64_t i = 0; from && i < size; ++i)
          prefetch_soon(from + (node[r] * size + i) * t.channels + channel);
      };
      rows(t.x, inputs), rows(t.along, inputs), rows(t.grad, outputs);
    }
  }

  // Rows [size] of the result, from `begin` on, to those nodes.
  void write(const Vec<T>* begin, int64_t size, const int64_t* node, int64_t count, int64_t channel,
             T* to) const {
    const int left = int(std::min<int64_t>(kLanes<T>, t.channels - channel));
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < size; ++i)
        store_some(to + (node[r] * size + i) * t.channels + channel, begin[i * R + r], left);
  }
};

// c[n] = the coefficient of term(n), for the task's channels.
template <class T, class Term>
void pack(const PolynomialTensors<T>& t, int64_t num_terms, const Task& task, const Term& term,
          Vec<T>* c) {
  const int left = int(std::min<int64_t>(kLanes<T>, t.channels - task.channel));
  const T* from = t.coefficients + task.type * num_terms * t.channels + task.channel;
  for (int64_t n = 0; n < num_terms; ++n) c[n] = load_some(from + term(n) * t.channels, left);
}

// ------------------------------------------------------------------ the sums of kNodes nodes

template <class T, bool kSecond>
[[gnu::noinline]] void value_sums(const ByOutput& plan, const Vec<T>* c,
                                  const Number<T, kSecond>* x, Vec<T>* out) {
  constexpr int R = kNodes<kSecond>;
  const int* last = plan.last.data();
  const Pair* pair = plan.pairs.data();
  const Pair* const first = pair;
  int t = 0;
  for (const int pair_end : plan.pair_end) {
    Vec<T> sum[R] = {};
    for (; pair != first + pair_end; ++pair) {
      Number<T, kSecond> inner[R] = {};
      for (; t < pair->end; ++t) {
        const Vec<T> factor = pin(c[t]);
        const Number<T, kSecond>* xk = x + last[t] * R;
        unroll<R>(R, [&](int r) FASTMLIP_INLINE { add<T, kSecond>(inner[r], factor, xk[r]); });
      }
      const Number<T, kSecond>*xi = x + pair->i * R, *xj = x + pair->j * R;
      unroll<R>(R, [&](int r) FASTMLIP_INLINE {
        add_highest<T>(sum[r], product(xi[r], xj[r]), inner[r]);
      });
    }
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { out[r] = sum[r]; });
    out += R;
  }
}

template <class T, bool kSecond>
[[gnu::noinline]] void dx_sums(const ByMonomial& plan, const Vec<T>* c, const Number<T, kSecond>* x,
                               const Vec<T>* grad, Vec<T>* dx) {
  constexpr int R = kNodes<kSecond>;
  const ByMonomial::Entry* entries = plan.entries.data();
  const ByMonomial::Monomial* monomial = plan.monomials.data();
  const ByMonomial::Monomial* const first = monomial;
  int e = 0;
  for (const Pair& pair : plan.pairs) {
    const Number<T, kSecond>*xi = x + pair.i * R, *xj = x + pair.j * R;
    Number<T, kSecond> xij[R], inner[R] = {};
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { xij[r] = product(xi[r], xj[r]); });
    for (; monomial != first + pair.end; ++monomial) {
      Vec<T> d[R] = {};
      for (; e < monomial->end; ++e) {
        const Vec<T> factor = pin(c[e]);
        const Vec<T>* g = grad + entries[e].output * R;
        unroll<R>(R, [&](int r) FASTMLIP_INLINE { d[r] += factor * g[r]; });
      }
      const Number<T, kSecond>* xk = x + monomial->k * R;
      Vec<T>* dk = dx + monomial->k * R;
      unroll<R>(R, [&](int r) FASTMLIP_INLINE {
        add<T, kSecond>(inner[r], d[r], xk[r]);
        dk[r] += d[r] * xij[r].v[kSecond];
      });
    }
    Vec<T>*di = dx + pair.i * R, *dj = dx + pair.j * R;
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { add_highest<T>(di[r], inner[r], xj[r]); });
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { add_highest<T>(dj[r], inner[r], xi[r]); });
  }
}

// Adds to dc[e] for the entries of pairs begin .. end.
template <class T, bool kSecond>
[[gnu::noinline]] void dcoefficients_sums(const ByMonomial& plan, int64_t begin, int64_t end,
                                          const Number<T, kSecond>* x, const Vec<T>* grad,
                                          Vec<T>* dc) {
  constexpr int R = kNodes<kSecond>;
  for (int64_t p = begin; p < end; ++p) {
    const Pair& pair = plan.pairs[p];
    const Number<T, kSecond>*xi = x + pair.i * R, *xj = x + pair.j * R;
    Number<T, kSecond> xij[R];
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { xij[r] = product(xi[r], xj[r]); });
    for (int n = p ? plan.pairs[p - 1].end : 0; n < pair.end; ++n) {
      const Number<T, kSecond>* xk = x + plan.monomials[n].k * R;
      Vec<T> xijk[R] = {};
      unroll<R>(R, [&](int r) FASTMLIP_INLINE { add_highest<T>(xijk[r], xij[r], xk[r]); });
      for (int e = n ? plan.monomials[n - 1].end : 0; e < plan.monomials[n].end; ++e) {
        const Vec<T>* g = grad + plan.entries[e].output * R;
        Vec<T> sum = dc[e];
        unroll<R>(R, [&](int r) FASTMLIP_INLINE { sum += g[r] * xijk[r]; });
        dc[e] = sum;
      }
    }
  }
}

// ------------------------------------------------------------------ all nodes

const PolynomialHeader& header_of(const int64_t* tables) {
  return *reinterpret_cast<const PolynomialHeader*>(tables);
}
const PolynomialTerm* terms_of(const int64_t* tables) {
  return reinterpret_cast<const PolynomialTerm*>(&header_of(tables) + 1);
}

// f(task, packed coefficients, nodes, node, count): kNodes nodes of a task.
template <class T, bool kSecond, class Term, class F>
void each_group(const PolynomialTensors<T>& t, const Typed& typed, const PolynomialHeader& header,
                const Term& term, ParallelFor parallel_for, int64_t threads, const F& f) {
  const std::vector<Task> tasks = make_tasks<T>(typed, t.channels);
  Shares shares(int64_t(tasks.size()), threads);
  run(parallel_for, threads, [&](int64_t part) {
    Nodes<T, kSecond> nodes(t, header);
    const Buffer<Vec<T>> c = allocate<Vec<T>>(header.num_terms);
    for (int64_t i; (i = shares.take(part)) >= 0;) {
      const Task& task = tasks[i];
      pack(t, header.num_terms, task, term, c.get());
      for (int64_t n = task.first, next; n < task.last; n = next) {
        next = std::min<int64_t>(n + kNodes<kSecond>, task.last);
        const int64_t* node = typed.node + n;
        nodes.read(node, next - n, task.channel);
        nodes.prefetch(node + (next - n), std::min<int64_t>(kNodes<kSecond>, task.last - next),
                       task.channel);
        f(task, c.get(), nodes, node, next - n);
      }
    }
  });
}

template <class T, bool kSecond>
void values(const PolynomialTensors<T>& t, const Typed& typed, const int64_t* tables, T* out,
            ParallelFor parallel_for, int64_t threads) {
  const PolynomialHeader& header = header_of(tables);
  const ByOutput plan(header, terms_of(tables));
  each_group<T, kSecond>(
      t, typed, header, [](int64_t n) { return n; }, parallel_for, threads,
      [&](const Task& task, const Vec<T>* c, auto& nodes, const int64_t* node, int64_t count) {
        value_sums<T, kSecond>(plan, c, nodes.x.get(), nodes.result.get());
        nodes.write(nodes.result.get(), header.outputs, node, count, task.channel, out);
      });
}

template <class T, bool kSecond>
void slopes(const PolynomialTensors<T>& t, const Typed& typed, const int64_t* tables, T* dx,
            ParallelFor parallel_for, int64_t threads) {
  const PolynomialHeader& header = header_of(tables);
  const ByMonomial plan(header, terms_of(tables));
  constexpr int R = kNodes<kSecond>;
  each_group<T, kSecond>(
      t, typed, header, [&](int64_t e) { return plan.entries[e].term; }, parallel_for, threads,
      [&](const Task& task, const Vec<T>* c, auto& nodes, const int64_t* node, int64_t count) {
        std::fill_n(nodes.result.get(), (1 + header.inputs) * R, Vec<T>{});
        dx_sums<T, kSecond>(plan, c, nodes.x.get(), nodes.grad.get(), nodes.result.get());
        nodes.write(nodes.result.get() + R, header.inputs, node, count, task.channel, dx);
      });
}

// A task has all nodes of a type, in their order, and part of the pairs.
template <class T, bool kSecond>
void sums(const PolynomialTensors<T>& t, const Typed& typed, const int64_t* tables,
          T* dcoefficients, ParallelFor parallel_for, int64_t threads) {
  const PolynomialHeader& header = header_of(tables);
  const ByMonomial plan(header, terms_of(tables));
  const int64_t vectors = (t.channels + kLanes<T> - 1) / kLanes<T>;
  const int64_t pairs = int64_t(plan.pairs.size()), of_all = typed.num_types * vectors;
  const int64_t slices = std::clamp<int64_t>(4 * threads / std::max<int64_t>(1, of_all), 1, 8);
  Shares shares(of_all * slices, threads);
  run(parallel_for, threads, [&](int64_t part) {
    Nodes<T, kSecond> nodes(t, header);
    const Buffer<Vec<T>> dc = allocate<Vec<T>>(header.num_terms);
    for (int64_t i; (i = shares.take(part)) >= 0;) {
      const int64_t type = i / slices / vectors, channel = i / slices % vectors * kLanes<T>;
      const int64_t begin = pairs * (i % slices) / slices;
      const int64_t end = pairs * (i % slices + 1) / slices;
      const auto entry = [&](int64_t p) {  // the first of a pair
        const int monomial = p ? plan.pairs[p - 1].end : 0;
        return monomial ? plan.monomials[monomial - 1].end : 0;
      };
      std::fill(&dc[entry(begin)], &dc[entry(end)], Vec<T>{});
      const int64_t last = typed.type_end[type];
      for (int64_t n = type ? typed.type_end[type - 1] : 0, next; n < last; n = next) {
        next = std::min<int64_t>(n + kNodes<kSecond>, last);
        nodes.read(typed.node + n, next - n, channel);
        nodes.prefetch(typed.node + next, std::min<int64_t>(kNodes<kSecond>, last - next), channel);
        dcoefficients_sums<T, kSecond>(plan, begin, end, nodes.x.get(), nodes.grad.get(), dc.get());
      }
      const int left = int(std::min<int64_t>(kLanes<T>, t.channels - channel));
      T* to = dcoefficients + type * header.num_terms * t.channels + channel;
      for (int64_t e = entry(begin); e < entry(end); ++e)
        store_some(to + plan.entries[e].term * t.channels, dc[e], left);
    }
  });
}

template <class T, PolynomialKernel<T> first, PolynomialKernel<T> second>
void with_order(const PolynomialTensors<T>& t, const Typed& typed, const int64_t* tables, T* result,
                ParallelFor parallel_for, int64_t threads) {
  (t.along ? second : first)(t, typed, tables, result, parallel_for, threads);
}

}  // namespace

extern const SymmetricContraction symmetric_contraction;
const SymmetricContraction symmetric_contraction = {
    with_order<float, values<float, false>, values<float, true>>,
    with_order<float, slopes<float, false>, slopes<float, true>>,
    with_order<float, sums<float, false>, sums<float, true>>,
    with_order<double, values<double, false>, values<double, true>>,
    with_order<double, slopes<double, false>, slopes<double, true>>,
    with_order<double, sums<double, false>, sums<double, true>>,
};

}  // namespace fastmlip::FASTMLIP_ISA
