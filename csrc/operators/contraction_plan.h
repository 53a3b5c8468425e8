// What contraction.cpp works from: which entries the matrix M of a node has, in the order that each
// of its two products reads them, and the terms that each entry is a sum of.
#pragma once

#include "operators/contraction.h"
#include "tensor_product/plan.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// One block (irrep) of the result of a product with M or with its transpose: `dim` components from
// `offset` on, each a sum over the components rows[begin] .. rows[end - 1] of the operand. Its
// entries lie in M as [row][dim], from `matrix` on.
struct MatrixBlock {
  int offset, dim, begin, end, matrix;
};

// value * weight[path] * env[j], with the product of the latter two at `product`.
template <class T>
struct MatrixTerm {
  int product, entry;
  T value;
};

// M, or its transpose, as one product reads it.
template <class T>
struct MatrixSide {
  std::vector<MatrixBlock> blocks;
  std::vector<int> rows;
  std::vector<MatrixTerm<T>> set, add;  // a term of each entry that is not zero; further ones
  int entries = 0;
};

// The products weight[path] * env[j], j = env .. env + dim - 1, of one path: from `first` on.
struct PathProducts {
  int env, dim, first;
};

struct Irrep {
  int offset, dim;
};

template <class T>
struct ContractionPlan {
  std::vector<Irrep> in, out;
  std::vector<PathProducts> paths;
  int dim1 = 0, dim2 = 0, dim3 = 0, products = 0;
  MatrixSide<T> forward, transposed;      // out = x M, dx = grad M^T
  std::vector<MatrixTerm<T>> by_product;  // of `forward`, as the adjoint adds them up

  explicit ContractionPlan(const int64_t* tables) {
    const auto& header = *reinterpret_cast<const Header*>(tables);
    const auto* blocks = reinterpret_cast<const Block*>(&header + 1);
    dim1 = read_irreps(blocks, header.num_blocks1, in);
    dim2 = int(header.dim2);
    dim3 = read_irreps(blocks + header.num_blocks1, header.num_blocks3, out);
    const auto* row =
        reinterpret_cast<const PathRow*>(blocks + header.num_blocks1 + header.num_blocks3);
    const auto* cg = reinterpret_cast<const CgRow*>(row + header.num_paths);
    const int count1 = int(in.size()), count3 = int(out.size());
    std::vector<bool> coupled(count1 * count3);
    for (int64_t p = 0; p < header.num_paths; ++p)
      coupled[row[p].in1_block * count3 + row[p].out_block] = true;
    auto place = make_side(forward, out, in, [&](int k, int i) { return coupled[i * count3 + k]; });
    auto place_t =
        make_side(transposed, in, out, [&](int i, int k) { return coupled[i * count3 + k]; });

    std::vector<bool> seen(forward.entries);
    for (int64_t p = 0; p < header.num_paths; ++p) {
      paths.push_back({int(row[p].in2_offset), int(row[p].d2), products});
      const int b1 = int(row[p].in1_block), b3 = int(row[p].out_block);
      for (const CgRow* term = cg + row[p].cg_begin; term != cg + row[p].cg_end; ++term) {
        const int m1 = int(term->m1), m3 = int(term->m3), product = products + int(term->m2);
        double value;
        std::memcpy(&value, &term->value_bits, sizeof(value));
        const int entry = place[b3 * count1 + b1] + m1 * out[b3].dim + m3,
                  entry_t = place_t[b1 * count3 + b3] + m3 * in[b1].dim + m1;
        const bool first = !seen[entry];
        (first ? forward.set : forward.add).push_back({product, entry, T(value)});
        (first ? transposed.set : transposed.add).push_back({product, entry_t, T(value)});
        by_product.push_back({product, entry, T(value)});
        seen[entry] = true;
      }
      products += int(row[p].d2);
    }
    std::stable_sort(by_product.begin(), by_product.end(),
                     [](const auto& a, const auto& b) { return a.product < b.product; });
  }

 private:
  static int read_irreps(const Block* blocks, int64_t count, std::vector<Irrep>& irreps) {
    int dim = 0;
    for (int64_t i = 0; i < count; ++i) {
      irreps.push_back({dim, int(blocks[i].dim)});
      dim += irreps.back().dim;
    }
    return dim;
  }

  // Returns where, for block b of the result and block r of the operand, at [b * count + r], the
  // entries of their pair begin.
  template <class Coupled>
  static std::vector<int> make_side(MatrixSide<T>& side, const std::vector<Irrep>& results,
                                    const std::vector<Irrep>& operands, const Coupled& coupled) {
    std::vector<int> place(results.size() * operands.size());
    for (size_t b = 0; b < results.size(); ++b) {
      const int begin = int(side.rows.size()), first = side.entries;
      for (size_t r = 0; r < operands.size(); ++r) {
        if (!coupled(int(b), int(r))) continue;
        place[b * operands.size() + r] = side.entries;
        for (int m = 0; m < operands[r].dim; ++m) side.rows.push_back(operands[r].offset + m);
        side.entries += operands[r].dim * results[b].dim;
      }
      const int end = int(side.rows.size());
      side.blocks.push_back({results[b].offset, results[b].dim, begin, end, first});
    }
    return place;
  }
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
