// CPU kernel of irreps_linear; fastmlip/ops/irreps_linear.py states the formula.
//
// For a few nodes of one type and one block of the result, rows in mul_ir layout are packed to a
// panel [u][(node, m)], a few vectors wide. It is multiplied by the weights from the left, which
// are read along or across as they lie, so the transpose costs nothing, and put back to mul_ir.
#include "irreps_linear.h"

#include <atomic>
#include <cstring>
#include <map>

#include "gemm.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// All paths that end in one block of the result.
struct Group {
  int64_t out, mul, dim, nodes;  // nodes of a panel
  int64_t columns;               // of a panel
  std::vector<LinearPath> paths;
};

struct Task {
  const Group* group;
  int64_t type, first, last;  // positions in the order of nodes
};

template <class T>
std::vector<Group> make_groups(const int64_t* tables, bool transposed) {
  const auto& header = *reinterpret_cast<const LinearHeader*>(tables);
  const auto* paths = reinterpret_cast<const LinearPath*>(&header + 1);
  constexpr int64_t width = kTileVectors * kLanes<T>;
  std::map<int64_t, Group> groups;
  for (int64_t i = 0; i < header.num_paths; ++i) {
    LinearPath path = paths[i];
    if (transposed) std::swap(path.in, path.out), std::swap(path.mul_in, path.mul_out);
    if (path.mul_in * path.mul_out == 0) continue;
    Group& group = groups[path.out];
    group.out = path.out, group.mul = path.mul_out, group.dim = path.dim;
    group.nodes = std::max<int64_t>(1, width / path.dim);
    group.columns = round_up(int(group.nodes * path.dim), kLanes<T>);
    group.paths.push_back(path);
  }
  std::vector<Group> result;
  for (auto& [out, group] : groups) result.push_back(std::move(group));
  return result;
}

std::vector<Task> make_tasks(const std::vector<Group>& groups, const Typed& typed) {
  std::vector<Task> tasks;
  for (const Group& group : groups) {
    for (int64_t type = 0, end = 0; type < typed.num_types; ++type) {
      int64_t first = end;
      end = typed.type_end ? typed.type_end[type] : typed.num_nodes;
      for (; first < end; first += group.nodes)
        tasks.push_back({&group, type, first, std::min(first + group.nodes, end)});
    }
  }
  return tasks;
}

// One irrep. Small ones as a vector of a fixed size, where what stands behind them (`behind`: it
// may be overwritten) is written after them; elements one by one are what packing would cost.
template <int D, class T>
FASTMLIP_INLINE inline void copy_irrep(const T* from, T* to, int64_t dim, bool behind) {
  constexpr int wide = D == 3 ? 4 : D == 5 || D == 7 ? 8 : 0;
  if (wide && behind)
    std::memcpy(to, from, wide * sizeof(T));
  else
    for (int64_t m = 0; m < (D ? D : dim); ++m) to[m] = from[m];
}
constexpr int64_t kBehind = 8;  // elements that a panel needs behind its last row for this

// f(irrep u of the task's node, its columns of row u of the panel, ..) for all nodes and u: what
// copy_irrep takes. Nodes and u ascend, but for a few u at a time, whose cache lines stay.
template <class T, class Row, class F>
void for_panel(const Task& task, const Typed& typed, Row* rows, int64_t row_size, int64_t mul,
               T* panel, const F& f) {
  const Group& group = *task.group;
  with_dim(int(group.dim), [&](auto D) {
    const int64_t dim = D ? int64_t(D) : group.dim;
    for (int64_t begin = 0; begin < mul; begin += 16) {
      const int64_t end = std::min<int64_t>(begin + 16, mul);
      for (int64_t i = task.first; i < task.last; ++i) {
        Row* row = rows + (typed.node ? typed.node[i] : i) * row_size;
        const int64_t column = (i - task.first) * dim;
        const bool inside = column + kBehind <= group.columns;
        for (int64_t u = begin; u < end; ++u)
          f(D, row + u * dim, panel + u * group.columns + column, dim, inside && u + 1 < mul);
      }
    }
  });
}

// panel_out[w] = or += sum_u W[u][w] panel_in[u]
template <class T, bool kAdd>
void multiply(const Group& group, const LinearPath& path, const T* weight, bool transposed,
              const T* in, T* out) {
  const int64_t stride = transposed ? path.mul_in : path.mul_out;  // of a row of W
  auto rows = [&](auto R, auto kAcross, int64_t w, int count) {
    T* c[kTileRows];
    for (int r = 0; r < count; ++r) c[r] = out + (w + r) * group.columns;
    gemm_rows<T, R, kAdd, kAcross>(weight + (kAcross ? w : w * stride), stride, count, path.mul_in,
                                   in, group.columns, group.columns, c);
  };
  auto all = [&](auto kAcross) {
    int64_t w = 0;
    for (; w + kTileRows <= path.mul_out; w += kTileRows)
      rows(std::integral_constant<int, kTileRows>{}, kAcross, w, kTileRows);
    for (; w < path.mul_out; ++w) rows(std::integral_constant<int, 1>{}, kAcross, w, 1);
  };
  transposed ? all(std::false_type{}) : all(std::true_type{});
}

template <class T>
void apply(const T* x, const T* weight, const Typed& typed, const int64_t* tables, bool transposed,
           T* out, ParallelFor parallel_for, int64_t threads) {
  const auto& header = *reinterpret_cast<const LinearHeader*>(tables);
  const int64_t dim_in = transposed ? header.dim_out : header.dim_in;
  const int64_t dim_out = transposed ? header.dim_in : header.dim_out;
  const std::vector<Group> groups = make_groups<T>(tables, transposed);
  const std::vector<Task> tasks = make_tasks(groups, typed);
  int64_t covered = 0, panel = 0, result = 0;
  for (const Group& group : groups) {
    covered += group.mul * group.dim;
    result = std::max(result, group.mul * group.columns);
    for (const LinearPath& path : group.paths) panel = std::max(panel, path.mul_in * group.columns);
  }
  if (covered < dim_out) std::fill_n(out, typed.num_nodes * dim_out, T(0));
  std::atomic<size_t> next{0};
  run(parallel_for, threads, [&](int64_t) {
    const Buffer<T> in = allocate<T>(panel + kBehind), sum = allocate<T>(result + kBehind);
    std::fill_n(in.get(), panel, T(0));  // columns of no node: any number, but no slow one
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();) {
      const Task& task = tasks[i];
      const Group& group = *task.group;
      for (const LinearPath& path : group.paths) {
        const T* w = weight + task.type * header.weight_numel + path.weight;
        for_panel(task, typed, x + path.in, dim_in, path.mul_in, in.get(),
                  [](auto D, const T* row, T* column, int64_t dim, bool behind)
                      FASTMLIP_INLINE { copy_irrep<D>(row, column, dim, behind); });
        if (&path == group.paths.data())
          multiply<T, false>(group, path, w, transposed, in.get(), sum.get());
        else
          multiply<T, true>(group, path, w, transposed, in.get(), sum.get());
      }
      for_panel(task, typed, out + group.out, dim_out, group.mul, sum.get(),
                [](auto D, T* row, const T* column, int64_t dim, bool behind)
                    FASTMLIP_INLINE { copy_irrep<D>(column, row, dim, behind); });
    }
  });
}

}  // namespace

extern const IrrepsLinear irreps_linear;
const IrrepsLinear irreps_linear = {apply<float>, apply<double>};

}  // namespace fastmlip::FASTMLIP_ISA
