// See memory.h. Sanitizer builds take every block from malloc, so that a read past its end is seen.
#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "stripes.h"

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
void* takeLargePages(size_t bytes) { return takeBlock(bytes); }
void protect(void*, size_t) {}
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
/// As takeBlock, in pages of 2 MB where the system has them.
void* takeLargePages(size_t bytes) {
  constexpr size_t kLargePage = size_t{2} << 20;
#ifdef MADV_HUGEPAGE
  if (bytes >= kLargePage) {
    // Only whole large pages count, so the block starts at one and what was taken around it goes back.
    const size_t kept = roundUp(bytes, pageSize());
    auto* raw = static_cast<uint8_t*>(takeBlock(kept + kLargePage));
    if (!raw) return nullptr;
    auto* block = reinterpret_cast<uint8_t*>(roundUp(reinterpret_cast<size_t>(raw), kLargePage));
    if (block > raw) munmap(raw, static_cast<size_t>(block - raw));
    if (raw + kLargePage > block) munmap(block + kept, static_cast<size_t>(raw + kLargePage - block));
    madvise(block, kept, MADV_HUGEPAGE);
    return block;
  }
#endif
  return takeBlock(bytes);
}
void protect(void* block, size_t bytes) {
  if (bytes) mprotect(block, bytes, PROT_READ);
}
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

namespace {

/// A file open for reading.
class File {
 public:
  explicit File(const std::string& path) : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw systemError(path);
    struct stat status;
    if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(descriptor_);
      throw std::runtime_error(path + ": not a regular file");
    }
    size_ = static_cast<size_t>(status.st_size);
  }
  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  size_t size() const { return size_; }
  void read(size_t offset, size_t length, uint8_t* to) const {
    for (size_t done = 0; done < length;) {
      const ssize_t n = pread(descriptor_, to + done, length - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw systemError(path_);
      if (n == 0) throw std::runtime_error(path_ + ": ends at byte " + std::to_string(offset + done) + ", while it is read");
      done += static_cast<size_t>(n);
    }
  }

 private:
  std::string path_;
  int descriptor_;
  size_t size_ = 0;
};

/// Bytes that one thread reads at a time, some stripes of a matrix.
constexpr size_t kPieceBytes = 1 << 20;

/// The whole file in pieces: of `striped` some stripes each, of what lies between them plain bytes.
std::vector<StripedRange> piecesOf(const std::string& path, size_t size, std::vector<StripedRange> striped) {
  std::sort(striped.begin(), striped.end(), [](const auto& a, const auto& b) { return a.byteOffset < b.byteOffset; });
  std::vector<StripedRange> pieces;
  size_t done = 0;
  const auto plainUpTo = [&](size_t end) {
    for (; done < end; done = std::min(end, done + kPieceBytes)) pieces.push_back({done, std::min(kPieceBytes, end - done), 1, 0});
  };
  for (const StripedRange& range : striped) {
    const bool fits = range.byteOffset >= done && range.byteOffset <= size && range.byteLength <= size - range.byteOffset;
    const bool isWhole = range.rows > 0 && (range.unitBytes == 2 || range.unitBytes == 4) && range.byteLength % (range.rows * range.unitBytes) == 0;
    if (!fits || !isWhole) throw std::runtime_error(path + ": no matrix of " + std::to_string(range.rows) + " rows at byte " + std::to_string(range.byteOffset));
    plainUpTo(range.byteOffset);
    const size_t rowBytes = range.byteLength / range.rows;
    const size_t rows = std::max<size_t>(1, kPieceBytes / std::max<size_t>(1, rowBytes * kStripeRows)) * kStripeRows;
    for (size_t row = 0; row < range.rows; row += rows) {
      const size_t count = std::min(rows, range.rows - row);
      pieces.push_back({range.byteOffset + row * rowBytes, count * rowBytes, count, range.unitBytes});
    }
    done = range.byteOffset + range.byteLength;
  }
  plainUpTo(size);
  return pieces;
}

void readPiece(const File& file, const StripedRange& piece, std::vector<uint8_t>& room, uint8_t* to) {
  if (!piece.unitBytes) return file.read(piece.byteOffset, piece.byteLength, to);
  room.resize(std::max(room.size(), piece.byteLength));
  file.read(piece.byteOffset, piece.byteLength, room.data());
  const auto rows = static_cast<int64_t>(piece.rows), perRow = static_cast<int64_t>(piece.byteLength / piece.rows / piece.unitBytes);
  if (piece.unitBytes == 4) layInStripes<uint32_t>(room.data(), to, rows, perRow);
  else layInStripes<uint16_t>(room.data(), to, rows, perRow);
}

}  // namespace

std::shared_ptr<Memory> Memory::loadFile(const std::string& path, std::vector<StripedRange> striped, Team& team) {
  const File file(path);
  const std::vector<StripedRange> pieces = piecesOf(path, file.size(), std::move(striped));
  std::shared_ptr<Memory> memory(new Memory);
  memory->size_ = file.size();
  memory->isReadOnly_ = true;
  memory->data_ = static_cast<uint8_t*>(takeLargePages(memory->size_));
  if (!memory->data_) throw systemError(path + ": cannot allocate " + std::to_string(memory->size_) + " bytes");
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::string problem;
  auto work = [&] {
    try {
      std::vector<uint8_t> room;
      for (size_t i = next.fetch_add(1); i < pieces.size(); i = next.fetch_add(1)) readPiece(file, pieces[i], room, memory->data_ + pieces[i].byteOffset);
    } catch (const std::exception& error) {
      next = pieces.size();
      std::lock_guard<std::mutex> lock(mutex);
      problem = error.what();
    }
  };
  team.run(team.threads(), [](void* user, size_t) { (*static_cast<decltype(work)*>(user))(); }, &work);
  if (!problem.empty()) throw std::runtime_error(problem);
  protect(memory->data_, memory->size_);
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
