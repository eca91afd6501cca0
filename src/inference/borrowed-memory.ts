// Memory that belongs to somebody else and is free while the engine runs, such as a trainer's workspace between steps:
// handed out from its start, and what does not fit is allocated.
import type { LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer, Runtime } from '../runtime/types.js'

const ALIGNMENT = 64

export class BorrowedMemory {
  private readonly runtime: Runtime
  private readonly lent: DeviceBuffer | undefined
  private readonly owned: DeviceBuffer[] = []
  private end = 0

  constructor(runtime: Runtime, lent: DeviceBuffer | undefined) {
    this.runtime = runtime
    this.lent = lent
  }

  take(bytes: number): LeafMemory {
    const size = Math.max(ALIGNMENT, bytes)
    if (this.lent && this.end + size <= this.lent.byteLength) {
      const byteOffset = this.end
      this.end += Math.ceil(size / ALIGNMENT) * ALIGNMENT
      return { buffer: this.lent, byteOffset }
    }
    const buffer = this.runtime.allocate(size)
    this.owned.push(buffer)
    return { buffer, byteOffset: 0 }
  }

  /** Frees what was allocated. */
  free(): void {
    for (const buffer of this.owned) buffer.free()
  }
}
