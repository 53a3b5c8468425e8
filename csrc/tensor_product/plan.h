// What the passes over tensor products work from: the problem's table, read once per call.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "tensor_product/layout.h"

namespace fastmlip::FASTMLIP_ISA {

// A Clebsch-Gordan symbol times the path's coefficient: from edge_attr[m2] to entry `index` of M.
template <class T>
struct CgTerm {
  int m2, index;
  T value;
};

// Whether entry (m1, m3) of M can be other than zero in a path of the smallest l2, |l1 - l3|: in
// real spherical harmonics m2 = +-m1 +-m3, below zero where one of m1, m3 is.
constexpr bool selected(int d1, int d3, int m1, int m3) {
  const int l2 = (d1 > d3 ? d1 - d3 : d3 - d1) / 2;
  m1 -= d1 / 2, m3 -= d3 / 2;
  const bool negative = (m1 < 0) != (m3 < 0);
  const int a = m1 < 0 ? -m1 : m1, b = m3 < 0 ? -m3 : m3, least = a > b ? a - b : b - a;
  return (least <= l2 && (least > 0 || !negative)) || a + b <= l2;
}

template <class T>
struct PlanPath {
  int mul, padded, d1, d2, d3, in1, out, weight;  // in1, out: offsets in packed rows
  int matrix;          // where in the matrices of all paths its entries begin
  bool sparse = true;  // only entries that are selected() can be other than zero
  int next_out = 0;    // of the path that follows, of the last the first
  // Columns of weights for send() to fetch meanwhile: of the path kFetch paths later, which may be
  // one of a later edge.
  int fetch = 0, fetch_end = 0;
  bool fetch_later = false;
};

template <class T>
struct Plan {
  Layout in, out;
  int dim2 = 0;
  int64_t weight_numel = 0;
  std::vector<PlanPath<T>> paths;
  // The matrices of all paths, [d1 * d3] of each, or one number where l2 = 0: a term of each entry
  // that is not zero, and further ones; and all of them, by m2.
  int matrix_entries = 0;
  std::vector<CgTerm<T>> set, add, by_m2;
  std::vector<int> m2_end;  // where in by_m2 the terms of each m2 end

  explicit Plan(const int64_t* tables) {
    const ProductTable table(tables);
    const Header& header = table.header;
    in = make_layout<T>(table.in, header.num_blocks1, header.ir_mul);
    out = make_layout<T>(table.out, header.num_blocks3, header.ir_mul);
    dim2 = int(header.dim2);
    weight_numel = header.weight_numel;
    paths.reserve(header.num_paths);
    set.reserve(header.num_cg);
    add.reserve(header.num_cg);
    for (int64_t i = 0; i < header.num_paths; ++i) {
      const PathRow& row = table.paths[i];
      if (row.mul == 0) continue;
      const PackedBlock &from = in.blocks[row.in1_block], &to = out.blocks[row.out_block];
      PlanPath<T> path{from.mul,      from.padded,        int(row.d1),      int(row.d2),
                       int(row.d3),   from.packed_offset, to.packed_offset, int(row.weight_offset),
                       matrix_entries};
      matrix_entries += path.d2 == 1 ? 1 : path.d1 * path.d3;
      add_matrix(row, path, table.cg);
      paths.push_back(path);
    }
    by_m2.reserve(set.size() + add.size());
    by_m2 = set;
    by_m2.insert(by_m2.end(), add.begin(), add.end());
    std::sort(by_m2.begin(), by_m2.end(), [](const auto& a, const auto& b) {
      return std::pair(a.m2, a.index) < std::pair(b.m2, b.index);
    });
    m2_end.resize(dim2);
    for (const CgTerm<T>& term : by_m2) ++m2_end[term.m2];
    std::partial_sum(m2_end.begin(), m2_end.end(), m2_end.begin());
    look_ahead();
  }

  void add_matrix(const PathRow& row, PlanPath<T>& path, const CgRow* cg) {
    std::vector<bool> seen(row.d1 * row.d3);
    for (const CgRow* term = cg + row.cg_begin; term != cg + row.cg_end; ++term) {
      const int entry = int(term->m1 * row.d3 + term->m3);
      if (row.d2 == 1 && entry > 0) continue;  // the unit matrix
      path.sparse &= selected(path.d1, path.d3, int(term->m1), int(term->m3));
      double value;
      std::memcpy(&value, &term->value_bits, sizeof(value));
      (seen[entry] ? add : set)
          .push_back({int(row.in2_offset + term->m2), path.matrix + entry, T(value)});
      seen[entry] = true;
    }
  }

  void look_ahead() {
    constexpr size_t kFetch = 4;
    for (size_t i = 0; i < paths.size(); ++i) {
      const PlanPath<T>& later = paths[(i + kFetch) % paths.size()];
      paths[i].fetch = later.weight;
      paths[i].fetch_end = later.weight + later.mul;
      paths[i].fetch_later = i + kFetch >= paths.size();
      paths[i].next_out = paths[(i + 1) % paths.size()].out;
    }
  }
};

}  // namespace fastmlip::FASTMLIP_ISA
