// What the passes over tensor products take: the problem's table, and plain pointers. No torch.
#pragma once

#include <cstdint>

namespace fastmlip {

// Header of the table that fastmlip/problem.py writes, then its rows.
struct Header {
  int64_t num_blocks1, dim2, num_blocks3, num_paths, num_cg, weight_numel;
  int64_t ir_mul;  // layout of x and out: [block][m][mul], or [block][mul][m] where 0
};
struct Block {
  int64_t mul, dim;
};
struct PathRow {
  int64_t mul, d1, d2, d3, in1_block, in2_offset, out_block, weight_offset, cg_begin, cg_end;
};
struct CgRow {
  int64_t m1, m2, m3, value_bits;
};

// The parts of a table.
struct ProductTable {
  const Header& header;
  const Block *in, *out;
  const PathRow* paths;
  const CgRow* cg;

  explicit ProductTable(const int64_t* table)
      : header(*reinterpret_cast<const Header*>(table)),
        in(reinterpret_cast<const Block*>(&header + 1)),
        out(in + header.num_blocks1),
        paths(reinterpret_cast<const PathRow*>(out + header.num_blocks3)),
        cg(reinterpret_cast<const CgRow*>(paths + header.num_paths)) {}
};

// Row-major tensors; a pointer that a kernel does not use is null.
template <class T>
struct Tensors {
  const T *x, *edge_attr, *edge_weight, *grad;  // primal operands
  const T *hx, *ha, *hw;                        // second-order directions, all or none
  T *out, *dx, *da, *dw;
};

}  // namespace fastmlip
