// Reading a frozen weight [rows (out), columns (in)] in any storage format as fp32: the one place that knows the layouts.
// Formats: 0 f32 · 1 bf16 or f16 · 2 int4 affine (code * scale + offset) · 3 int8 (code * scale) · 4 NF4 with nested
// scales · 5 int4 symmetric ((code - 8) * scale). 4-bit codes: element 2i in the low nibble. Codes, as words of 32 bits, and
// half-precision scales lie in stripes (stripes.h); NF4's scales and dense formats row by row. The values are those of the
// format's definition to the last bit (one fused or two exact roundings, see each case).
#pragma once
#include "../kernel.h"
#include "../simd.h"
#include "../stripes.h"
#include "code_tables.h"

namespace espalier {

enum class Format : int32_t { f32 = 0, half = 1, int4 = 2, int8 = 3, nf4 = 4, int4Symmetric = 5 };

struct Weights {
  Format format = Format::f32;
  DType dtype = DType::f32;  // of w[0]
  int32_t block = 32;
  int64_t rows = 0, columns = 0;
  int64_t rowWords = 0, rowBlocks = 0;  // of a row: 32-bit words of codes, blocks
  const void* w[4] = {};

  int64_t codesPerWord() const { return format == Format::int8 ? 4 : 8; }
  /// A word of a row's codes; the row's next one is stripeHeight(rows, row) further.
  const uint32_t* codeWord(int64_t row, int64_t word) const { return static_cast<const uint32_t*>(w[0]) + stripePlace(rows, rowWords, row, word); }
  /// Where the half-precision scale (and offset) of a row's block is.
  int64_t scalePlace(int64_t row, int64_t b) const { return stripePlace(rows, rowBlocks, row, b); }
};

/// Inputs first .. first + 3 as a weight. Null, or what is wrong with them.
inline const char* readWeights(Context& context, int first, int64_t format, int64_t block, Weights& out) {
  const Tensor w0 = context.input(first), w1 = context.input(first + 1), w2 = context.input(first + 2), w3 = context.input(first + 3);
  if (!w0 || w0.rank != 2) return "weight: W0 must be a matrix";
  if (format < 0 || format > 5) return "weight: unknown format";
  out.format = static_cast<Format>(format);
  out.dtype = w0.dtype;
  out.rows = w0.dims[0];
  out.columns = w0.dims[1];
  out.w[0] = w0.data, out.w[1] = w1.data, out.w[2] = w2.data, out.w[3] = w3.data;
  if (out.format == Format::f32) return w0.dtype == DType::f32 ? nullptr : "weight: format 0 needs a float W0";
  if (out.format == Format::half)
    return w0.dtype == DType::bf16 || w0.dtype == DType::f16 ? nullptr : "weight: format 1 needs a bfloat16 or float16 W0";
  if (block != 32 && block != 64) return "weight: block must be 32 or 64";
  out.block = static_cast<int32_t>(block);
  if (out.format == Format::int8) {
    if (w0.dtype != DType::i8) return "weight: format 3 needs an int8 W0";
  } else {
    if (w0.dtype != DType::u8) return "weight: 4-bit formats need a uint8 W0";
    out.columns *= 2;
  }
  if (out.format == Format::nf4) block = 64;
  if (out.columns % block != 0) return "weight: the inner dimension must be a multiple of the block";
  out.rowWords = out.columns / out.codesPerWord(), out.rowBlocks = out.columns / block;
  const int64_t blocks = out.rows * out.rowBlocks;
  if (out.format == Format::nf4) {
    if (w1.dtype != DType::u8 || w1.size() < blocks) return "weight: NF4 needs a uint8 absmax code per 64 values in W1";
    if (w2.dtype != DType::f32 || w2.size() < (blocks + 255) / 256) return "weight: NF4 needs a float per 256 blocks in W2";
    if (w3.dtype != DType::f32 || w3.size() < 1) return "weight: NF4 needs its nested offset in W3";
    out.block = 64;
    return w1 && w2 && w3 ? nullptr : "weight: NF4 needs W1, W2 and W3";
  }
  if (!w1 || w1.dtype != DType::f16 || w1.size() < blocks) return "weight: W1 must hold a float16 scale per block";
  if (out.format == Format::int4 && (!w2 || w2.dtype != DType::f16 || w2.size() < blocks))
    return "weight: W2 must hold a float16 offset per block";
  return nullptr;
}

/// The first min(n, kLanes) halves at p as floats; the other lanes are 0.
ESPALIER_INLINE Vec loadHalves(const uint16_t* p, int64_t n) {
#if ESPALIER_LANES == 16
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(n >= kLanes ? 0xffff : (1u << n) - 1), p));
#elif ESPALIER_LANES == 8
  if (n >= kLanes) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  uint16_t buffer[kLanes] = {};
  memcpy(buffer, p, 2 * static_cast<size_t>(n));
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(buffer)));
#else
  Vec v = {};
  for (int64_t i = 0; i < n && i < kLanes; i++) v[i] = halfToFloat(p[i]);
  return v;
#endif
}
/// absmax of NF4's flat block b: product and sum rounded one after the other, as bitsandbytes does.
inline float nf4Absmax(const Weights& weights, int64_t b) {
  volatile const float product = kDynamicMap[static_cast<const uint8_t*>(weights.w[1])[b]] * static_cast<const float*>(weights.w[2])[b / 256];
  return product + static_cast<const float*>(weights.w[3])[0];
}

/// value = code * scale + offset in block b of a row (NF4: its table's value * scale).
ESPALIER_INLINE void blockScale(const Weights& weights, int64_t row, int64_t b, float& scale, float& offset) {
  offset = 0;
  if (weights.format == Format::nf4) {
    scale = nf4Absmax(weights, row * weights.rowBlocks + b);
    return;
  }
  const int64_t place = weights.scalePlace(row, b);
  scale = halfToFloat(static_cast<const uint16_t*>(weights.w[1])[place]);
  if (weights.format == Format::int4) offset = halfToFloat(static_cast<const uint16_t*>(weights.w[2])[place]);
  if (weights.format == Format::int4Symmetric) offset = -8.f * scale;
}

/// A 4-bit code as a float, by lookup.
alignas(64) constexpr float kCodeValues[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// kNf4[code] for kLanes codes.
ESPALIER_INLINE Vec lookupNf4(IVec code) {
#if ESPALIER_LANES == 16
  return _mm512_permutexvar_ps((__m512i)code, load(kNf4));
#elif ESPALIER_LANES == 8
  const Vec low = _mm256_permutevar8x32_ps(load(kNf4), (__m256i)code), high = _mm256_permutevar8x32_ps(load(kNf4 + 8), (__m256i)code);
  return _mm256_blendv_ps(low, high, (Vec)(code << 28));  // bit 3 of the code is the sign bit
#else
  Vec v;
  for (int i = 0; i < kLanes; i++) v[i] = kNf4[code[i] & 15];
  return v;
#endif
}

/// kLanes bytes as 32-bit lanes.
ESPALIER_INLINE IVec widen(const int8_t* p) {
#if ESPALIER_LANES == 16
  return (IVec)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif ESPALIER_LANES == 8
  return (IVec)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  BVec b;
  memcpy(&b, p, sizeof b);
  return __builtin_convertvector(b, IVec);
#endif
}

/// 16 bytes of codes as 32 codes in order, one byte each.
ESPALIER_INLINE void splitNibbles(const uint8_t* bytes, int8_t* codes) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  Bytes x;
  memcpy(&x, bytes, 16);
  const Bytes low = x & 15, high = x >> 4;
  const Bytes first = __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const Bytes second = __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  memcpy(codes, &first, 16);
  memcpy(codes + 16, &second, 16);
}

/// Columns [column, column + count) of one row as fp32. Any range; 32-aligned ones are fast.
inline void dequantizeRow(const Weights& weights, int64_t row, int64_t column, int64_t count, float* out) {
  const int64_t flat = row * weights.columns + column;
  switch (weights.format) {
    case Format::f32: memcpy(out, static_cast<const float*>(weights.w[0]) + flat, 4 * static_cast<size_t>(count)); return;
    case Format::half:
      if (weights.dtype == DType::bf16) {
        const auto* p = static_cast<const bf16*>(weights.w[0]) + flat;
        for (int64_t i = 0; i < count; i += kLanes) storeUpTo(out + i, count - i, loadUpTo(p + i, count - i));
      } else {
        const auto* p = static_cast<const uint16_t*>(weights.w[0]) + flat;
        for (int64_t i = 0; i < count; i++) out[i] = halfToFloat(p[i]);
      }
      return;
    default: break;
  }
  // Runs of at most 32 codes of one block.
  constexpr int kRun = 32;
  const bool isByte = weights.format == Format::int8, isNf4 = weights.format == Format::nf4;
  const int64_t step = stripeHeight(weights.rows, row), words = kRun / weights.codesPerWord();
  const uint32_t* source = weights.codeWord(row, 0);
  for (int64_t i = 0; i < count;) {
    const int64_t at = column + i, skip = at % kRun, n = std::min(kRun - skip, count - i);
    float scale, offset;
    blockScale(weights, row, at / weights.block, scale, offset);
    uint32_t run[kRun / 4];
    for (int64_t j = 0; j < words; j++) run[j] = source[(at / kRun * words + j) * step];
    alignas(32) int8_t codes[kRun];
    if (isByte) memcpy(codes, run, kRun);
    else splitNibbles(reinterpret_cast<const uint8_t*>(run), codes);
    float values[kRun];
    for (int j = 0; j < kRun; j += kLanes) {
      const IVec code = widen(codes + j);
      store(values + j, isNf4 ? lookupNf4(code) * scale : isByte ? toVec(code) * scale : fma(toVec(code), set1(scale), set1(offset)));
    }
    memcpy(out + i, values + skip, 4 * static_cast<size_t>(n));
    i += n;
  }
}

}  // namespace espalier
