// What the passes of tensor_product_conv.cpp work from: the problem's table, read once per call,
// and rows in packed layout ([block][m][mul padded to a vector], padding zero).
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "simd.h"
#include "tensor_product_conv.h"

namespace fastmlip::FASTMLIP_ISA {

template <class T>
struct CgTerm {
  int m2, index;  // index = m1 * d3 + m3
  T value;
};

template <class T>
struct PlanPath {
  int mul, padded, d1, d2, d3, in1, in2, out, weight;  // in1, out: offsets in packed rows
  std::vector<CgTerm<T>> by_matrix, by_attr;           // the same terms sorted by index, by m2
  std::vector<int> attr_end;                           // [d2]: where in by_attr the terms of m2 end
};

struct PackedBlock {
  int mul, padded, dim, offset, packed_offset;
};

template <class T>
struct Plan {
  int dim1 = 0, dim2 = 0, dim3 = 0, packed1 = 0, packed3 = 0;
  int64_t weight_numel = 0;
  int max_matrix = 1;
  std::vector<PackedBlock> blocks1, blocks3;
  std::vector<PlanPath<T>> paths;

  explicit Plan(const int64_t* tables) {
    const auto& header = *reinterpret_cast<const Header*>(tables);
    const auto* blocks = reinterpret_cast<const Block*>(&header + 1);
    blocks1 = pack_blocks(blocks, header.num_blocks1, dim1, packed1);
    blocks3 = pack_blocks(blocks + header.num_blocks1, header.num_blocks3, dim3, packed3);
    const auto* rows =
        reinterpret_cast<const PathRow*>(blocks + header.num_blocks1 + header.num_blocks3);
    const auto* cg = reinterpret_cast<const CgRow*>(rows + header.num_paths);
    dim2 = int(header.dim2);
    weight_numel = header.weight_numel;
    for (int64_t i = 0; i < header.num_paths; ++i) {
      const PathRow& row = rows[i];
      if (row.mul == 0) continue;
      const PackedBlock &in = blocks1[row.in1_block], &out = blocks3[row.out_block];
      PlanPath<T> path{in.mul,
                       in.padded,
                       int(row.d1),
                       int(row.d2),
                       int(row.d3),
                       in.packed_offset,
                       int(row.in2_offset),
                       out.packed_offset,
                       int(row.weight_offset),
                       {},
                       {},
                       {}};
      for (const CgRow* term = cg + row.cg_begin; term != cg + row.cg_end; ++term) {
        double value;
        std::memcpy(&value, &term->value_bits, sizeof(value));
        path.by_matrix.push_back({int(term->m2), int(term->m1 * row.d3 + term->m3), T(value)});
      }
      path.by_attr = path.by_matrix;
      std::stable_sort(path.by_matrix.begin(), path.by_matrix.end(),
                       [](const auto& a, const auto& b) { return a.index < b.index; });
      std::stable_sort(path.by_attr.begin(), path.by_attr.end(),
                       [](const auto& a, const auto& b) { return a.m2 < b.m2; });
      for (int m2 = 0; m2 < path.d2; ++m2)
        path.attr_end.push_back(
            int(std::upper_bound(path.by_attr.begin(), path.by_attr.end(), m2,
                                 [](int m, const auto& term) { return m < term.m2; }) -
                path.by_attr.begin()));
      max_matrix = std::max(max_matrix, path.d1 * path.d3);
      paths.push_back(std::move(path));
    }
  }

  static std::vector<PackedBlock> pack_blocks(const Block* blocks, int64_t count, int& dim,
                                              int& packed) {
    std::vector<PackedBlock> result;
    for (int64_t i = 0; i < count; ++i) {
      const int mul = int(blocks[i].mul), d = int(blocks[i].dim), padded = round_up(mul, kLanes<T>);
      result.push_back({mul, padded, d, dim, packed});
      dim += mul * d;
      packed += padded * d;
    }
    return result;
  }
};

template <class T>
struct Free {
  void operator()(T* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free<T>>;

template <class T>
Buffer<T> allocate(int64_t count) {
  const int64_t bytes = (std::max<int64_t>(count, 1) * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  ask_for_huge_pages(memory, bytes);
  return Buffer<T>(static_cast<T*>(memory));
}

template <class T>
Buffer<T> zeros(int64_t count) {
  Buffer<T> result = allocate<T>(count);
  std::fill_n(result.get(), count, T(0));
  return result;
}

// ------------------------------------------------------------------ packing

template <class T, int D>
void pack_block(const PackedBlock& b, const T* row, T* packed) {
  const T* from = row + b.offset;
  T* to = packed + b.packed_offset;
  const int dim = D ? D : b.dim;
  for (int m = 0; m < dim; ++m) {
    for (int u = 0; u < b.mul; ++u) to[m * b.padded + u] = from[u * dim + m];
    for (int u = b.mul; u < b.padded; ++u) to[m * b.padded + u] = 0;
  }
}

template <class T, int D>
void unpack_block(const PackedBlock& b, const T* packed, T* row) {
  const T* from = packed + b.packed_offset;
  T* to = row + b.offset;
  const int dim = D ? D : b.dim;
  for (int u = 0; u < b.mul; ++u)
    for (int m = 0; m < dim; ++m) to[u * dim + m] = from[m * b.padded + u];
}

template <class T>
void pack(const std::vector<PackedBlock>& blocks, const T* row, T* packed) {
  for (const PackedBlock& b : blocks)
    with_dim(b.dim, [&](auto D) { pack_block<T, D>(b, row, packed); });
}

template <class T>
void unpack(const std::vector<PackedBlock>& blocks, const T* packed, T* row) {
  for (const PackedBlock& b : blocks)
    with_dim(b.dim, [&](auto D) { unpack_block<T, D>(b, packed, row); });
}

}  // namespace fastmlip::FASTMLIP_ISA
