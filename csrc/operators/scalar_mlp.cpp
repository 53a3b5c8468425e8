// CPU kernels of scalar_mlp; fastmlip/ops/scalar_mlp.py states the formula.
//
// A block of rows goes through all layers while it is in cache. Layer i is z = a W, where a is x or
// silu of the z before; that z alone is kept for the passes back.
#include "operators/scalar_mlp.h"

#include "base/memory.h"
#include "simd/mlp.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

template <class T>
Layers<T> layers_of(const MlpTensors<T>& t) {
  return {t.weights, t.widths};
}

// z of a hidden layer in a block of rows that begins at `begin`.
template <class T>
T* kept(const MlpTensors<T>& t, const Layers<T>& layers, int64_t layer, int64_t begin) {
  return t.kept + t.rows * layers.hidden(layer) + begin * layers.outputs(layer);
}

// Rows [begin, begin + count) of columns side by side.
template <class T>
void copy(const Columns<T> (&columns)[2], int64_t begin, int count, T* to) {
  const int64_t width = columns[0].count + columns[1].count;
  for (const Columns<T>& c : columns) {
    for (int r = 0; r < count; ++r) {
      if (c.data)
        std::copy_n(c.data + (begin + r) * c.stride, c.count, to + r * width);
      else
        std::fill_n(to + r * width, c.count, T(0));
    }
    to += c.count;
  }
}

// The same: where they lie, if they are whole tiles of one tensor, and copied to `room` otherwise.
template <class T>
Rows<T> rows_of(const Columns<T> (&columns)[2], int64_t begin, int count, T* room) {
  for (int i : {0, 1})
    if (columns[1 - i].count == 0 && columns[i].data && count % kTileRows == 0)
      return {columns[i].data + begin * columns[i].stride, columns[i].stride};
  copy(columns, begin, count, room);
  return {room, columns[0].count + columns[1].count};
}

template <class T>
void forward(const MlpTensors<T>& t, ParallelFor parallel_for, int64_t threads) {
  const Layers<T> layers = layers_of(t);
  const int64_t last = layers.last(), width = *std::max_element(t.widths.begin(), t.widths.end());
  for_blocks(t.rows, parallel_for, threads, [&] {
    return [&, room = block_rows<T>(width), scratch = block_rows<T>(width)](int64_t begin,
                                                                            int count) {
      Rows<T> rows = rows_of(t.x, begin, count, room.get());
      for (int64_t i = 0; i < last; ++i) {
        const int64_t columns = layers.outputs(i);
        T* z = t.kept ? kept(t, layers, i, begin) : scratch.get();
        product(rows, count, layers.inputs(i), layers.weight(i), columns, columns, z, columns);
        for_silu(z, count * columns, [&](int u, const Activated<T>& a, int left) FASTMLIP_INLINE {
          store_some(room.get() + u, a.value, left);
        });
        rows = {room.get(), columns};
      }
      const T* weight = layers.weight(last);
      for (int i : {0, 1}) {
        product(rows, count, layers.inputs(last), weight, layers.outputs(last), t.split[i],
                t.out[i] + begin * t.split[i], t.split[i]);
        weight += t.split[i];
      }
    };
  });
}

// Sums over rows of the gradients of weights: a part of the rows has sums of its own, of its blocks
// in their order, so that for any number of threads a sum has one order.
constexpr int64_t kPartBlocks = 8, kMaxParts = 32;

// make()(begin, count, sums) for blocks of rows; the sums of a part are added to its copy of
// dweights, where they are asked for.
template <class T, class F>
void for_blocks_with_sums(const MlpTensors<T>& t, ParallelFor parallel_for, int64_t threads,
                          const F& make) {
  if (!t.dweights)
    return for_blocks(t.rows, parallel_for, threads, [&] {
      return [f = make()](int64_t begin, int count) mutable { f(begin, count, nullptr); };
    });
  const Layers<T> layers = layers_of(t);
  const int64_t size = layers.first_weight(layers.last() + 1);
  const int64_t blocks = (t.rows + kBlockRows - 1) / kBlockRows;
  const int64_t parts = std::clamp<int64_t>(blocks / kPartBlocks, 1, kMaxParts);
  const Buffer<T> sums = allocate<T>(parts * size);
  threads = std::min(threads, parts);
  Shares shares(parts, threads);
  run(parallel_for, threads, [&](int64_t thread) {
    auto f = make();
    for (int64_t part; (part = shares.take(thread)) >= 0;) {
      T* own = sums.get() + part * size;
      std::fill_n(own, size, T(0));
      for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b)
        f(b * kBlockRows, int(std::min<int64_t>(kBlockRows, t.rows - b * kBlockRows)), own);
    }
  });
  std::copy_n(sums.get(), size, t.dweights);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t k = 0; k < size; ++k) t.dweights[k] += sums[part * size + k];
}

// What flows back through layer i is g, the gradient of its z: a^T g to its weights, g W^T to a,
// and silu' times that to the z before.
template <class T>
void backward(const MlpTensors<T>& t, ParallelFor parallel_for, int64_t threads) {
  const Layers<T> layers = layers_of(t);
  const auto transposed = layers.transposed();
  const int64_t width = *std::max_element(t.widths.begin(), t.widths.end());
  for_blocks_with_sums(t, parallel_for, threads, [&] {
    return [&, g = block_rows<T>(width), next = block_rows<T>(width), a = block_rows<T>(width)](
               int64_t begin, int count, T* sums) mutable {
      Rows<T> back = rows_of(t.grad, begin, count, g.get());
      for (int64_t i = layers.last(); i >= 0; --i) {
        const int64_t inputs = layers.inputs(i), outputs = layers.outputs(i);
        product(back, count, outputs, transposed[i].get(), inputs, inputs,
                i ? next.get() : t.dx + begin * inputs, inputs);
        if (i > 0) {
          const T* z = kept(t, layers, i - 1, begin);
          for_silu(z, count * inputs, [&](int u, const Activated<T>& at, int left) FASTMLIP_INLINE {
            store_some(a.get() + u, at.value, left);
            store_some(next.get() + u, at.first * load_some(next.get() + u, left), left);
          });
        } else if (sums) {
          copy(t.x, begin, count, a.get());
        }
        if (sums)
          add_transposed_product(a.get(), inputs, back, outputs, count,
                                 sums + layers.first_weight(i));
        std::swap(g, next);
        back = {g.get(), inputs};
      }
    };
  });
}

// The derivative of backward along h, a change of x, and hweights, one of the weights. Forward go
// tangents: hz = t W + a H, where t is silu' hz of the layer before; the last hz is the gradient of
// grad. Back flow g as above, and k, what the change gives to z: k W^T + g H^T to a, and silu'
// times that, with silu'' hz g W^T, to the z before.
template <class T>
void double_backward(const MlpTensors<T>& t, ParallelFor parallel_for, int64_t threads) {
  const Layers<T> layers = layers_of(t), changes{t.hweights, t.widths};
  const auto transposed = layers.transposed();
  const auto transposed_changes = t.hweights ? changes.transposed() : std::vector<Buffer<T>>();
  const int64_t last = layers.last(), hidden = layers.hidden(last);
  const int64_t width = *std::max_element(t.widths.begin(), t.widths.end());
  for_blocks_with_sums(t, parallel_for, threads, [&] {
    return [&, g = block_rows<T>(width), g_next = block_rows<T>(width), k = block_rows<T>(width),
            k_next = block_rows<T>(width), a = block_rows<T>(width),
            h = block_rows<T>(layers.inputs(0)), tangents = block_rows<T>(hidden),
            hzs = block_rows<T>(hidden)](int64_t begin, int count, T* sums) mutable {
      // t in front of a layer, and hz behind it
      auto tangent = [&](int64_t i) {
        return i ? tangents.get() + kBlockRows * layers.hidden(i - 1) : h.get();
      };
      auto hz = [&](int64_t i) {
        return i < last ? hzs.get() + kBlockRows * layers.hidden(i)
                        : t.dgrad + begin * t.widths.back();
      };
      copy<T>({t.h, {}}, begin, count, h.get());
      if (t.hweights) copy(t.x, begin, count, a.get());
      for (int64_t i = 0; i <= last; ++i) {
        const int64_t inputs = layers.inputs(i), outputs = layers.outputs(i);
        if (i > 0)
          for_silu(kept(t, layers, i - 1, begin), count * inputs,
                   [&, to = tangent(i), change = hz(i - 1)](int u, const Activated<T>& at, int left)
                       FASTMLIP_INLINE {
                         store_some(a.get() + u, at.value, left);
                         store_some(to + u, at.first * load_some(change + u, left), left);
                       });
        product<T>({tangent(i), inputs}, count, inputs, layers.weight(i), outputs, outputs, hz(i),
                   outputs);
        if (t.hweights)
          product<T, true>({a.get(), inputs}, count, inputs, changes.weight(i), outputs, outputs,
                           hz(i), outputs);
      }

      Rows<T> back = rows_of(t.grad, begin, count, g.get());
      for (int64_t i = last; i >= 0; --i) {
        const int64_t inputs = layers.inputs(i), outputs = layers.outputs(i);
        T* to = i ? k_next.get() : t.dx + begin * inputs;
        if (i == last)  // k is zero there
          std::fill_n(to, count * inputs, T(0));
        else
          product<T>({k.get(), outputs}, count, outputs, transposed[i].get(), inputs, inputs, to,
                     inputs);
        if (t.hweights)
          product<T, true>(back, count, outputs, transposed_changes[i].get(), inputs, inputs, to,
                           inputs);
        if (i > 0) {
          product(back, count, outputs, transposed[i].get(), inputs, inputs, g_next.get(), inputs);
          for_silu(kept(t, layers, i - 1, begin), count * inputs,
                   [&, change = hz(i - 1)](int u, const Activated<T>& at, int left)
                       FASTMLIP_INLINE {
                         const Vec<T> da = load_some(g_next.get() + u, left);
                         const Vec<T> dz = at.second * load_some(change + u, left) * da;
                         store_some(a.get() + u, at.value, left);
                         store_some(to + u, at.first * load_some(to + u, left) + dz, left);
                         store_some(g_next.get() + u, at.first * da, left);
                       });
        } else if (sums && i < last) {
          copy(t.x, begin, count, a.get());
        }
        if (sums) {
          T* sum = sums + layers.first_weight(i);
          add_transposed_product(tangent(i), inputs, back, outputs, count, sum);
          if (i < last)
            add_transposed_product<T>(a.get(), inputs, {k.get(), outputs}, outputs, count, sum);
        }
        std::swap(g, g_next);
        back = {g.get(), inputs};
        std::swap(k, k_next);
      }
    };
  });
}

}  // namespace

extern const ScalarMlp scalar_mlp;
const ScalarMlp scalar_mlp = {forward<float>,  backward<float>,  double_backward<float>,
                              forward<double>, backward<double>, double_backward<double>};

}  // namespace fastmlip::FASTMLIP_ISA
