// The thin vector type all CPU kernels are written over. One width per build: 16 floats (avx512, avx512bf16), 8 (avx2),
// 4 (portable: the compiler's own vectors, so arm64 too). `Vec`, `IVec` and `UVec` are compiler vectors: + - * / < and
// v[i] work on them directly; comparisons give an IVec mask (-1 | 0) for select(). Activations are float or bf16;
// load/store convert, stores round to nearest even. Every function is pure and gives the same bits on every thread.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(ESPALIER_ISA_AVX512BF16) || defined(ESPALIER_ISA_AVX512)
#define ESPALIER_LANES 16
#elif defined(ESPALIER_ISA_AVX2)
#define ESPALIER_LANES 8
#else
#define ESPALIER_LANES 4
#endif
#if ESPALIER_LANES > 4
// GCC 12 warns about its own _mm512_undefined_*.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace espalier {

constexpr int kLanes = ESPALIER_LANES;
typedef float Vec __attribute__((vector_size(4 * ESPALIER_LANES)));
typedef int32_t IVec __attribute__((vector_size(4 * ESPALIER_LANES)));
typedef uint32_t UVec __attribute__((vector_size(4 * ESPALIER_LANES)));
typedef uint16_t HVec __attribute__((vector_size(2 * ESPALIER_LANES)));
typedef int8_t BVec __attribute__((vector_size(ESPALIER_LANES)));
#define ESPALIER_INLINE inline __attribute__((always_inline))

/// The upper half of a float: 8 bits of exponent, 7 of mantissa.
struct bf16 {
  uint16_t bits;
};

// ---- scalars -------------------------------------------------------------------------------------------------------
ESPALIER_INLINE uint32_t bitsOf(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
ESPALIER_INLINE float floatOf(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
ESPALIER_INLINE float toFloat(float x) { return x; }
ESPALIER_INLINE float toFloat(bf16 x) { return floatOf(static_cast<uint32_t>(x.bits) << 16); }
/// Round to nearest even; a NaN stays a NaN.
ESPALIER_INLINE bf16 narrow(float x) {
  const uint32_t u = bitsOf(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((u >> 16) | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
ESPALIER_INLINE void put(float* p, float x) { *p = x; }
ESPALIER_INLINE void put(bf16* p, float x) { *p = narrow(x); }
/// IEEE half to float, exact, subnormals included.
ESPALIER_INLINE float halfToFloat(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif ESPALIER_LANES == 16
  return _mm_cvtss_f32(_mm_maskz_cvtph_ps(1, _mm_cvtsi32_si128(h)));
#else
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  const float magnitude = rest >= 0x7c00 ? floatOf(0x7f800000 | (rest & 0x3ff) << 13)
                                         : floatOf(rest << 13) * 5.192296858534828e33f;  // 2^112
  return floatOf(bitsOf(magnitude) | sign);
#endif
}

// ---- whole vectors -------------------------------------------------------------------------------------------------
ESPALIER_INLINE Vec set1(float x) { return x - Vec{}; }  // x - 0 keeps -0 and NaN
ESPALIER_INLINE IVec set1i(int32_t x) { return x - IVec{}; }
ESPALIER_INLINE Vec zero() { return Vec{}; }

ESPALIER_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
ESPALIER_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
ESPALIER_INLINE IVec loadI(const void* p) {
  IVec v;
  memcpy(&v, p, sizeof v);
  return v;
}
ESPALIER_INLINE void storeI(void* p, IVec v) { memcpy(p, &v, sizeof v); }

ESPALIER_INLINE Vec load(const bf16* p) {
  HVec h;
  memcpy(&h, p, sizeof h);
#if ESPALIER_LANES == 16
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16));
#elif ESPALIER_LANES == 8
  return reinterpret_cast<Vec>(_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16));
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(h, UVec) << 16);
#endif
}
/// The lanes of v rounded to bf16 (nearest even, NaN kept), as 32-bit lanes with the value in the low half.
ESPALIER_INLINE UVec roundBf16(Vec v) {
  const UVec u = reinterpret_cast<UVec>(v);
  const UVec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const UVec quiet = (u >> 16) | 0x40;
  const UVec isNan = reinterpret_cast<UVec>(v != v);
  return (isNan & quiet) | (~isNan & rounded);
}
ESPALIER_INLINE void store(bf16* p, Vec v) {
#if defined(ESPALIER_ISA_AVX512BF16)
  const __m256bh h = _mm512_cvtneps_pbh(v);
  memcpy(p, &h, sizeof h);
#elif ESPALIER_LANES == 16
  const __m256i h = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(roundBf16(v)));
  memcpy(p, &h, sizeof h);
#elif ESPALIER_LANES == 8
  const __m256i w = reinterpret_cast<__m256i>(roundBf16(v));
  const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  memcpy(p, &h, sizeof h);
#else
  const HVec h = __builtin_convertvector(roundBf16(v), HVec);
  memcpy(p, &h, sizeof h);
#endif
}

// ---- tails: the first n lanes (0 <= n <= kLanes) -------------------------------------------------------------------
/// Lanes past n are 0; nothing past p[n - 1] is read.
template <typename T> ESPALIER_INLINE Vec loadPart(const T* p, int n) {
  if (n >= kLanes) return load(p);
  T buffer[kLanes] = {};
  memcpy(buffer, p, sizeof(T) * static_cast<size_t>(n & (kLanes - 1)));  // the mask only tells the compiler the bound
  return load(buffer);
}
template <typename T> ESPALIER_INLINE void storePart(T* p, int n, Vec v) {
  if (n >= kLanes) return store(p, v);
  T buffer[kLanes];
  store(buffer, v);
  memcpy(p, buffer, sizeof(T) * static_cast<size_t>(n & (kLanes - 1)));
}
#if ESPALIER_LANES == 16
ESPALIER_INLINE Vec loadPart(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
ESPALIER_INLINE void storePart(float* p, int n, Vec v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
#endif
/// load / store of min(n, kLanes) lanes: the loop is `for (i = 0; i < n; i += kLanes) storeUpTo(y + i, n - i, f(loadUpTo(x + i, n - i)))`.
template <typename T> ESPALIER_INLINE Vec loadUpTo(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : loadPart(p, static_cast<int>(n));
}
template <typename T> ESPALIER_INLINE void storeUpTo(T* p, int64_t n, Vec v) {
  if (n >= kLanes) store(p, v);
  else storePart(p, static_cast<int>(n), v);
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------
/// a * b + c, one rounding where the instruction set has it.
ESPALIER_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if ESPALIER_LANES == 16
  return _mm512_fmadd_ps(a, b, c);
#elif ESPALIER_LANES == 8
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
ESPALIER_INLINE Vec select(IVec mask, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((mask & reinterpret_cast<IVec>(yes)) | (~mask & reinterpret_cast<IVec>(no)));
}
/// A NaN in b is lost, one in a is kept.
ESPALIER_INLINE Vec max(Vec a, Vec b) { return select(a < b, b, a); }
ESPALIER_INLINE Vec min(Vec a, Vec b) { return select(a > b, b, a); }
ESPALIER_INLINE Vec abs(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<UVec>(a) & 0x7fffffffu); }
ESPALIER_INLINE Vec toVec(IVec a) { return __builtin_convertvector(a, Vec); }
ESPALIER_INLINE Vec sqrt(Vec a) {
#if ESPALIER_LANES == 16
  return _mm512_sqrt_ps(a);
#elif ESPALIER_LANES == 8
  return _mm256_sqrt_ps(a);
#else
  for (int i = 0; i < kLanes; i++) a[i] = std::sqrt(a[i]);
  return a;
#endif
}
/// kLanes signed bytes as floats.
ESPALIER_INLINE Vec load(const int8_t* p) {
  BVec b;
  memcpy(&b, p, sizeof b);
#if ESPALIER_LANES == 16
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)b));
#elif ESPALIER_LANES == 8
  int64_t raw;
  memcpy(&raw, &b, 8);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(raw)));
#else
  return __builtin_convertvector(__builtin_convertvector(b, IVec), Vec);
#endif
}

/// The order of the sum is a fixed tree: halves, quarters, ...
ESPALIER_INLINE float reduceAdd(Vec v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}
ESPALIER_INLINE float reduceMax(Vec v) {
#if ESPALIER_LANES == 16
  return _mm512_reduce_max_ps(v);
#endif
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] < x[i + half] ? x[i + half] : x[i];
  return x[0];
}

/// e^x to 2 units in the last place: x = n ln 2 + r, Taylor-like polynomial of degree 6 in r (coefficients: Cephes expf).
/// Below -87.33 the result is 0 (no subnormals), above 88.72 infinity; NaN stays NaN.
ESPALIER_INLINE Vec exp(Vec x) {
  const Vec low = set1(-87.33654f), high = set1(88.72284f);
  const Vec clamped = min(max(x, low), high);
  const Vec magic = set1(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = fma(clamped, set1(1.44269504088896341f), magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.f);
  // 2^n in two factors, since n reaches 128.
  const IVec exponent = reinterpret_cast<IVec>(shifted) - 0x4b400000;
  const IVec first = exponent >> 1, second = exponent - first;
  p = p * reinterpret_cast<Vec>((first + 127) << 23) * reinterpret_cast<Vec>((second + 127) << 23);
  p = select(x < low, zero(), p);
  return select(x > high, set1(INFINITY), p);
}
/// 1 / (1 + e^-x)
ESPALIER_INLINE Vec sigmoid(Vec x) { return 1.f / (1.f + exp(-x)); }

// ---- transposes ----------------------------------------------------------------------------------------------------
/// Transposes a kLanes x kLanes square of 32-bit lanes in registers.
ESPALIER_INLINE void transpose(Vec* r) {
#if ESPALIER_LANES == 16
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  __m512 u[16];
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88), d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#elif ESPALIER_LANES == 8
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
#else
  const Vec a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Vec c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#endif
}

}  // namespace espalier
