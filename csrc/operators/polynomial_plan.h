// The orders in which kernels of symmetric_contraction go through the terms of a polynomial.
#pragma once

#include <vector>

#include "operators/symmetric_contraction.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Factors i, j, and where what they are common to ends.
struct Pair {
  int i, j, end;
};

// Terms in their own order: an output has pairs, a pair has terms.
struct ByOutput {
  std::vector<int> pair_end;  // of each output
  std::vector<Pair> pairs;
  std::vector<int> last;  // k of each term

  ByOutput(const PolynomialHeader& header, const PolynomialTerm* terms) {
    pair_end.resize(header.outputs);
    last.resize(header.num_terms);
    int64_t t = 0;
    for (int64_t m = 0; m < header.outputs; ++m) {
      const size_t first = pairs.size();
      for (; t < header.num_terms && terms[t].output == m; ++t) {
        const int i = int(terms[t].i), j = int(terms[t].j);
        if (pairs.size() == first || pairs.back().i != i || pairs.back().j != j)
          pairs.push_back({i, j, 0});
        last[t] = int(terms[t].k);
        pairs.back().end = int(t) + 1;
      }
      pair_end[m] = int(pairs.size());
    }
  }
};

// A pair has monomials, a monomial has entries: the terms of all outputs that it is in.
struct ByMonomial {
  struct Monomial {
    int k, end;
  };
  struct Entry {
    int term, output;
  };
  std::vector<Pair> pairs;
  std::vector<Monomial> monomials;
  std::vector<Entry> entries;

  ByMonomial(const PolynomialHeader& header, const PolynomialTerm* terms) {
    std::vector<int> order(header.num_terms), sorted(header.num_terms);
    for (int64_t t = 0; t < header.num_terms; ++t) order[t] = int(t);
    for (auto factor : {&PolynomialTerm::k, &PolynomialTerm::j, &PolynomialTerm::i}) {
      std::vector<int> next(header.inputs + 2);
      for (int t : order) ++next[terms[t].*factor + 1];
      for (int64_t i = 0; i <= header.inputs; ++i) next[i + 1] += next[i];
      for (int t : order) sorted[next[terms[t].*factor]++] = t;
      order.swap(sorted);
    }
    entries.reserve(order.size());
    int before = -1;
    for (int t : order) {
      const PolynomialTerm &now = terms[t], &old = terms[before < 0 ? t : before];
      const bool new_pair = before < 0 || now.i != old.i || now.j != old.j;
      if (new_pair) pairs.push_back({int(now.i), int(now.j), 0});
      if (new_pair || now.k != old.k) monomials.push_back({int(now.k), 0});
      entries.push_back({t, int(now.output)});
      monomials.back().end = int(entries.size());
      pairs.back().end = int(monomials.size());
      before = t;
    }
  }
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
