// A model file of `fastmlip lammps-export`, run by torch's AOTInductor. Nothing here knows LAMMPS.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace fastmlip_lammps {

// What a file says of itself. Nothing in it is executed.
struct About {
  std::map<std::string, std::string> all;
  std::vector<std::string> types;
  std::vector<double> cutoffs;     // [receiver's type, sender's type], Angstrom
  std::vector<int> ghost_columns;  // numbers of each ghost that each exchange moves
  int bytes;                       // of such a number

  const std::string& operator[](const std::string& key) const;
};

// Throws std::runtime_error for a file that is no such model, that another version wrote, or whose
// code this processor does not run.
About read_about(const std::string& path);

// Rows [num_rows, columns] of numbers of `bytes` bytes, local atoms first: filled from their owners
// (forward), or added to them. Not 0: it failed.
using Exchange = int (*)(void* context, void* rows, int64_t num_local, int64_t num_rows,
                         int64_t columns, int64_t bytes);

class Model {
 public:
  Model(const std::string& path, int threads);
  ~Model();

  // Edges come to local atoms, which are those below num_local; vectors [E, 3] run from receiver to
  // sender, in Angstrom, and types [num_rows] are the model's. Fills energies [num_local] in eV and
  // gradients [E, 3] in eV/Angstrom. Throws std::runtime_error.
  void run(int64_t num_local, const std::vector<int64_t>& types,
           const std::vector<int64_t>& receivers, const std::vector<int64_t>& senders,
           const std::vector<double>& vectors, Exchange forward, Exchange reverse, void* context);

  const double* energies() const;
  const double* gradients() const;

 private:
  struct Torch;
  std::unique_ptr<Torch> torch_;
};

}  // namespace fastmlip_lammps
