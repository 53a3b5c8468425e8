#include "pair_fastmlip.h"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

PairFastMLIP::PairFastMLIP(LAMMPS* lmp) : Pair(lmp) {
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
}

PairFastMLIP::~PairFastMLIP() {
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

// Runs f on all ranks. Where it throws on all of them, LAMMPS says so once; where it throws on
// some, these end the run, as the others would wait for them.
template <class F>
void PairFastMLIP::on_all_ranks(const std::string& what, const F& f) {
  std::string reason;
  int failed = 0, all_failed = 0;
  try {
    f();
  } catch (const std::exception& error) {
    reason = error.what();
    failed = 1;
  }
  MPI_Allreduce(&failed, &all_failed, 1, MPI_INT, MPI_SUM, world);
  if (all_failed == comm->nprocs) error->all(FLERR, "pair_style fastmlip: {}: {}", what, reason);
  if (failed) error->one(FLERR, "pair_style fastmlip: {}: {}", what, reason);
  if (all_failed) MPI_Barrier(world);  // which is not reached by those that end the run
}

void PairFastMLIP::settings(int narg, char** /*arg*/) {
  if (narg) error->all(FLERR, "pair_style fastmlip: expected no arguments, got {}", narg);
}

// pair_coeff * * FILE type names
void PairFastMLIP::coeff(int narg, char** arg) {
  const int ntypes = atom->ntypes;
  if (narg < 3 || std::string(arg[0]) != "*" || std::string(arg[1]) != "*")
    error->all(FLERR, "pair_style fastmlip: expected pair_coeff * * FILE and {} type names",
               ntypes);
  if (narg != 3 + ntypes)
    error->all(FLERR,
               "pair_style fastmlip: expected a type name of the model for each of the {} atom "
               "types, got {}",
               ntypes, narg - 3);
  file_ = arg[2];
  on_all_ranks(file_, [&] { about_ = fastmlip_lammps::read_about(file_); });
  type_of_.assign(ntypes + 1, -1);
  for (int i = 1; i <= ntypes; ++i) {
    const auto& names = about_.types;
    const auto found = std::find(names.begin(), names.end(), arg[2 + i]);
    if (found == names.end()) {
      std::string known;
      for (const auto& name : names) known += " " + name;
      error->all(FLERR, "pair_style fastmlip: {} has no type {}, expected one of:{}", file_,
                 arg[2 + i], known);
    }
    type_of_[i] = int(found - names.begin());
  }
  const char* set = std::getenv("OMP_NUM_THREADS");
  const int threads = std::max({1, comm->nthreads, set ? std::atoi(set) : 1});
  on_all_ranks(file_, [&] { model_ = std::make_unique<fastmlip_lammps::Model>(file_, threads); });
  if (!allocated) allocate();
  for (int i = 1; i <= ntypes; ++i)
    for (int j = i; j <= ntypes; ++j) setflag[i][j] = 1;
  int64_t numbers = 0;
  for (const int columns : about_.ghost_columns) numbers += columns;
  if (comm->me == 0)
    utils::logmesg(lmp,
                   "fastmlip: {}, {}, code for {}, {} thread(s) a rank; {} exchange(s) a step each "
                   "way, {} bytes for each ghost atom\n",
                   file_, about_["model_dtype"], about_["isa"], threads,
                   about_.ghost_columns.size(), numbers * about_.bytes);
}

void PairFastMLIP::allocate() {
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  for (int i = 1; i < n; ++i)
    for (int j = 1; j < n; ++j) setflag[i][j] = 0;
  allocated = 1;
}

void PairFastMLIP::init_style() {
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    error->all(FLERR, "pair_style fastmlip: expected units metal or real, got {}", units);
  energy_unit_ =
      units == "real" ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;
  if (!force->newton_pair) error->all(FLERR, "pair_style fastmlip: expected newton on");
  if (atom->molecular != Atom::ATOMIC)
    for (int k = 1; k < 4; ++k)
      if (force->special_lj[k] != 1.0)
        error->all(FLERR,
                   "pair_style fastmlip: the model needs all neighbours, bonded ones too: expected "
                   "special_bonds lj/coul 1 1 1");
  neighbor->add_request(this, NeighConst::REQ_FULL);
  int doubles = 0;
  for (const int columns : about_.ghost_columns)
    doubles = std::max(doubles, (columns * about_.bytes + 7) / 8);
  comm_forward = comm_reverse = doubles;
  // a hybrid style has asked its styles before they had read their files
  force->pair->comm_forward = std::max(force->pair->comm_forward, doubles);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, doubles);
  steps_ = 0, bytes_packed_ = 0.0;
}

double PairFastMLIP::init_one(int i, int j) {
  const int n = int(about_.types.size()), a = type_of_[i], b = type_of_[j];
  return std::max(about_.cutoffs[a * n + b], about_.cutoffs[b * n + a]);
}

// Edges within the model's cutoffs, in the order of receivers.
void PairFastMLIP::find_edges() {
  const int nall = atom->nlocal + atom->nghost, models = int(about_.types.size());
  types_.resize(nall);
  for (int i = 0; i < nall; ++i) types_[i] = type_of_[atom->type[i]];
  receivers_.clear(), senders_.clear(), vectors_.clear();
  double** x = atom->x;
  for (int ii = 0; ii < list->inum; ++ii) {
    const int i = list->ilist[ii];
    const double* cutoffs = &about_.cutoffs[types_[i] * models];
    const int* neighbours = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; ++jj) {
      const int j = neighbours[jj] & NEIGHMASK;
      const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
      const double cutoff = cutoffs[types_[j]];
      if (dx * dx + dy * dy + dz * dz >= cutoff * cutoff) continue;
      receivers_.push_back(i);
      senders_.push_back(j);
      vectors_.insert(vectors_.end(), {dx, dy, dz});
    }
  }
}

void PairFastMLIP::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  failure_ = nullptr;
  try {
    find_edges();
    model_->run(atom->nlocal, types_, receivers_, senders_, vectors_, exchange<true>,
                exchange<false>, this);
    tally();
  } catch (const std::exception& problem) {
    if (failure_) std::rethrow_exception(failure_);  // LAMMPS's own
    error->one(FLERR, "pair_style fastmlip: {}", problem.what());
  }
  ++steps_;
}

void PairFastMLIP::tally() {
  const double* energy = model_->energies();
  const double* gradient = model_->gradients();
  for (int i = 0; i < atom->nlocal; ++i) {
    if (!std::isfinite(energy[i]))
      throw std::runtime_error("the energy of an atom at " + std::to_string(atom->x[i][0]) + " " +
                               std::to_string(atom->x[i][1]) + " " + std::to_string(atom->x[i][2]) +
                               " is not finite");
    if (eflag_global) eng_vdwl += energy_unit_ * energy[i];
    if (eflag_atom) eatom[i] += energy_unit_ * energy[i];
  }
  double** f = atom->f;
  // [a][b]: a of r, b of the force; LAMMPS's order of six, and the three below the diagonal
  constexpr int kRow[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2}, kColumn[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};
  for (size_t e = 0; e < receivers_.size(); ++e) {
    const int64_t i = receivers_[e], j = senders_[e];
    double g[3], w[9];
    for (int a = 0; a < 3; ++a) {
      g[a] = energy_unit_ * gradient[3 * e + a];
      f[i][a] += g[a];
      f[j][a] -= g[a];
    }
    if (!vflag_either && !cvflag_atom) continue;
    for (int k = 0; k < 9; ++k) w[k] = -vectors_[3 * e + kRow[k]] * g[kColumn[k]];
    if (cvflag_atom)
      for (int k = 0; k < 9; ++k) cvatom[i][k] += 0.5 * w[k], cvatom[j][k] += 0.5 * w[k];
    for (int k = 3; k < 6; ++k) w[k] = 0.5 * (w[k] + w[k + 3]);
    for (int k = 0; k < 6; ++k) {
      if (vflag_global) virial[k] += w[k];
      if (vflag_atom) vatom[i][k] += 0.5 * w[k], vatom[j][k] += 0.5 * w[k];
    }
  }
}

void PairFastMLIP::finish() {
  double all = 0.0;
  MPI_Allreduce(&bytes_packed_, &all, 1, MPI_DOUBLE, MPI_SUM, world);
  if (comm->me == 0 && steps_ && !about_.ghost_columns.empty())
    utils::logmesg(lmp, "fastmlip: {:.4g} MB of ghost atoms' rows a step, of all ranks\n",
                   all / double(steps_) * 1e-6);
  steps_ = 0, bytes_packed_ = 0.0;
}

// ---------------------------------------------------------------- rows of ghost atoms

template <bool kForward>
int PairFastMLIP::exchange(void* context, void* rows, int64_t local, int64_t all, int64_t columns,
                           int64_t bytes) {
  auto& self = *static_cast<PairFastMLIP*>(context);
  try {
    const int doubles = int((columns * bytes + 7) / 8);
    if (local != self.atom->nlocal || all != local + self.atom->nghost ||
        doubles > self.comm_forward)
      throw std::runtime_error("the model asks for other rows of ghost atoms than its file says");
    self.rows_ = static_cast<char*>(rows);
    self.columns_ = columns, self.bytes_ = bytes;
    if (doubles == 0) return 0;
    if (kForward)
      self.comm->forward_comm(&self, doubles);
    else
      self.comm->reverse_comm(&self, doubles);
    return 0;
  } catch (...) {
    self.failure_ = std::current_exception();
    return 1;
  }
}

int PairFastMLIP::pack_forward_comm(int n, int* list, double* buf, int /*pbc_flag*/, int* /*pbc*/) {
  const int64_t row = columns_ * bytes_, doubles = (row + 7) / 8;
  for (int k = 0; k < n; ++k) std::memcpy(buf + k * doubles, rows_ + list[k] * row, row);
  bytes_packed_ += double(n * row);
  return int(n * doubles);
}

void PairFastMLIP::unpack_forward_comm(int n, int first, double* buf) {
  const int64_t row = columns_ * bytes_, doubles = (row + 7) / 8;
  for (int k = 0; k < n; ++k) std::memcpy(rows_ + (first + k) * row, buf + k * doubles, row);
}

int PairFastMLIP::pack_reverse_comm(int n, int first, double* buf) {
  const int64_t row = columns_ * bytes_, doubles = (row + 7) / 8;
  for (int k = 0; k < n; ++k) std::memcpy(buf + k * doubles, rows_ + (first + k) * row, row);
  bytes_packed_ += double(n * row);
  return int(n * doubles);
}

void PairFastMLIP::unpack_reverse_comm(int n, int* list, double* buf) {
  const int64_t doubles = (columns_ * bytes_ + 7) / 8;
  const auto add = [&](auto* rows) {
    using T = std::remove_pointer_t<decltype(rows)>;
    for (int k = 0; k < n; ++k) {
      T* to = rows + list[k] * columns_;
      const T* from = reinterpret_cast<const T*>(buf + k * doubles);
      for (int64_t c = 0; c < columns_; ++c) to[c] += from[c];
    }
  };
  if (bytes_ == 8)
    add(reinterpret_cast<double*>(rows_));
  else
    add(reinterpret_cast<float*>(rows_));
}
