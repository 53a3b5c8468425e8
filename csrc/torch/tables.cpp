#include "torch/tables.h"

#include <cmath>
#include <cstring>

#include "base/limits.h"

namespace fastmlip {
namespace {

constexpr int64_t kWords = sizeof(int64_t);
constexpr int64_t kMost = INT32_MAX;  // columns, which kernels count in ints

// Columns of blocks of irreps; packed rows, which are wider, are counted too.
int64_t columns(const char* name, const Block* blocks, int64_t count) {
  int64_t sum = 0, packed = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto [mul, dim] = blocks[i];
    expect(mul >= 0 && mul <= kMost && dim > 0 && dim % 2 == 1 && dim <= kMaxDim, "tables: ", name,
           " block ", i, " is ", mul, " irreps of dimension ", dim, ", expected l up to ",
           kMaxDim / 2);
    sum += mul * dim;
    packed += (mul + 63) * dim;
    expect(packed <= kMost, "tables: too many columns in the ", name, " blocks");
  }
  return sum;
}

bool is_finite(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return std::isfinite(value);
}

void check_terms(const PathRow& path, const CgRow* term, const CgRow* end) {
  uint64_t bits = 0;
  bool finite = true;
  for (; term != end; ++term) {
    bits |= beyond(term->m1, path.d1) | beyond(term->m2, path.d2) | beyond(term->m3, path.d3);
    finite &= is_finite(term->value_bits);
  }
  expect(!(bits >> 63) && finite, "tables: a Clebsch-Gordan symbol is out of range");
}

}  // namespace

TableSizes check_tables(const Tensor& tables) {
  const int64_t size = tables.dim() == 1 && tables.is_contiguous() ? tables.size(0) : 0;
  expect(size >= int64_t(sizeof(Header)) / kWords,
         "tables: too short, or not one behind the other");
  const int64_t* words = tables.const_data_ptr<int64_t>();
  const auto& header = *reinterpret_cast<const Header*>(words);
  const char* wrong = "tables: not a table of TensorProductProblem.tables()";
  for (int64_t count : {header.num_blocks1, header.num_blocks3, header.num_paths, header.num_cg})
    expect(count >= 0 && count <= size, wrong);
  const ProductTable table(words);
  expect(reinterpret_cast<const int64_t*>(table.cg + header.num_cg) == words + size, wrong);
  expect(header.dim2 >= 0 && header.dim2 <= kMost && header.ir_mul >= 0 && header.ir_mul <= 1,
         wrong);
  int64_t weights = 0, terms = 0;
  const int64_t dim1 = columns("input", table.in, header.num_blocks1);
  const int64_t dim3 = columns("output", table.out, header.num_blocks3);
  for (int64_t i = 0; i < header.num_paths; ++i) {
    const PathRow& path = table.paths[i];
    expect(path.in1_block >= 0 && path.in1_block < header.num_blocks1 && path.out_block >= 0 &&
               path.out_block < header.num_blocks3,
           "tables: there are no such blocks as those of path ", i);
    const Block &from = table.in[path.in1_block], &to = table.out[path.out_block];
    // l2 from |l1 - l3| to l1 + l3
    expect(path.mul == from.mul && path.mul == to.mul && path.d1 == from.dim && path.d3 == to.dim &&
               path.d2 % 2 == 1 && path.d2 <= kMaxDim && path.d2 > path.d1 - path.d3 &&
               path.d2 > path.d3 - path.d1 && path.d2 < path.d1 + path.d3 && path.in2_offset >= 0 &&
               path.in2_offset <= header.dim2 - path.d2,
           "tables: path ", i, " does not fit its blocks");
    expect(path.weight_offset == weights && path.cg_begin == terms && path.cg_end >= terms &&
               path.cg_end <= header.num_cg,
           "tables: path ", i, " does not begin where the one before ends");
    weights += path.mul;
    terms = path.cg_end;
    check_terms(path, table.cg + path.cg_begin, table.cg + path.cg_end);
  }
  expect(weights == header.weight_numel && weights <= kMost && terms == header.num_cg, wrong);
  return {dim1, header.dim2, dim3, weights};
}

void check_order(const Tensor& order, int64_t nodes, int64_t edges, EdgeOrder::Sides sides) {
  expect(nodes >= 0 && nodes <= EdgeOrder::kMost && edges >= 0 && edges <= EdgeOrder::kMost &&
             order.dim() == 1 && order.is_contiguous() &&
             order.size(0) == EdgeOrder::size(nodes, edges),
         "order: not the edge_order of these nodes and edges");
  const EdgeOrder table(order.const_data_ptr<int64_t>(), nodes, edges);
  const char* fault = table.find_fault(sides, parallel_for, parts(edges / 10000));
  expect(!fault, "order: not the edge_order of these nodes and edges: ", fault);
}

}  // namespace fastmlip
