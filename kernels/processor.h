// Which processor a thread is on. Schedulers wake a thread where it ran last, also when another of ours spins there, and
// leave both for some milliseconds to one processor while the next one idles.
#pragma once
#if defined(__linux__)
#include <sched.h>
#endif

namespace espalier {

/// The processor of the calling thread; -1 where the system does not say.
inline int currentProcessor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// Moves the calling thread from `processor` to another one of those it may use, if there is one.
inline void leaveProcessor(int processor) {
#if defined(__linux__)
  cpu_set_t all;
  if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(static_cast<size_t>(processor), &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof all, &all);
#else
  (void)processor;
#endif
}

}  // namespace espalier
