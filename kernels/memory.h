// Memory that tensors live in: buffers handed to JavaScript, read-only file mappings, and the arena that ONNX Runtime's
// intermediate tensors come from.
#pragma once
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace espalier {

/// A mapping with a use count: freeing while a run uses it takes effect when the run ends.
class Memory {
 public:
  /// Zeroed, aligned to pages. Throws std::runtime_error.
  static std::shared_ptr<Memory> allocate(size_t bytes);
  /// Throws std::runtime_error, naming the file.
  static std::shared_ptr<Memory> mapFile(const std::string& path);
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
