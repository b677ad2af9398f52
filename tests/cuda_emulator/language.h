// CUDA's words, types and functions, as far as our kernels use them. The fast ones (__expf) are exact here.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define warpSize 32
#define threadIdx (emulator::place.thread)
#define blockIdx (emulator::place.block)
#define blockDim (emulator::place.block_size)
#define gridDim (emulator::place.grid_size)

// ---- vectors, whose address must be a multiple of their size

namespace emulator {
// The compiler takes an aligned address for granted, and would remove the question.
template <unsigned size> inline __attribute__((always_inline)) void look_at(const void* address, Use use) {
  uintptr_t number = reinterpret_cast<uintptr_t>(address);
  asm("" : "+r"(number));
  if (number % size) check_alignment(address, size, use, nullptr);
}
}  // namespace emulator

#define EMULATOR_VECTOR2(T, name)                                                     \
  struct alignas(2 * sizeof(T)) name {                                                \
    using Element = T;                                                                \
    T x, y;                                                                           \
    name() = default;                                                                 \
    name(T x, T y) : x(x), y(y) {}                                                    \
    name(const name& other) {                                                         \
      emulator::look_at<sizeof(name)>(&other, emulator::Use::read);                   \
      x = other.x, y = other.y;                                                       \
    }                                                                                 \
    name& operator=(const name& other) {                                              \
      emulator::look_at<sizeof(name)>(&other, emulator::Use::read);                   \
      emulator::look_at<sizeof(name)>(this, emulator::Use::write);                    \
      x = other.x, y = other.y;                                                       \
      return *this;                                                                   \
    }                                                                                 \
  };                                                                                  \
  inline name make_##name(T x, T y) { return {x, y}; }

#define EMULATOR_VECTOR4(T, name)                                                     \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name {                      \
    using Element = T;                                                                \
    T x, y, z, w;                                                                     \
    name() = default;                                                                 \
    name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                              \
    name(const name& other) {                                                         \
      emulator::look_at<alignof(name)>(&other, emulator::Use::read);                  \
      x = other.x, y = other.y, z = other.z, w = other.w;                             \
    }                                                                                 \
    name& operator=(const name& other) {                                              \
      emulator::look_at<alignof(name)>(&other, emulator::Use::read);                  \
      emulator::look_at<alignof(name)>(this, emulator::Use::write);                   \
      x = other.x, y = other.y, z = other.z, w = other.w;                             \
      return *this;                                                                   \
    }                                                                                 \
  };                                                                                  \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(float, float2)
EMULATOR_VECTOR2(double, double2)
EMULATOR_VECTOR2(int, int2)
EMULATOR_VECTOR2(unsigned, uint2)
EMULATOR_VECTOR2(long long, longlong2)
EMULATOR_VECTOR4(float, float4)
EMULATOR_VECTOR4(double, double4)
EMULATOR_VECTOR4(int, int4)
EMULATOR_VECTOR4(unsigned, uint4)
EMULATOR_VECTOR4(unsigned char, uchar4)

// ---- waiting, and what the lanes of a warp tell each other

#define __syncthreads() emulator::wait_for_block(__LINE__)
#define __syncwarp(...) emulator::synchronise(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) emulator::from_lane(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emulator::from_xor(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emulator::from_above(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emulator::from_below(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, is_so) emulator::vote(__LINE__, mask, is_so)
#define __any_sync(mask, is_so) (emulator::vote(__LINE__, mask, is_so) != 0)
#define __all_sync(mask, is_so) (emulator::vote(__LINE__, mask, !(is_so)) == 0)

namespace emulator {

EMULATOR_UNCHECKED inline void synchronise(int line, unsigned mask = 0xffffffffu) {
  meet(Meeting::synchronise, mask, 0, 0, line);
}
EMULATOR_UNCHECKED inline unsigned vote(int line, unsigned mask, bool is_so) {
  return unsigned(meet(Meeting::vote, mask, is_so, 0, line));
}
template <class T> EMULATOR_UNCHECKED T shuffle(int line, unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = meet(Meeting::shuffle, mask, bits, source, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
// Where the source lies outside its part of `width` lanes, a lane keeps its own value.
template <class T> T from_lane(int line, unsigned mask, T value, int source, int width = 32) {
  return shuffle(line, mask, value, int(lane()) / width * width + (source & (width - 1)));
}
template <class T> T from_xor(int line, unsigned mask, T value, int bits, int width = 32) {
  int me = int(lane()), source = me ^ bits;
  return shuffle(line, mask, value, source / width <= me / width ? source : me);
}
template <class T> T from_above(int line, unsigned mask, T value, int distance, int width = 32) {
  int me = int(lane());
  return shuffle(line, mask, value, me % width + distance < width ? me + distance : me);
}
template <class T> T from_below(int line, unsigned mask, T value, int distance, int width = 32) {
  int me = int(lane());
  return shuffle(line, mask, value, me % width >= distance ? me - distance : me);
}

}  // namespace emulator

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomic operations: no other thread runs meanwhile

#define EMULATOR_ATOMIC(name, result)                                                                      \
  template <class T> EMULATOR_UNCHECKED T name(T* address, std::type_identity_t<T> value) {                \
    const void* site = __builtin_return_address(0);                                                        \
    emulator::check_access(address, sizeof(T), emulator::Use::atomic, site);                               \
    T old = *address;                                                                                      \
    *address = result;                                                                                     \
    return old;                                                                                            \
  }

EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicExch, value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicAnd, old& value)

template <class T>
EMULATOR_UNCHECKED T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  emulator::check_access(address, sizeof(T), emulator::Use::atomic, __builtin_return_address(0));
  T old = *address;
  if (old == expected) *address = value;
  return old;
}

// ---- numbers

template <class T> T __ldg(const T* address) { return *address; }
template <class T, class U> std::common_type_t<T, U> min(T a, U b) { return b < a ? b : a; }
template <class T, class U> std::common_type_t<T, U> max(T a, U b) { return a < b ? b : a; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// Macros, as glibc has functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(a, b) (float(a) / float(b))
#define __frcp_rn(x) (1.0f / float(x))
#define __fmaf_rn(a, b, c) fmaf(a, b, c)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}

template <class To, class From> To emulator_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
