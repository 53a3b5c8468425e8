// Rows of irreps in packed layout ([block][m][mul padded to a vector], padding zero), which ir_mul
// is where all multiplicities are whole vectors.
#pragma once

#include <algorithm>
#include <vector>

#include "simd/simd.h"
#include "tensor_product/table.h"

namespace fastmlip::FASTMLIP_ISA {

struct PackedBlock {
  int mul, padded, dim, offset, packed_offset;
};

// Rows of irreps: as they lie in a tensor, and packed.
struct Layout {
  std::vector<PackedBlock> blocks;
  int dim = 0, packed = 0;  // columns of each
  bool ir_mul = false;

  // Whether a row of the tensor is a packed one.
  bool is_packed() const { return ir_mul && dim == packed; }
};

template <class T>
Layout make_layout(const Block* blocks, int64_t count, bool ir_mul) {
  Layout result;
  result.ir_mul = ir_mul;
  result.blocks.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const int mul = int(blocks[i].mul), d = int(blocks[i].dim), padded = round_up(mul, kLanes<T>);
    result.blocks.push_back({mul, padded, d, result.dim, result.packed});
    result.dim += mul * d;
    result.packed += padded * d;
  }
  return result;
}

template <class T, int D>
void pack_block(const PackedBlock& b, const T* row, T* packed) {
  constexpr int L = kLanes<T>;
  const T* from = row + b.offset;
  T* to = packed + b.packed_offset;
  const int dim = D ? D : b.dim;
  int u = 0;
  if constexpr (D > 0) {
    for (; u + L <= b.mul; u += L) {
      Vec<T> tuples[D], components[D];
      unroll<D>(D, [&](int v) FASTMLIP_INLINE { tuples[v] = load(from + u * D + v * L); });
      Tuples<T, D>::split(tuples, components);
      unroll<D>(D, [&](int m) FASTMLIP_INLINE { store(to + m * b.padded + u, components[m]); });
    }
  }
  for (int m = 0; m < dim; ++m)
    for (int i = u; i < b.padded; ++i) to[m * b.padded + i] = i < b.mul ? from[i * dim + m] : T(0);
}

template <class T, int D>
void unpack_block(const PackedBlock& b, const T* packed, T* row) {
  constexpr int L = kLanes<T>;
  const T* from = packed + b.packed_offset;
  T* to = row + b.offset;
  const int dim = D ? D : b.dim;
  int u = 0;
  if constexpr (D > 0) {
    for (; u + L <= b.mul; u += L) {
      Vec<T> tuples[D], components[D];
      unroll<D>(D, [&](int m) FASTMLIP_INLINE { components[m] = load(from + m * b.padded + u); });
      Tuples<T, D>::join(components, tuples);
      unroll<D>(D, [&](int v) FASTMLIP_INLINE { store(to + u * D + v * L, tuples[v]); });
    }
  }
  for (; u < b.mul; ++u)
    for (int m = 0; m < dim; ++m) to[u * dim + m] = from[m * b.padded + u];
}

template <class T>
void pack(const Layout& layout, const T* row, T* packed) {
  for (const PackedBlock& b : layout.blocks) {
    if (!layout.ir_mul) {
      with_dim(b.dim, [&](auto D) { pack_block<T, D>(b, row, packed); });
      continue;
    }
    for (int m = 0; m < b.dim; ++m) {
      T* to = packed + b.packed_offset + m * b.padded;
      std::copy_n(row + b.offset + m * b.mul, b.mul, to);
      std::fill(to + b.mul, to + b.padded, T(0));
    }
  }
}

template <class T>
void unpack(const Layout& layout, const T* packed, T* row) {
  for (const PackedBlock& b : layout.blocks) {
    if (!layout.ir_mul) {
      with_dim(b.dim, [&](auto D) { unpack_block<T, D>(b, packed, row); });
      continue;
    }
    for (int m = 0; m < b.dim; ++m)
      std::copy_n(packed + b.packed_offset + m * b.padded, b.mul, row + b.offset + m * b.mul);
  }
}

}  // namespace fastmlip::FASTMLIP_ISA
