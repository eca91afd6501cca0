// The counter-based hash that dropout and sampling share; dropout.cc states it.
#pragma once
#include <cstdint>

#include "../simd.h"

namespace espalier {

template <typename U> ESPALIER_INLINE U mixBits(U x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}

template <typename U> ESPALIER_INLINE U hashStep(uint32_t key, U word) { return mixBits((key ^ word) + 0x9e3779b9u); }

}  // namespace espalier
