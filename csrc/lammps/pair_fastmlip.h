// `pair_style fastmlip` of LAMMPS.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "model.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairFastMLIP : public Pair {
 public:
  explicit PairFastMLIP(LAMMPS* lmp);
  ~PairFastMLIP() override;

  void settings(int narg, char** arg) override;
  void coeff(int narg, char** arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  void finish() override;

  int pack_forward_comm(int n, int* list, double* buf, int pbc_flag, int* pbc) override;
  void unpack_forward_comm(int n, int first, double* buf) override;
  int pack_reverse_comm(int n, int first, double* buf) override;
  void unpack_reverse_comm(int n, int* list, double* buf) override;

 private:
  template <class F>
  void on_all_ranks(const std::string& what, const F& f);
  template <bool kForward>
  static int exchange(void* context, void* rows, int64_t local, int64_t all, int64_t columns,
                      int64_t bytes);
  void allocate();
  void find_edges();
  void tally();

  fastmlip_lammps::About about_;
  std::unique_ptr<fastmlip_lammps::Model> model_;
  std::string file_;
  std::vector<int> type_of_;    // [LAMMPS type]: the model's, from 0
  double energy_unit_ = 1.0;    // eV in LAMMPS's units
  std::vector<int64_t> types_;  // [local and ghost]
  std::vector<int64_t> receivers_, senders_;
  std::vector<double> vectors_;  // [E, 3]
  // during an exchange
  char* rows_ = nullptr;
  int64_t columns_ = 0, bytes_ = 0;
  std::exception_ptr failure_;
  double bytes_packed_ = 0.0;  // since the run began, as steps_
  int64_t steps_ = 0;
};

}  // namespace LAMMPS_NS
