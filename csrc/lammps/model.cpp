#include "model.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace fastmlip_lammps {
namespace {

constexpr char kInterface[] = "1";  // of fastmlip/integrations/nequip/lammps.py

using SetWorld = void (*)(Exchange, Exchange, void*);

// The operators of fastmlip, which the model calls by name.
SetWorld load_operators() {
  void* library = dlopen(FASTMLIP_LIBRARY, RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw std::runtime_error(std::string("fastmlip's operators: ") + dlerror());
  void* set = dlsym(library, "fastmlip_set_ghost_world");
  if (!set)
    throw std::runtime_error(
        std::string(FASTMLIP_LIBRARY) +
        " is of another version of fastmlip than this plugin: run `fastmlip lammps-plugin` again");
  return reinterpret_cast<SetWorld>(set);
}

// Runs f; whatever torch throws leaves as a std::runtime_error, without torch's stack.
template <class F>
auto plainly(const F& f) {
  try {
    return f();
  } catch (const c10::Error& error) {
    throw std::runtime_error(error.what_without_backtrace());
  }
}

// A folder for what torch unpacks of a model file, of this process alone. It goes with this object,
// so that no end of a run leaves it: what torch has loaded of it stays in memory.
class Unpacked {
 public:
  Unpacked() {
    for (const char* name : {"TEMPDIR", "TEMP", "TMP", "TMPDIR"})  // the last counts
      if (const char* set = std::getenv(name); set && *set) path_ = set;
    if (const char* set = std::getenv("TMPDIR")) before_ = set;
    const std::string base = path_;
    path_ += "/fastmlip_XXXXXX";
    if (!mkdtemp(path_.data()))
      throw std::runtime_error("no temporary files can be made in " + base + " (" +
                               std::strerror(errno) + "): set TMPDIR to a folder where they can");
    setenv("TMPDIR", path_.c_str(), 1);
  }
  ~Unpacked() {
    if (before_)
      setenv("TMPDIR", before_->c_str(), 1);
    else
      unsetenv("TMPDIR");
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Unpacked(const Unpacked&) = delete;
  Unpacked& operator=(const Unpacked&) = delete;

 private:
  std::string path_ = "/tmp";
  std::optional<std::string> before_;  // what TMPDIR was
};

template <class T>
std::vector<T> split(const std::string& text) {
  std::istringstream in(text);
  std::vector<T> words;
  for (T word; in >> word;) words.push_back(word);
  return words;
}

bool runs(const std::string& isa) {
  if (isa == "portable") return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (isa == "avx2") return avx2;
  return isa == "avx512" && avx2 && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
#elif defined(__aarch64__)
  return isa == "aarch64";
#else
  return true;
#endif
}

}  // namespace

const std::string& About::operator[](const std::string& key) const {
  const auto found = all.find(key);
  if (found == all.end()) throw std::runtime_error("it does not say its " + key);
  return found->second;
}

About read_about(const std::string& path) {
  if (!std::ifstream(path))
    throw std::runtime_error("there is no such file, or it is not readable");
  About about;
  const Unpacked folder;
  try {
    for (const auto& [key, value] :
         torch::inductor::AOTIModelPackageLoader::load_metadata_from_package(path, "model"))
      about.all[key] = value;
  } catch (const std::exception&) {
    throw std::runtime_error("it is no model of `fastmlip lammps-export`");
  }
  if (!about.all.count("fastmlip_lammps"))
    throw std::runtime_error("it is no model of `fastmlip lammps-export`");
  if (about["fastmlip_lammps"] != kInterface || about["fastmlip"] != FASTMLIP_VERSION)
    throw std::runtime_error("it was exported by fastmlip " + about["fastmlip"] +
                             ", and this plugin is of fastmlip " FASTMLIP_VERSION
                             ": export the model again");
  if (!runs(about["isa"]))
    throw std::runtime_error("its code is for processors with " + about["isa"] +
                             ", which this one does not have: export it with --isa avx2, or "
                             "--isa portable");
  about.types = split<std::string>(about["type_names"]);
  about.cutoffs = split<double>(about["cutoffs"]);
  about.ghost_columns = split<int>(about["ghost_columns"]);
  about.bytes = about["model_dtype"] == "float64" ? 8 : 4;
  if (about.types.empty() || about.cutoffs.size() != about.types.size() * about.types.size())
    throw std::runtime_error("its types and cutoffs do not fit together");
  return about;
}

struct Model::Torch {
  explicit Torch(const std::string& path) : loader(path, "model", /*run_single_threaded=*/true) {}

  torch::inductor::AOTIModelPackageLoader loader;
  SetWorld set_world = nullptr;
  std::vector<at::Tensor> out;
};

Model::Model(const std::string& path, int threads) {
  const SetWorld set_world = load_operators();
  at::set_num_threads(threads);
  const Unpacked folder;
  torch_ = plainly([&] { return std::make_unique<Torch>(path); });
  torch_->set_world = set_world;
}

Model::~Model() = default;

void Model::run(int64_t num_local, const std::vector<int64_t>& types,
                const std::vector<int64_t>& receivers, const std::vector<int64_t>& senders,
                const std::vector<double>& vectors, Exchange forward, Exchange reverse,
                void* context) {
  const int64_t edges = int64_t(receivers.size()), rows = int64_t(types.size());
  plainly([&] {
    const c10::InferenceMode inference;
    const auto copy = [](at::Tensor& to, const void* from, int64_t offset, int64_t bytes) {
      if (bytes) std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + offset, from, bytes);
    };
    at::Tensor vec = at::empty({edges, 3}, at::kDouble), index = at::empty({2, edges}, at::kLong);
    at::Tensor local = at::empty({num_local}, at::kLong);
    at::Tensor ghost = at::empty({rows - num_local}, at::kLong);
    copy(vec, vectors.data(), 0, edges * 24);
    copy(index, receivers.data(), 0, edges * 8);
    copy(index, senders.data(), edges * 8, edges * 8);
    copy(local, types.data(), 0, num_local * 8);
    copy(ghost, types.data() + num_local, 0, (rows - num_local) * 8);
    torch_->set_world(forward, reverse, context);
    try {
      torch_->out = torch_->loader.run({vec, index, local, ghost});
    } catch (...) {
      torch_->set_world(nullptr, nullptr, nullptr);
      throw;
    }
    torch_->set_world(nullptr, nullptr, nullptr);
    for (at::Tensor& t : torch_->out) t = t.contiguous();
    const auto& out = torch_->out;
    if (out.size() != 2 || out[0].numel() != num_local || out[1].numel() != 3 * edges ||
        out[0].scalar_type() != at::kDouble || out[1].scalar_type() != at::kDouble)
      throw std::runtime_error("its energies and gradients have other shapes than expected");
  });
}

const double* Model::energies() const { return torch_->out[0].const_data_ptr<double>(); }

const double* Model::gradients() const { return torch_->out[1].const_data_ptr<double>(); }

}  // namespace fastmlip_lammps
