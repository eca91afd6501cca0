// Waiting for another thread that is about to be done.
#pragma once
#include <thread>

namespace espalier {

inline void pauseThread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns when isDone() is true; for what takes microseconds unless the other thread has lost its processor.
template <typename F> void spinUntil(F&& isDone) {
  constexpr int kPatience = 20000;
  for (int spins = 0; !isDone(); spins++)
    if (spins < kPatience) pauseThread();
    else std::this_thread::yield();
}

}  // namespace espalier
