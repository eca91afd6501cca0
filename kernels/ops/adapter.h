// Low-rank adapters as slots of one arena: y += scaling * B (A x), A [rank, K] and B [rows, rank] row-major, fp32.
// A linear's slot table is i64 [slots, 8]: offsets of A and B in floats, rank (0: this slot leaves the linear alone),
// scaling (float bits in the low half), offset of DoRA's factor per output row (magnitude over norm; 0: none), three
// reserved.
#pragma once
#include "../kernel.h"
#include "../simd.h"

namespace espalier {

struct Adapter {
  const float* a = nullptr;  // [rank, K]
  const float* b = nullptr;  // [rows, rank]
  const float* factor = nullptr;  // [rows], DoRA
  int64_t aOffset = 0, bOffset = 0, rank = 0;
  float scaling = 0;
};

struct AdapterSlots {
  const float* arena = nullptr;
  int64_t arenaSize = 0;
  const int64_t* table = nullptr;
  int64_t count = 0;
};

/// Null, or what is wrong. Absent arena or table: no slots.
inline const char* readSlots(const Tensor& arena, const Tensor& table, AdapterSlots& out) {
  if (!arena || !table) return nullptr;
  if (arena.dtype != DType::f32) return "adapter: the arena must be float";
  if (table.dtype != DType::i64 || table.rank != 2 || table.dims[1] != 8) return "adapter: the slot table must be int64 [slots, 8]";
  out = {arena.as<const float>(), arena.size(), table.as<const int64_t>(), table.dims[0]};
  return nullptr;
}

/// Slot `slot` of a linear [rows, columns]; rank 0 when there is none.
inline const char* readSlot(const AdapterSlots& slots, int64_t slot, int64_t rows, int64_t columns, Adapter& out) {
  out = {};
  if (slot >= slots.count) return slots.count == 0 && slot == 0 ? nullptr : "adapter: a row names a slot that the table lacks";
  const int64_t* entry = slots.table + slot * 8;
  if (entry[2] == 0) return nullptr;
  out = {nullptr, nullptr, nullptr, entry[0], entry[1], entry[2], floatOf(static_cast<uint32_t>(entry[3]))};
  const int64_t limit = slots.arenaSize;
  if (out.rank < 0 || out.rank > 65536 || out.aOffset < 0 || out.bOffset < 0 || out.aOffset + out.rank * columns > limit ||
      out.bOffset + out.rank * rows > limit)
    return "adapter: a slot reaches outside the arena";
  out.a = slots.arena + out.aOffset;
  out.b = slots.arena + out.bOffset;
  if (entry[4] < 0 || (entry[4] > 0 && entry[4] + rows > limit)) return "adapter: a DoRA factor reaches outside the arena";
  if (entry[4] > 0) out.factor = slots.arena + entry[4];
  return nullptr;
}

}  // namespace espalier
