// Register-only multiply-add loops (twelve independent chains, enough to cover the latency of four cycles on two units)
// and a streaming read. See ceiling.h.
#include "ceiling.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace espalier {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

volatile float floatSink;
volatile long long integerSink;

// Each returns the floating point operations it did.
#define REPEAT12(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define ADD(i) sum += a##i[0];
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double fp32Avx2(long rounds) {
  const __m256 b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-3f);
#define DECLARE(i) __m256 a##i = _mm256_set1_ps(i * 1e-3f);
#define STEP(i) a##i = _mm256_fmadd_ps(a##i, b, c);
  REPEAT12(DECLARE)
  for (long k = 0; k < rounds; k++) { REPEAT12(STEP) }
  float sum = 0;
  REPEAT12(ADD)
  floatSink = sum;
  return static_cast<double>(rounds) * 12 * 16;
#undef DECLARE
#undef STEP
}
__attribute__((target("avx512f"))) double fp32Avx512(long rounds) {
  const __m512 b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f);
#define DECLARE(i) __m512 a##i = _mm512_set1_ps(i * 1e-3f);
#define STEP(i) a##i = _mm512_fmadd_ps(a##i, b, c);
  REPEAT12(DECLARE)
  for (long k = 0; k < rounds; k++) { REPEAT12(STEP) }
  float sum = 0;
  REPEAT12(ADD)
  floatSink = sum;
  return static_cast<double>(rounds) * 12 * 32;
#undef DECLARE
#undef STEP
}
__attribute__((target("avx512f,avx512bf16"))) double bf16Avx512(long rounds) {
  const __m512bh b = (__m512bh)_mm512_set1_epi16(0x3f7f), c = (__m512bh)_mm512_set1_epi16(0x3a83);
#define DECLARE(i) __m512 a##i = _mm512_set1_ps(i * 1e-3f);
#define STEP(i) a##i = _mm512_dpbf16_ps(a##i, b, c);
  REPEAT12(DECLARE)
  for (long k = 0; k < rounds; k++) { REPEAT12(STEP) }
  float sum = 0;
  REPEAT12(ADD)
  floatSink = sum;
  return static_cast<double>(rounds) * 12 * 64;
#undef DECLARE
#undef STEP
}
#endif
double fp32Portable(long rounds) {
  typedef float V __attribute__((vector_size(16)));
  const V b = {0.999f, 0.999f, 0.999f, 0.999f}, c = {1e-3f, 1e-3f, 1e-3f, 1e-3f};
#define DECLARE(i) V a##i = c * (i * 1.f);
#define STEP(i) a##i = a##i * b + c;
  REPEAT12(DECLARE)
  for (long k = 0; k < rounds; k++) { REPEAT12(STEP) }
  float sum = 0;
  REPEAT12(ADD)
  floatSink = sum;
  return static_cast<double>(rounds) * 12 * 8;
#undef DECLARE
#undef STEP
}

using Work = double (*)(long rounds);
Work chooseWork(CeilingKind kind) {
#if defined(__x86_64__)
  if (kind == CeilingKind::bf16) return bf16Avx512;
  if (__builtin_cpu_supports("avx512f")) return fp32Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fp32Avx2;
#endif
  (void)kind;
  return fp32Portable;
}

/// Runs body(thread) on `threads` threads, this one included, and returns the seconds from start to the last one's end.
template <typename F> double onThreads(int threads, F body) {
  std::vector<std::thread> others;
  const double start = now();
  for (int t = 1; t < threads; t++) others.emplace_back([&body, t] { body(t); });
  body(0);
  for (auto& other : others) other.join();
  return now() - start;
}

}  // namespace

CeilingKind ceilingKind() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16")) return CeilingKind::bf16;
#endif
  return CeilingKind::fp32;
}

double measureCeiling(CeilingKind kind, int threads, double milliseconds) {
  if (threads < 1) threads = 1;
  const Work work = chooseWork(kind);
  constexpr long kRounds = 1'000'000;  // 12 instructions each: about 4 ms at 3.5 GHz
  const double end = now() + milliseconds / 1e3;
  double best = 0;
  for (int round = 0; round < 2 || now() < end; round++) {
    double flops = 0;
    const double seconds = onThreads(threads, [&](int t) {
      const double done = work(kRounds);
      if (t == 0) flops = done;
    });
    const double rate = flops * threads / seconds / 1e9;
    if (rate > best) best = rate;
  }
  return best;
}

double measureReadBandwidth(int threads, size_t bytes) {
  if (threads < 1) threads = 1;
  const size_t part = bytes / static_cast<size_t>(threads) / 256 * 256;
  auto* data = static_cast<char*>(std::aligned_alloc(256, part * static_cast<size_t>(threads)));
  if (!data || part == 0) {
    std::free(data);
    return 0;
  }
  memset(data, 1, part * static_cast<size_t>(threads));
  double best = 0;
  for (int round = 0; round < 4; round++) {
    const double seconds = onThreads(threads, [=](int t) {
      const auto* p = reinterpret_cast<const long long*>(data + static_cast<size_t>(t) * part);
      long long s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (size_t i = 0; i < part / 8; i += 32)
        for (size_t j = 0; j < 32; j += 4) {
          s0 ^= p[i + j];
          s1 ^= p[i + j + 1];
          s2 ^= p[i + j + 2];
          s3 ^= p[i + j + 3];
        }
      integerSink = s0 ^ s1 ^ s2 ^ s3;
    });
    const double rate = static_cast<double>(part) * threads / seconds / 1e9;
    if (rate > best) best = rate;
  }
  std::free(data);
  return best;
}

}  // namespace espalier
