// Where blocks go when the cache is full: slots of host memory as plain data, and the byte moves that a step begins
// with. A block that several sequences share is kept once, under its key.

/** Moves of whole blocks, carried out in their order before the step's runs. */
export type BlockMove =
  | { readonly kind: 'copy'; readonly block: number; readonly from: number }
  | { readonly kind: 'out'; readonly block: number; readonly slot: number }
  | { readonly kind: 'in'; readonly block: number; readonly slot: number }
  /** The slot's memory may be used again. */
  | { readonly kind: 'drop'; readonly slot: number }

/** What lies outside of the cache. Memory of the host is not bounded here: preempting must never fail. */
export interface SwapArea {
  next: number
  readonly free: number[]
  readonly references: Map<number, number>
  readonly keys: Map<number, string>
  readonly byKey: Map<string, number>
}

export const createSwapArea = (): SwapArea => ({
  next: 0,
  free: [],
  references: new Map(),
  keys: new Map(),
  byKey: new Map(),
})

/** A slot that holds the block from now on; the move is added where the bytes are not there yet. */
export function storeBlock(area: SwapArea, block: number, key: string | null, moves: BlockMove[]): number {
  const known = key === null ? undefined : area.byKey.get(key)
  if (known !== undefined) {
    area.references.set(known, area.references.get(known)! + 1)
    return known
  }
  const slot = area.free.pop() ?? area.next++
  area.references.set(slot, 1)
  if (key !== null) {
    area.keys.set(slot, key)
    area.byKey.set(key, slot)
  }
  moves.push({ kind: 'out', block, slot })
  return slot
}

/** Gives up one hold on a slot. */
export function dropSlot(area: SwapArea, slot: number, moves: BlockMove[]): void {
  const left = area.references.get(slot)! - 1
  if (left > 0) {
    area.references.set(slot, left)
    return
  }
  area.references.delete(slot)
  const key = area.keys.get(slot)
  if (key !== undefined) {
    area.keys.delete(slot)
    area.byKey.delete(key)
  }
  area.free.push(slot)
  moves.push({ kind: 'drop', slot })
}
