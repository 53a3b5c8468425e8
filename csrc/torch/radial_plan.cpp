// fastmlip::radial_conv_plan_cpu: what radial_conv's plan would be for any number of threads, for
// tests and for whoever wants to know.
#include "operators/radial_plan.h"

#include <ctime>

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {
namespace {

int64_t nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

thread_local int64_t shared_time;  // what threads would share

void one_after_the_other(int64_t parts, void (*f)(int64_t, void*), void* context) {
  const int64_t begin = nanoseconds();
  for (int64_t part = 0; part < parts; ++part) f(part, context);
  shared_time += nanoseconds() - begin;
}

// Of the backward pass without kept rows: its chunks, the most edges of one, the fewest blocks of
// rows of one but the last, the rows that wait at most; and the nanoseconds of the plan that
// threads share and that they do not.
Tensor plan(const Tensor& order_table, const std::optional<Tensor>& edge_pair, int64_t nodes,
            int64_t row_bytes, int64_t room, int64_t threads) {
  const int64_t edges = (order_table.size(0) - EdgeOrder::size(nodes, 0)) / 4;
  check_order(order_table, nodes, edges, EdgeOrder::kBoth);
  if (edge_pair) expect_pairs(*edge_pair, edges);
  expect(threads > 0 && row_bytes > 0 && room >= 0, "threads, row_bytes, room: out of range");
  const EdgeOrder order(order_table.const_data_ptr<int64_t>(), nodes, edges);
  Tensor result = empty({6}, ScalarType::Long);
  const int64_t begin = nanoseconds();
  shared_time = 0;
  const SharedRows shared(edge_pair ? edge_pair->const_data_ptr<int64_t>() : nullptr, edges, true,
                          one_after_the_other, threads);
  const auto chunks = make_chunks(order.src_ptr, nodes, row_bytes, threads);
  const Gradients gradients(shared, order, chunks, room, one_after_the_other, threads);
  RowMakers makers(shared, order.src_edge, false, one_after_the_other, threads);
  int64_t fewest = INT64_MAX;
  for (const Chunk& chunk : chunks) {
    makers.begin(chunk);
    const int64_t block = rows_of_block(chunk.num_edges(), threads, 64);
    if (chunks.size() == 1 || chunk.end < nodes)
      fewest = std::min(fewest, (chunk.num_edges() + block - 1) / block);
  }
  const int64_t all = nanoseconds() - begin;
  int64_t* const to = result.mutable_data_ptr<int64_t>();
  to[0] = int64_t(chunks.size()), to[1] = most_edges(chunks), to[2] = fewest;
  to[3] = gradients.waiting(), to[4] = shared_time, to[5] = all - shared_time;
  return result;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "radial_conv_plan_cpu(Tensor order, Tensor? edge_pair, SymInt nodes, SymInt row_bytes, "
      "SymInt room, SymInt threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("radial_conv_plan_cpu", TORCH_BOX(&fastmlip::plan));
}
