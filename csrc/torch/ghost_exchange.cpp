// fastmlip::ghost_exchange_cpu and ghost_exchange_reverse_cpu
#include "operators/ghost_exchange.h"

#include <cstring>

#include "torch/common.h"

namespace fastmlip {
namespace {

int64_t bytes_of(const char* name, const Tensor& t) {
  const bool wide = t.scalar_type() == ScalarType::Double;
  expect(t.dim() == 2 && (wide || t.scalar_type() == ScalarType::Float), name,
         ": expected two dimensions, float32 or float64");
  return wide ? 8 : 4;
}

void exchange(fastmlip_ghost_rows f, void* rows, int64_t local, int64_t all, int64_t columns,
              int64_t bytes) {
  expect(f,
         "ghost_exchange: nobody is registered that exchanges rows of ghost atoms; this model runs "
         "in LAMMPS with pair_style fastmlip, or after a call of fastmlip_set_ghost_world");
  expect(f(ghost_world().context, rows, local, all, columns, bytes) == 0,
         "ghost_exchange: the exchange of rows of ghost atoms failed");
}

Tensor ghost_exchange_cpu(const Tensor& features, int64_t num_ghost) {
  const int64_t bytes = bytes_of("features", features);
  const int64_t local = features.size(0), columns = features.size(1);
  expect(num_ghost >= 0, "num_ghost: expected 0 or more, got ", num_ghost);
  const Tensor own = packed(features);
  Tensor rows = empty({local + num_ghost, columns}, features.scalar_type());
  if (local * columns > 0)
    std::memcpy(rows.mutable_data_ptr(), own.const_data_ptr(), local * columns * bytes);
  exchange(ghost_world().forward, rows.mutable_data_ptr(), local, local + num_ghost, columns,
           bytes);
  return rows;
}

Tensor ghost_exchange_reverse_cpu(const Tensor& grad, int64_t num_ghost) {
  const int64_t bytes = bytes_of("grad", grad);
  const int64_t all = grad.size(0), columns = grad.size(1);
  expect(num_ghost >= 0 && num_ghost <= all, "num_ghost: expected 0 to ", all, ", got ", num_ghost);
  const Tensor given = packed(grad);
  Tensor rows = empty({all, columns}, grad.scalar_type());
  if (all * columns > 0)
    std::memcpy(rows.mutable_data_ptr(), given.const_data_ptr(), all * columns * bytes);
  exchange(ghost_world().reverse, rows.mutable_data_ptr(), all - num_ghost, all, columns, bytes);
  Tensor home = empty({all - num_ghost, columns}, grad.scalar_type());
  if (home.numel() > 0)
    std::memcpy(home.mutable_data_ptr(), rows.const_data_ptr(), home.numel() * bytes);
  return home;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("ghost_exchange_cpu(Tensor features, SymInt num_ghost) -> Tensor");
  m.def("ghost_exchange_reverse_cpu(Tensor grad, SymInt num_ghost) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("ghost_exchange_cpu", TORCH_BOX(&fastmlip::ghost_exchange_cpu));
  m.impl("ghost_exchange_reverse_cpu", TORCH_BOX(&fastmlip::ghost_exchange_reverse_cpu));
}
