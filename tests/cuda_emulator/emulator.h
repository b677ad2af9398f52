// What the text of a .cu file is compiled with, so that g++ takes it: CUDA's words, and what they ask of the runtime.
//
// One block runs at a time, and each of its threads is a fiber: it runs until it has to wait for others (runtime.cpp).
// In a checked build, g++ calls a function before every access to memory (checks.cpp).
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// For what stands between a kernel and the runtime: a checked build must look at the accesses of kernels only.
#define EMULATOR_UNCHECKED __attribute__((noinline, no_sanitize("thread")))

// Two modules in one process must not find each other's.
#pragma GCC visibility push(hidden)
namespace emulator {

struct Index {
  unsigned x, y, z;
};

enum class Meeting { synchronise, shuffle, vote };
enum class Use { read, write, atomic };

struct Place {
  Index thread, block, block_size, grid_size;
};
extern Place place;  // of the thread that runs
extern char* dynamic_shared;

unsigned lane();
void wait_for_block(int line);
uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, int source, int line);
void check_access(const void* address, unsigned size, Use use, const void* site);
void check_alignment(const void* address, unsigned size, Use use, const void* site);

// How Python knows a kernel.
struct Parameter {
  const char* type;  // NumPy's name of it; of the elements, for a pointer
  int is_pointer, is_constant;
  int size;  // in bytes, of a struct by value, whose type is "struct"
};
struct Kernel {
  void (*call)(void** arguments);
  const Parameter* parameters;  // up to one without a type
  char *shared_begin, *shared_end;
};

template <class T> constexpr const char* type_name = nullptr;
template <> inline constexpr const char* type_name<void> = "void";
template <> inline constexpr const char* type_name<bool> = "bool";
template <> inline constexpr const char* type_name<char> = "int8";
template <> inline constexpr const char* type_name<signed char> = "int8";
template <> inline constexpr const char* type_name<unsigned char> = "uint8";
template <> inline constexpr const char* type_name<short> = "int16";
template <> inline constexpr const char* type_name<unsigned short> = "uint16";
template <> inline constexpr const char* type_name<int> = "int32";
template <> inline constexpr const char* type_name<unsigned> = "uint32";
template <> inline constexpr const char* type_name<long> = "int64";
template <> inline constexpr const char* type_name<unsigned long> = "uint64";
template <> inline constexpr const char* type_name<long long> = "int64";
template <> inline constexpr const char* type_name<unsigned long long> = "uint64";
template <> inline constexpr const char* type_name<float> = "float32";
template <> inline constexpr const char* type_name<double> = "float64";

template <class T> struct ElementOf {
  using type = T;
};
template <class T> requires requires { typename T::Element; }
struct ElementOf<T> {  // float4 and its like
  using type = typename T::Element;
};

template <class A> constexpr Parameter parameter() {
  using T = std::remove_pointer_t<A>;
  constexpr const char* name = type_name<typename ElementOf<std::remove_cv_t<T>>::type>;
  if constexpr (std::is_class_v<A> && name == nullptr) return {"struct", false, false, sizeof(A)};
  else {
    static_assert(name != nullptr, "a kernel's parameter is a number, a struct, or a pointer to numbers");
    return {name, std::is_pointer_v<A>, std::is_const_v<T>, 0};
  }
}

template <auto kernel> struct Caller;
template <class... A, void (*kernel)(A...)> struct Caller<kernel> {
  static constexpr Parameter parameters[] = {parameter<std::remove_cv_t<A>>()..., {nullptr, 0, 0, 0}};

  template <size_t... i> EMULATOR_UNCHECKED static void unpack(void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[i])...);
  }
  EMULATOR_UNCHECKED static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>{}); }
};

}  // namespace emulator
#pragma GCC visibility pop

// Each kernel has its shared arrays in a section of its own: on a GPU, too, it has no others.
#define EMULATOR_SHARED(kernel) static __attribute__((section("shared_" #kernel), aligned(16), used))

// The line that emulator.py writes below the text for each kernel.
#define EMULATOR_KERNEL(name)                                                                       \
  extern "C" char __start_shared_##name[] __attribute__((weak, visibility("hidden")));              \
  extern "C" char __stop_shared_##name[] __attribute__((weak, visibility("hidden")));               \
  extern "C" __attribute__((visibility("default"))) emulator::Kernel emulator_kernel_##name;        \
  emulator::Kernel emulator_kernel_##name = {emulator::Caller<&name>::call,                         \
                                             emulator::Caller<&name>::parameters,                   \
                                             __start_shared_##name, __stop_shared_##name};

#include "language.h"
