// Memory that tensors live in: buffers handed to JavaScript, weights read from a file, and the arena that ONNX Runtime's
// intermediate tensors come from.
#pragma once
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "team.h"

namespace espalier {

/// A matrix in a file whose rows are laid in stripes when it is loaded (stripes.h): `rows` rows of units of 2 or 4 bytes.
struct StripedRange {
  size_t byteOffset, byteLength, rows, unitBytes;
};

/// A block of memory with a use count: freeing while a run uses it takes effect when the run ends.
class Memory {
 public:
  /// Zeroed, aligned to pages. Throws std::runtime_error.
  static std::shared_ptr<Memory> allocate(size_t bytes);
  /// A file's bytes, read-only, those of `striped` in stripes. In large pages where the system has them: decoding reads
  /// all of it for every token, and with small pages the processor spends up to a fifth of that on finding them.
  /// Throws std::runtime_error, naming the file.
  static std::shared_ptr<Memory> loadFile(const std::string& path, std::vector<StripedRange> striped, Team& team);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  bool isReadOnly() const { return isReadOnly_; }

  /// False when the memory was freed. Every true needs a release().
  bool acquire();
  void release();
  void free();

 private:
  Memory() = default;
  void unmap();

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  bool isReadOnly_ = false, isFreed_ = false;
  int users_ = 0;
  std::mutex mutex_;
};

struct ArenaStatistics {
  size_t live = 0, peakLive = 0, highWater = 0;
};

/// First fit from the lowest address in one reserved range, neighbours merged: what is resident stays near the peak of
/// what is live, whatever order and sizes come. Thread-safe.
class Arena {
 public:
  Arena();
  void* allocate(size_t bytes);
  void free(void* block);
  /// Returns the pages of free ranges to the system.
  void trim();
  ArenaStatistics statistics();

 private:
  uint8_t* base_ = nullptr;
  size_t top_ = 0;                   // end of the range that was ever handed out
  size_t reserved_ = 0;
  std::map<size_t, size_t> free_;    // offset -> bytes, below top_
  ArenaStatistics statistics_;
  std::mutex mutex_;
};

/// One 64-byte aligned block that grows to the largest request; contents are lost when it grows.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get(size_t bytes);
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace espalier
