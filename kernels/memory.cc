// See memory.h. Sanitizer builds take every block from malloc, so that a read past its end is seen.
#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace espalier {
namespace {

constexpr size_t kAlignment = 64;

std::runtime_error systemError(const std::string& what) { return std::runtime_error(what + ": " + strerror(errno)); }

#ifdef ESPALIER_SANITIZE
void* takeBlock(size_t bytes) {
  void* block = nullptr;
  return posix_memalign(&block, kAlignment, bytes ? bytes : 1) == 0 ? block : nullptr;
}
void returnBlock(void* block, size_t) { ::free(block); }
#else
size_t roundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
size_t pageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}
/// Zeroed pages that count as resident once they are touched.
void* takeBlock(size_t bytes) {
  void* block = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return block == MAP_FAILED ? nullptr : block;
}
void returnBlock(void* block, size_t bytes) { munmap(block, bytes ? bytes : 1); }
#endif

}  // namespace

std::shared_ptr<Memory> Memory::allocate(size_t bytes) {
  std::shared_ptr<Memory> memory(new Memory);
  memory->data_ = static_cast<uint8_t*>(takeBlock(bytes));
  if (!memory->data_) throw systemError("cannot allocate " + std::to_string(bytes) + " bytes");
#ifdef ESPALIER_SANITIZE
  memset(memory->data_, 0, bytes);
#endif
  memory->size_ = bytes;
  return memory;
}

std::shared_ptr<Memory> Memory::mapFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw systemError(path);
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file);
    throw std::runtime_error(path + ": not a regular file");
  }
  std::shared_ptr<Memory> memory(new Memory);
  memory->size_ = static_cast<size_t>(status.st_size);
  memory->isReadOnly_ = true;
#ifdef ESPALIER_SANITIZE
  memory->data_ = static_cast<uint8_t*>(takeBlock(memory->size_));
  for (size_t done = 0; memory->data_ && done < memory->size_;) {
    const ssize_t n = pread(file, memory->data_ + done, memory->size_ - done, static_cast<off_t>(done));
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
#else
  void* data = memory->size_ ? mmap(nullptr, memory->size_, PROT_READ, MAP_PRIVATE, file, 0) : takeBlock(0);
  memory->data_ = data == MAP_FAILED ? nullptr : static_cast<uint8_t*>(data);
#endif
  close(file);
  if (!memory->data_) throw systemError(path + ": cannot map " + std::to_string(memory->size_) + " bytes");
  return memory;
}

Memory::~Memory() { unmap(); }

void Memory::unmap() {
  if (data_) returnBlock(data_, size_);
  data_ = nullptr;
}

bool Memory::acquire() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (isFreed_) return false;
  users_++;
  return true;
}

void Memory::release() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--users_ == 0 && isFreed_) unmap();
}

void Memory::free() {
  std::lock_guard<std::mutex> lock(mutex_);
  isFreed_ = true;
  if (users_ == 0) unmap();
}

#ifdef ESPALIER_SANITIZE

Arena::Arena() = default;
void* Arena::allocate(size_t bytes) { return takeBlock(bytes); }
void Arena::free(void* block) { ::free(block); }
void Arena::trim() {}
ArenaStatistics Arena::statistics() { return {}; }

#else

namespace {
/// Stands before every block, in an alignment unit of its own.
struct Header {
  size_t bytes;
};
}  // namespace

Arena::Arena() {
  // Address space only; halved until the system grants it (limits on virtual memory).
  reserved_ = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * pageSize() * 2;
  for (; reserved_ > (size_t{1} << 26); reserved_ /= 2) {
    void* range = mmap(nullptr, reserved_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) continue;
    base_ = static_cast<uint8_t*>(range);
    return;
  }
  reserved_ = 0;
}

void* Arena::allocate(size_t bytes) {
  if (bytes > reserved_) return nullptr;
  const size_t needed = roundUp(bytes ? bytes : 1, kAlignment) + kAlignment;
  std::lock_guard<std::mutex> lock(mutex_);
  size_t offset = top_;
  auto found = free_.begin();
  while (found != free_.end() && found->second < needed) ++found;
  if (found != free_.end()) {
    offset = found->first;
    const size_t rest = found->second - needed;
    free_.erase(found);
    if (rest) free_.emplace(offset + needed, rest);
  } else {
    // A free range that ends at the top is extended instead of skipped.
    if (!free_.empty()) {
      const auto last = std::prev(free_.end());
      if (last->first + last->second == top_) {
        offset = last->first;
        free_.erase(last);
      }
    }
    if (needed > reserved_ - offset) {
      if (offset < top_) free_.emplace(offset, top_ - offset);
      return nullptr;
    }
    top_ = offset + needed;
  }
  new (base_ + offset) Header{needed};
  statistics_.live += needed;
  if (statistics_.live > statistics_.peakLive) statistics_.peakLive = statistics_.live;
  if (top_ > statistics_.highWater) statistics_.highWater = top_;
  return base_ + offset + kAlignment;
}

void Arena::free(void* block) {
  if (!block) return;
  size_t offset = static_cast<size_t>(static_cast<uint8_t*>(block) - base_) - kAlignment;
  size_t bytes = reinterpret_cast<Header*>(base_ + offset)->bytes;
  std::lock_guard<std::mutex> lock(mutex_);
  statistics_.live -= bytes;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace_hint(next, offset, bytes);
}

void Arena::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!free_.empty()) {
    const auto last = std::prev(free_.end());
    if (last->first + last->second == top_) {
      const size_t first = roundUp(last->first, pageSize()), end = roundUp(top_, pageSize());
      if (end > first) madvise(base_ + first, end - first, MADV_DONTNEED);
      top_ = last->first;
      free_.erase(last);
    }
  }
  for (const auto& [offset, bytes] : free_) {
    const size_t first = roundUp(offset, pageSize()), end = (offset + bytes) / pageSize() * pageSize();
    if (end > first) madvise(base_ + first, end - first, MADV_DONTNEED);
  }
  statistics_.highWater = top_;
  statistics_.peakLive = statistics_.live;
}

ArenaStatistics Arena::statistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  return statistics_;
}

#endif

Scratch::~Scratch() {
  if (data_) returnBlock(data_, size_);
}

void* Scratch::get(size_t bytes) {
#ifndef ESPALIER_SANITIZE  // which wants it exactly as large as asked for, every time
  if (bytes <= size_ && data_) return data_;
#endif
  if (data_) returnBlock(data_, size_);
  data_ = takeBlock(bytes);
  size_ = data_ ? bytes : 0;
  return data_;
}

}  // namespace espalier
