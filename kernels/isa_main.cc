// The one symbol that a kernel library exports: all operators of this instruction set, as they registered themselves.
#include "kernel.h"

extern "C" __attribute__((visibility("default"))) const espalier::KernelList* espalierKernels() {
  return espalier::KernelList::head();
}
