// A breath in a loop that waits for another thread.
#pragma once

namespace espalier {

inline void pauseThread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace espalier
