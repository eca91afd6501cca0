// How packed weights lie in memory while kernels read them: stripes of 16 rows, in which one unit of all rows lies side by
// side, [stripe][unit][row]; the last stripe has the rows that are left. A unit is a 32-bit word of codes or a 16-bit scale.
// So a vector holds one unit of neighbouring rows, and the rows of a stripe are one run of bytes. Files hold whole rows;
// loading lays them in stripes (memory.h).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace espalier {

constexpr int64_t kStripeRows = 16;

/// Rows of the stripe that holds `row`: the distance from one unit of it to the next.
inline int64_t stripeHeight(int64_t rows, int64_t row) { return std::min(kStripeRows, rows - row / kStripeRows * kStripeRows); }

/// Where unit `unit` of a row is, in units.
inline int64_t stripePlace(int64_t rows, int64_t perRow, int64_t row, int64_t unit) {
  const int64_t first = row / kStripeRows * kStripeRows;
  return first * perRow + unit * stripeHeight(rows, row) + row - first;
}

/// Lays whole rows of `perRow` units in stripes. `from` and `to` do not overlap.
template <typename Unit> inline void layInStripes(const uint8_t* from, uint8_t* to, int64_t rows, int64_t perRow) {
  for (int64_t first = 0; first < rows; first += kStripeRows) {
    const int64_t height = stripeHeight(rows, first);
    const uint8_t* source = from + first * perRow * static_cast<int64_t>(sizeof(Unit));
    uint8_t* target = to + first * perRow * static_cast<int64_t>(sizeof(Unit));
    for (int64_t unit = 0; unit < perRow; unit++)
      for (int64_t row = 0; row < height; row++)
        memcpy(target + (unit * height + row) * static_cast<int64_t>(sizeof(Unit)), source + (row * perRow + unit) * static_cast<int64_t>(sizeof(Unit)), sizeof(Unit));
  }
}

}  // namespace espalier
