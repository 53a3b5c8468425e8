// CPU kernel of irreps_linear; fastmlip/ops/irreps_linear.py states the formula.
//
// Row (n, m) of a block of the result is a sum over rows u of the weights, each times the number
// x[n, u, m], which is read where it lies in either layout. A task takes rows of one type and
// panels of the weights a few vectors wide, packed once: to [u][w], which for the transposed map
// transposes them. Sums of a few rows and one panel stay in registers for all u.
#include "operators/irreps_linear.h"

#include "base/memory.h"
#include "simd/gemm.h"
#include "tensor_product/layout.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Rows and vectors of a tile: the registers, but for a row of weights and a factor.
constexpr int kRows = FASTMLIP_VECTOR_BYTES == 64 ? 8 : 6;
constexpr int kVectors = FASTMLIP_VECTOR_BYTES == 64 ? 3 : 2;
constexpr int64_t kTaskRows = 256;  // a packed panel is used for about as many rows
constexpr int64_t kSumRows = 48;    // of which about as many are put back at once

// All paths that end in one block of the result.
struct TypeGroup {
  int64_t out, mul, dim;
  int64_t width;      // channels of a panel, all but the last of a block
  int64_t depth = 0;  // of the sums
  std::vector<LinearPath> paths;
};

// How far apart channels and components of a block lie.
struct Steps {
  int64_t channel, component;

  Steps(bool ir_mul, int64_t mul, int64_t dim)
      : channel(ir_mul ? 1 : dim), component(ir_mul ? mul : 1) {}
};

struct Task {
  const TypeGroup* group;
  int64_t type, first, last;  // positions in the order of nodes
  int64_t begin, end;         // channels of the result
};

template <class T>
std::vector<TypeGroup> make_groups(const int64_t* tables, bool transposed) {
  const auto& header = *reinterpret_cast<const LinearHeader*>(tables);
  const auto* paths = reinterpret_cast<const LinearPath*>(&header + 1);
  std::vector<TypeGroup> groups;
  groups.reserve(header.num_paths);
  for (int64_t i = 0; i < header.num_paths; ++i) {
    LinearPath path = paths[i];
    if (transposed) std::swap(path.in, path.out), std::swap(path.mul_in, path.mul_out);
    if (path.mul_in * path.mul_out == 0) continue;
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const TypeGroup& g) { return g.out == path.out; });
    if (group == groups.end()) {
      const int64_t vectors = (path.mul_out + kLanes<T> - 1) / kLanes<T>;
      const int64_t panels = (vectors + kVectors - 1) / kVectors;
      const int64_t width = (vectors + panels - 1) / panels * kLanes<T>;
      group = groups.insert(group, {path.out, path.mul_out, path.dim, width});
    }
    group->depth += path.mul_in;
    group->paths.push_back(path);
  }
  return groups;
}

// Tasks in the order of their nodes, of as many panels as leave about 16 tasks to a thread: what
// one thread has in its cache of rows of x and of the result serves many panels.
template <class T>
std::vector<Task> make_tasks(const std::vector<TypeGroup>& groups, const Typed& typed,
                             int64_t threads) {
  std::vector<Task> rows;
  rows.reserve(groups.size() * typed.num_types);
  int64_t panels = 0;
  for (const TypeGroup& group : groups) {
    const int64_t most = std::max<int64_t>(1, kTaskRows / group.dim);
    const int64_t least = std::max<int64_t>(1, kSumRows / group.dim);
    for (int64_t type = 0, end = 0; type < typed.num_types; ++type) {
      const int64_t begin = end;
      end = typed.type_end ? typed.type_end[type] : typed.num_nodes;
      const int64_t nodes = end - begin;
      const int64_t even = std::clamp<int64_t>(nodes / least, 1, threads);
      const int64_t parts = (nodes + most * even - 1) / (most * even) * even;
      panels += parts * ((group.mul + group.width - 1) / group.width);
      for (int64_t part = 0; part < parts; ++part)
        rows.push_back(
            {&group, type, begin + nodes * part / parts, begin + nodes * (part + 1) / parts, 0, 0});
    }
  }
  const auto node = [&](const Task& t) { return typed.node ? typed.node[t.first] : t.first; };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Task& a, const Task& b) { return node(a) < node(b); });
  std::vector<Task> tasks;
  const int64_t at_once = std::max<int64_t>(1, panels / (16 * threads));
  for (Task task : rows)
    for (; task.end < task.group->mul; tasks.push_back(task)) {
      task.begin = task.end;
      task.end = std::min(task.begin + at_once * task.group->width, task.group->mul);
    }
  return tasks;
}

// Columns w .. w + columns of all paths' weights, [u][C vectors], zero behind the last column.
template <class T, int C>
void pack_weights(const TypeGroup& group, const T* weight, bool transposed, int64_t w, int columns,
                  T* panel) {
  constexpr int L = kLanes<T>;
  for (const LinearPath& path : group.paths) {
    const T* from = weight + path.weight;
    if (!transposed) {
      for (int64_t u = 0; u < path.mul_in; ++u, panel += C * L)
        for (int v = 0; v < C; ++v)
          store(panel + v * L,
                load_some(from + u * path.mul_out + w + v * L, std::max(0, columns - v * L)));
      continue;
    }
    for (int64_t u = 0; u < path.mul_in; u += L) {
      const int left = int(std::min<int64_t>(L, path.mul_in - u));
      const T* corner = from + w * path.mul_in + u;
      for (int v = 0; v < C; ++v, corner += L * path.mul_in) {
        Vec<T> square[L];
        if (left == L && columns >= (v + 1) * L) {
          unroll<L>(L, [&](int i) FASTMLIP_INLINE { square[i] = load(corner + i * path.mul_in); });
        } else {
          for (int i = 0; i < L; ++i)
            square[i] = v * L + i < columns ? load_some(corner + i * path.mul_in, left) : Vec<T>{};
        }
        transpose_square<T>(square);
        for (int i = 0; i < left; ++i) store(panel + i * C * L + v * L, square[i]);
      }
      panel += left * C * L;
    }
  }
}

// A row (n, m): where the irreps of n begin, and m.
template <class T>
struct Row {
  const T* x;
  int64_t component;
};

// sums[r] = sum over paths and u of the u-th number of rows[r] times panel[u], for kRows rows.
template <class T, int C>
[[gnu::noinline]] void multiply(const TypeGroup& group, bool ir_mul, const Row<T>* rows,
                                const T* panel, T* sums) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows * C];
  unroll<kRows * C>(kRows * C, [&](int i) FASTMLIP_INLINE { sum[i] = Vec<T>{}; });
  for (const LinearPath& path : group.paths) {
    const Steps step(ir_mul, path.mul_in, path.dim);
    const T* row[kRows];
    for (int r = 0; r < kRows; ++r)
      row[r] = rows[r].x + path.in + rows[r].component * step.component;
    const int64_t end = path.mul_in * step.channel;
    for (int64_t u = 0; u < end; u += step.channel, panel += C * L) {
      Vec<T> w[C];
      unroll<C>(C, [&](int v) FASTMLIP_INLINE { w[v] = pin(load(panel + v * L)); });
      unroll<kRows>(kRows, [&](int r) FASTMLIP_INLINE {
        const Vec<T> factor = broadcast<T>(row[r][u]);
        unroll<C>(C, [&](int v) FASTMLIP_INLINE { sum[r * C + v] += factor * w[v]; });
      });
    }
  }
  unroll<kRows * C>(kRows * C, [&](int i) FASTMLIP_INLINE { store(sums + i * L, sum[i]); });
}

// The rows (n, m) of `count` nodes, and the last again for the rest of a tile.
template <class T, class Node>
int64_t rows_of(const TypeGroup& group, const T* x, int64_t dim_in, const Node& node, int64_t count,
                Row<T>* row) {
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t m = 0; m < group.dim; ++m) row[rows++] = {x + node(i) * dim_in, m};
  for (int64_t r = 0; r < kRows; ++r) row[rows + r] = row[rows - 1];
  return rows;
}

// f(C, channel, columns) for the task's panels: C vectors wide, of `columns` channels.
template <class T, class F>
void for_panels(const Task& task, const F& f) {
  constexpr int L = kLanes<T>;
  for (int64_t channel = task.begin; channel < task.end; channel += task.group->width) {
    const int columns = int(std::min(task.group->width, task.end - channel));
    if (columns > 2 * L)
      f(std::integral_constant<int, kVectors>{}, channel, columns);
    else if (columns > L)
      f(std::integral_constant<int, 2>{}, channel, columns);
    else
      f(std::integral_constant<int, 1>{}, channel, columns);
  }
}

// Sums of one node, of components of C vectors of channels, to `columns` channels of its row.
template <class T, int C>
void put_back(const TypeGroup& group, bool ir_mul, const T* sums, int64_t channel, int columns,
              T* row) {
  constexpr int L = kLanes<T>;
  if (!ir_mul) {
    const PackedBlock block{columns, C * L, int(group.dim), int(group.out + channel * group.dim),
                            0};
    return with_dim(block.dim, [&](auto D) { unpack_block<T, D>(block, sums, row); });
  }
  T* to = row + group.out + channel;
  for (int64_t m = 0; m < group.dim; ++m, to += group.mul, sums += C * L)
    for (int v = 0; v < C && v * L < columns; ++v)
      store_some(to + v * L, load(sums + v * L), columns - v * L);
}

template <class T>
void apply(const T* x, const T* weight, const Typed& typed, const int64_t* tables, bool transposed,
           T* out, ParallelFor parallel_for, int64_t threads) {
  constexpr int L = kLanes<T>;
  const auto& header = *reinterpret_cast<const LinearHeader*>(tables);
  const int64_t dim_in = transposed ? header.dim_out : header.dim_in;
  const int64_t dim_out = transposed ? header.dim_in : header.dim_out;
  const bool ir_mul_in = transposed ? header.ir_mul_out : header.ir_mul_in;
  const bool ir_mul_out = transposed ? header.ir_mul_in : header.ir_mul_out;
  const std::vector<TypeGroup> groups = make_groups<T>(tables, transposed);
  const std::vector<Task> tasks = make_tasks<T>(groups, typed, threads);
  int64_t covered = 0, packed = 0, rows = 0;
  for (const TypeGroup& group : groups) {
    covered += group.mul * group.dim;
    packed = std::max(packed, group.depth * round_up(int(group.mul), kVectors * L));
    rows = std::max(rows, std::max(kSumRows, group.dim) + kRows);
  }
  if (covered < dim_out) std::fill_n(out, typed.num_nodes * dim_out, T(0));
  Shares shares(int64_t(tasks.size()), threads);
  run(parallel_for, threads, [&](int64_t part) {
    const Buffer<T> panels = allocate<T>(packed), sums = allocate<T>(rows * kVectors * L);
    std::vector<Row<T>> row(rows);
    for (int64_t i; (i = shares.take(part)) >= 0;) {
      const Task& task = tasks[i];
      const TypeGroup& group = *task.group;
      const T* w = weight + task.type * header.weight_numel;
      for_panels<T>(task, [&](auto C, int64_t channel, int columns) {
        pack_weights<T, C>(group, w, transposed, channel, columns,
                           panels.get() + (channel - task.begin) * group.depth);
      });
      const int64_t nodes = std::max<int64_t>(1, kSumRows / group.dim);
      for (int64_t n = task.first; n < task.last; n += nodes) {
        const int64_t count = std::min(nodes, task.last - n);
        const auto node = [&](int64_t i) { return typed.node ? typed.node[n + i] : n + i; };
        const int64_t rows = rows_of(group, x, dim_in, node, count, row.data());
        for_panels<T>(task, [&](auto C, int64_t channel, int columns) {
          const T* panel = panels.get() + (channel - task.begin) * group.depth;
          for (int64_t r = 0; r < rows; r += kRows)
            multiply<T, C>(group, ir_mul_in, &row[r], panel, sums.get() + r * C * L);
          for (int64_t i = 0; i < count; ++i)
            put_back<T, C>(group, ir_mul_out, sums.get() + i * group.dim * C * L, channel, columns,
                           out + node(i) * dim_out);
        });
      }
    }
  });
}

// ------------------------------------------------------------------ the gradient of the weights

// Rows (node, m) of `width` irreps of dimension `dim`: to[(node, m) * stride + u]. `from` is where
// the first of them starts in a row of x.
template <class T>
void pack_irreps(const Task& task, const Typed& typed, const T* from, int64_t row_size, Steps step,
                 int64_t width, int64_t dim, int64_t stride, T* to) {
  with_dim(int(dim), [&](auto D) {
    const int64_t d = D ? int64_t(D) : dim, channel = step.channel == 1 ? 1 : d;
    for (int64_t i = task.first; i < task.last; ++i, to += d * stride) {
      const T* row = from + (typed.node ? typed.node[i] : i) * row_size;
      for (int64_t m = 0; m < d; ++m)
        for (int64_t u = 0; u < width; ++u)
          to[m * stride + u] = row[u * channel + m * step.component];
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
  Shares shares(int64_t(tasks.size()), threads);
  run(parallel_for, threads, [&](int64_t part) {
    const Buffer<T> a = zeros<T>(most_rows * most_in), b = zeros<T>(most_rows * width);
    std::vector<T*> c(most_in);
    for (int64_t i; (i = shares.take(part)) >= 0;) {
      const auto [path, type, column, columns] = tasks[i];
      const Steps in(header.ir_mul_in, path->mul_in, path->dim);
      const Steps out(header.ir_mul_out, path->mul_out, path->dim);
      const int64_t stride = round_up(int(path->mul_in), kTileRows);
      const int64_t nodes = std::max<int64_t>(1, depth / path->dim);
      T* to = result + type * header.weight_numel + path->weight + column;
      std::fill(c.begin(), c.end(), nullptr);
      for (int64_t u = 0; u < path->mul_in; ++u) c[u] = to + u * path->mul_out;
      const int64_t end = typed.type_end ? typed.type_end[type] : typed.num_nodes;
      for (int64_t n = type && typed.type_end ? typed.type_end[type - 1] : 0; n < end; n += nodes) {
        const Task task{nullptr, type, n, std::min(n + nodes, end), 0};
        pack_irreps(task, typed, x + path->in, header.dim_in, in, path->mul_in, path->dim, stride,
                    a.get());
        pack_irreps(task, typed, grad + path->out + column * out.channel, header.dim_out, out,
                    columns, path->dim, columns, b.get());
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
