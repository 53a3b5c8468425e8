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
  std::vector<LinearPath> paths;
};

struct Task {
  const Group* group;
  int64_t type, first, last;  // positions in the order of nodes
  int64_t columns;            // of the panel: whole vectors
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
    group.paths.push_back(path);
  }
  std::vector<Group> result;
  for (auto& [out, group] : groups) result.push_back(std::move(group));
  return result;
}

template <class T>
std::vector<Task> make_tasks(const std::vector<Group>& groups, const Typed& typed) {
  std::vector<Task> tasks;
  for (const Group& group : groups) {
    for (int64_t type = 0, end = 0; type < typed.num_types; ++type) {
      int64_t first = end;
      end = typed.type_end ? typed.type_end[type] : typed.num_nodes;
      for (; first < end; first += group.nodes) {
        const int64_t last = std::min(first + group.nodes, end);
        const int columns = round_up(int((last - first) * group.dim), kLanes<T>);
        tasks.push_back({&group, type, first, last, columns});
      }
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

// Scalars: a transpose.
template <bool kOut, class T, class Row>
void move_scalars(const Task& task, const Typed& typed, Row* rows, int64_t row_size, int64_t mul,
                  T* panel) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t first = task.first; first < task.last; first += L) {
    Row* row[L] = {};
    for (int64_t i = first; i < std::min(first + L, task.last); ++i)
      row[i - first] = rows + (typed.node ? typed.node[i] : i) * row_size;
    T* to = panel + (first - task.first);
    int64_t u = 0;
    for (; u + L <= mul; u += L) {
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i)
        square[i] = kOut ? load(to + (u + i) * task.columns) : row[i] ? load(row[i] + u) : Vec<T>{};
      transpose_square<T>(square);
      for (int64_t i = 0; i < L; ++i) {
        if constexpr (!kOut)
          store(to + (u + i) * task.columns, square[i]);
        else if (row[i])
          store(row[i] + u, square[i]);
      }
    }
    for (; u < mul; ++u) {
      for (int64_t i = 0; i < L && row[i]; ++i) {
        T& there = to[u * task.columns + i];
        if constexpr (kOut)
          row[i][u] = there;
        else
          there = row[i][u];
      }
    }
  }
}

// All irreps of the task's nodes and of a block of mul of them, between mul_ir `rows` and `panel`.
// Nodes and u ascend, but for a few u at a time, whose cache lines stay.
template <bool kOut, class T, class Row>
void move(const Task& task, const Typed& typed, Row* rows, int64_t row_size, int64_t mul,
          T* panel) {
  if (task.group->dim == 1) return move_scalars<kOut>(task, typed, rows, row_size, mul, panel);
  with_dim(int(task.group->dim), [&](auto D) {
    const int64_t dim = D ? int64_t(D) : task.group->dim;
    if (!kOut && (task.last - task.first) * dim < task.columns)  // columns of no node
      for (int64_t u = 0; u < mul; ++u) store(panel + (u + 1) * task.columns - kLanes<T>, Vec<T>{});
    for (int64_t begin = 0; begin < mul; begin += 16) {
      const int64_t end = std::min<int64_t>(begin + 16, mul);
      for (int64_t i = task.first; i < task.last; ++i) {
        Row* row = rows + (typed.node ? typed.node[i] : i) * row_size;
        const int64_t column = (i - task.first) * dim;
        const bool inside = column + kBehind <= task.columns;
        for (int64_t u = begin; u < end; ++u) {
          T* there = panel + u * task.columns + column;
          if constexpr (kOut)
            copy_irrep<D>(there, row + u * dim, dim, inside && u + 1 < mul);
          else
            copy_irrep<D>(row + u * dim, there, dim, inside && u + 1 < mul);
        }
      }
    }
  });
}

// panel_out[w] = or += sum_u W[u][w] panel_in[u]
template <class T, bool kAdd>
void multiply(int64_t columns, const LinearPath& path, const T* weight, bool transposed,
              const T* in, T* out) {
  const int64_t stride = transposed ? path.mul_in : path.mul_out;  // of a row of W
  auto rows = [&](auto R, auto kAcross, int64_t w, int count) {
    T* c[kTileRows];
    for (int r = 0; r < count; ++r) c[r] = out + (w + r) * columns;
    gemm_rows<T, R, kAdd, kAcross>(weight + (kAcross ? w : w * stride), stride, count, path.mul_in,
                                   in, columns, columns, c);
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
  const std::vector<Task> tasks = make_tasks<T>(groups, typed);
  int64_t covered = 0, panel = 0, result = 0;
  for (const Group& group : groups) covered += group.mul * group.dim;
  for (const Task& task : tasks) {
    result = std::max(result, task.group->mul * task.columns);
    for (const LinearPath& path : task.group->paths)
      panel = std::max(panel, path.mul_in * task.columns);
  }
  if (covered < dim_out) std::fill_n(out, typed.num_nodes * dim_out, T(0));
  std::atomic<size_t> next{0};
  run(parallel_for, threads, [&](int64_t) {
    const Buffer<T> in = allocate<T>(panel + kBehind), sum = allocate<T>(result + kBehind);
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();) {
      const Task& task = tasks[i];
      const Group& group = *task.group;
      for (const LinearPath& path : group.paths) {
        const T* w = weight + task.type * header.weight_numel + path.weight;
        move<false>(task, typed, x + path.in, dim_in, path.mul_in, in.get());
        if (&path == group.paths.data())
          multiply<T, false>(task.columns, path, w, transposed, in.get(), sum.get());
        else
          multiply<T, true>(task.columns, path, w, transposed, in.get(), sum.get());
      }
      move<true>(task, typed, out + group.out, dim_out, group.mul, sum.get());
    }
  });
}

// ------------------------------------------------------------------ the gradient of the weights

// Rows (node, m) of `width` irreps of dimension `dim`: to[(node, m) * stride + u]. `from` is where
// the first of them starts in a row of x.
template <class T>
void pack_irreps(const Task& task, const Typed& typed, const T* from, int64_t row_size,
                 int64_t width, int64_t dim, int64_t stride, T* to) {
  with_dim(int(dim), [&](auto D) {
    const int64_t d = D ? int64_t(D) : dim;
    for (int64_t i = task.first; i < task.last; ++i, to += d * stride) {
      const T* row = from + (typed.node ? typed.node[i] : i) * row_size;
      for (int64_t m = 0; m < d; ++m)
        for (int64_t u = 0; u < width; ++u) to[m * stride + u] = row[u * d + m];
    }
  });
}

// Columns of the weights of one path and type belong to one task, which goes through the type's
// nodes in their order: for any number of threads a sum has one order.
template <class T>
void dweight(const T* x, const T* grad, const Typed& typed, const int64_t* tables, T* result,
             ParallelFor parallel_for, int64_t threads) {
  const auto& header = *reinterpret_cast<const LinearHeader*>(tables);
  const auto* paths = reinterpret_cast<const LinearPath*>(&header + 1);
  constexpr int64_t width = 2 * kTileVectors * kLanes<T>, depth = 128;
  struct Columns {
    const LinearPath* path;
    int64_t type, first, count;
  };
  std::vector<Columns> tasks;
  int64_t most_in = 0, most_rows = 0;
  for (int64_t i = 0; i < header.num_paths; ++i) {
    most_in = std::max<int64_t>(most_in, round_up(int(paths[i].mul_in), kTileRows));
    most_rows = std::max(most_rows, std::max(depth, paths[i].dim));
    for (int64_t type = 0; type < typed.num_types; ++type)
      for (int64_t w = 0; w < paths[i].mul_out; w += width)
        tasks.push_back({&paths[i], type, w, std::min(width, paths[i].mul_out - w)});
  }
  std::fill_n(result, typed.num_types * header.weight_numel, T(0));
  std::atomic<size_t> next{0};
  run(parallel_for, threads, [&](int64_t) {
    const Buffer<T> a = zeros<T>(most_rows * most_in), b = zeros<T>(most_rows * width);
    std::vector<T*> c(most_in);
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();) {
      const auto [path, type, column, columns] = tasks[i];
      const int64_t stride = round_up(int(path->mul_in), kTileRows);
      const int64_t nodes = std::max<int64_t>(1, depth / path->dim);
      T* to = result + type * header.weight_numel + path->weight + column;
      std::fill(c.begin(), c.end(), nullptr);
      for (int64_t u = 0; u < path->mul_in; ++u) c[u] = to + u * path->mul_out;
      const int64_t end = typed.type_end ? typed.type_end[type] : typed.num_nodes;
      for (int64_t n = type && typed.type_end ? typed.type_end[type - 1] : 0; n < end; n += nodes) {
        const Task task{nullptr, type, n, std::min(n + nodes, end), 0};
        pack_irreps(task, typed, x + path->in, header.dim_in, path->mul_in, path->dim, stride,
                    a.get());
        pack_irreps(task, typed, grad + path->out + column * path->dim, header.dim_out, columns,
                    path->dim, columns, b.get());
        gemm_rows<T, kTileRows, true, true>(a.get(), stride, int(path->mul_in),
                                            (task.last - task.first) * path->dim, b.get(), columns,
                                            columns, c.data());
      }
    }
  });
}

}  // namespace

extern const IrrepsLinear irreps_linear;
const IrrepsLinear irreps_linear = {apply<float>, apply<double>, dweight<float>, dweight<double>};

}  // namespace fastmlip::FASTMLIP_ISA
