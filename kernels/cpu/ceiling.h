// What this processor can do at most: the yardstick of every speed that we publish. Needs no build flag of its own (the
// loops carry their target as an attribute), so one copy serves whatever kernel library is in use.
#pragma once
#include <cstddef>

namespace espalier {

enum class CeilingKind { fp32, bf16 };

/// bf16 where the processor has AVX512-BF16 dot products, else fp32; follows the processor, not any option.
CeilingKind ceilingKind();

/// GFLOP/s of a register-only loop of the widest multiply-add on `threads` threads at once (the calling one included),
/// best of rounds of about 4 ms each until `milliseconds` have passed (at least two rounds). Blocks.
double measureCeiling(CeilingKind kind, int threads, double milliseconds);

/// GB/s of a streaming read of `bytes` bytes (use many times the last cache, 512 MB say) by `threads` threads, best of four.
/// 0 when the memory cannot be had.
double measureReadBandwidth(int threads, size_t bytes);

}  // namespace espalier
