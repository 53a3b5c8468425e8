// What `plugin load` of LAMMPS calls.
#include <dlfcn.h>

#include <string>

#include "error.h"
#include "lammps.h"
#include "pair_fastmlip.h"

namespace {

using namespace LAMMPS_NS;

// As the PLUGIN package of LAMMPS lays it out.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  Pair* (*create)(LAMMPS*);
  void* handle;
};

Pair* create(LAMMPS* lmp) { return new PairFastMLIP(lmp); }

// The widths of LAMMPS's integers are chosen when it is compiled.
void check_sizes(LAMMPS* lmp) {
  using Setting = int (*)(void*, const char*);
  const auto setting = reinterpret_cast<Setting>(dlsym(RTLD_DEFAULT, "lammps_extract_setting"));
  if (!setting) return;
  for (const auto& [name, size] : {std::pair<const char*, size_t>("tagint", sizeof(tagint)),
                                   {"bigint", sizeof(bigint)},
                                   {"imageint", sizeof(imageint)}})
    if (setting(lmp, name) != int(size))
      lmp->error->all(
          FLERR,
          "pair_style fastmlip: this LAMMPS has a {} of {} bytes, the plugin one of {}: "
          "run `fastmlip lammps-plugin` with the --sizes of this LAMMPS",
          name, setting(lmp, name), size);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lammps, void* handle,
                                                                         void* regfunc) {
  auto* lmp = static_cast<LAMMPS*>(lammps);
  check_sizes(lmp);
  static Plugin plugin;
  plugin = {FASTMLIP_LAMMPS_VERSION,
            "pair",
            "fastmlip",
            "NequIP and Allegro models, fastmlip " FASTMLIP_VERSION,
            "The fastmlip authors",
            create,
            handle};
  reinterpret_cast<void (*)(Plugin*, void*)>(regfunc)(&plugin, lammps);
}
