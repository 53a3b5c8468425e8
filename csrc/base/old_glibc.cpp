// Two symbols that newer versions of glibc define anew are defined here in the old way, so that a
// library that was built on a new system also loads on an old one, with glibc 2.28 or newer.
// tests/test_packages.py fails for every other symbol that is too new.

#include <cstdlib>  // __GLIBC__

#if defined(__GLIBC__) && defined(__x86_64__)
#define OLD_POW "pow@GLIBC_2.2.5"
#elif defined(__GLIBC__) && defined(__aarch64__)
#define OLD_POW "pow@GLIBC_2.17"
#endif

#ifdef OLD_POW
#define HIDDEN __attribute__((visibility("hidden")))
extern "C" {
// glibc 2.32: shared_ptr of libstdc++ reads it, and counts without atomics where it is true
HIDDEN char __libc_single_threaded = 0;

// glibc 2.29: the same function, without the old one's errno. Under its own name, which the
// compiler knows, it could not be hidden
__asm__(".symver old_pow, " OLD_POW);
double old_pow(double x, double y) noexcept;
HIDDEN double our_pow(double x, double y) noexcept __asm__("pow");
double our_pow(double x, double y) noexcept { return old_pow(x, y); }
}
#endif
