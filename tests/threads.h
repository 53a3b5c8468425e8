// What the tests of threads share: threads, numbers, edges, and results as bytes.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "graph/edge_order.h"

namespace fastmlip {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Integers = std::vector<int64_t>;
constexpr int64_t kThreads = 4, kNodes = 1200, kEdges = 9000;  // enough for the curve, and parts

// A thread for each of up to kThreads parts at a time, as torch's pool would.
void parallel_for(int64_t parts, void (*f)(int64_t, void*), void* context) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < std::min(parts, kThreads); ++i)
    threads.emplace_back([&] {
      for (int64_t part; (part = next.fetch_add(1)) < parts;) f(part, context);
    });
  for (std::thread& thread : threads) thread.join();
}

template <class T>
std::vector<T> numbers(size_t count, unsigned seed, double low = -1, double high = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> number(low, high);
  std::vector<T> result(count);
  for (T& one : result) one = T(number(random));
  return result;
}

int64_t bits_of(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// What kernels gave, as bytes.
class Results {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  bool operator==(const Results& other) const { return bytes_ == other.bytes_; }

 private:
  std::string bytes_;
};

// Edges of random nodes, every other one the reverse of the one before.
struct Graph {
  Integers dst, src, order, pair;
  Doubles positions = numbers<double>(3 * kNodes, 1);
  Floats vectors, grad = numbers<float>(3 * kEdges, 2);

  explicit Graph(int64_t threads) : dst(kEdges), src(kEdges), pair(kEdges), vectors(3 * kEdges) {
    std::mt19937 random(3);
    for (int64_t e = 0; e < kEdges; e += 2) {
      dst[e] = src[e + 1] = int64_t(random() % kNodes);
      src[e] = dst[e + 1] = int64_t(random() % kNodes);
    }
    order.resize(EdgeOrder::size(kNodes, kEdges));
    int64_t bad = 0;
    edge_order(dst.data(), src.data(), positions.data(), kNodes, kEdges, order.data(), &bad,
               parallel_for, std::min<int64_t>(threads, 2));
  }
  EdgeOrder edges() const { return {order.data(), kNodes, kEdges}; }
};

}  // namespace
}  // namespace fastmlip
