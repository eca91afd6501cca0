// The engine's adapters: slots of one arena that the programs read. Loading one writes its values and a row of every
// slot table; no session changes (design §3, "Adapters are slots").
import { compile } from '../compiler/compile.js'
import { floatBits } from '../compiler/ops/quant-linear.js'
import { viewTensor } from '../models/adapter-layout.js'
import { type AdapterShape, adapterLeafName, normsLeafName } from '../models/adapter-slot.js'
import { pagedLeaves, slotsLeafName } from '../models/context.js'
import { graphOptions, normsGraph, type Precision } from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import { loadAdapter } from '../models/peft.js'
import { bindProgram, type LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer } from '../runtime/types.js'

/** An arena that somebody else writes, such as a trainer. */
export interface SharedArena {
  readonly buffer: DeviceBuffer
  /** Floats from the start that belong to its owner; the engine loads adapters behind them. */
  readonly reservedFloats: number
}

export interface AdapterStoreOptions {
  readonly base: LoadedBase
  readonly precision: Precision
  readonly maxAdapters: number
  /** Floats of an arena of its own. */
  readonly arenaFloats: number
  readonly maxRank: number
  readonly arena?: SharedArena | undefined
}

interface Loaded {
  readonly slot: number
  /** What the engine placed; null for an adapter in its owner's part. */
  readonly room: { readonly offset: number; readonly length: number } | null
  /** Rises whenever the values change: cached blocks of older ones are not found. */
  version: number
}

const COLUMNS = 8
const FLOAT_BYTES = 4
/** 64 bytes. */
const ALIGNMENT_FLOATS = 16
const align = (floats: number) => Math.ceil(floats / ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS

export class AdapterStore {
  private readonly options: AdapterStoreOptions
  private readonly arena: DeviceBuffer
  private readonly values: Float32Array
  private readonly first: number
  private readonly tables = new Map<string, DeviceBuffer>()
  private readonly loaded = new Map<string, Loaded>()
  private readonly loading = new Set<string>()
  private versions = 0

  constructor(options: AdapterStoreOptions) {
    this.options = options
    const { runtime, config, architecture } = options.base
    this.arena =
      options.arena?.buffer ?? runtime.allocate(FLOAT_BYTES * Math.max(ALIGNMENT_FLOATS, options.arenaFloats))
    this.values = new Float32Array(
      this.arena.bytes.buffer as ArrayBuffer,
      this.arena.bytes.byteOffset,
      this.arena.byteLength / FLOAT_BYTES,
    )
    // An offset of 0 says that a linear has no DoRA factor, so nothing is placed there.
    this.first = Math.max(ALIGNMENT_FLOATS, align(options.arena?.reservedFloats ?? 0))
    for (const { path } of architecture.linears(config))
      this.tables.set(path, runtime.allocate(8 * COLUMNS * Math.max(1, options.maxAdapters)))
  }

  /** What graphs are traced with; null where there is no slot. */
  get slots(): { count: number; arenaFloats: number; maxRank: number } | null {
    const { maxAdapters, maxRank } = this.options
    return maxAdapters === 0 ? null : { count: maxAdapters, arenaFloats: this.values.length, maxRank }
  }

  readonly leaf = (name: string): LeafMemory | null => {
    if (name === pagedLeaves.arena) return { buffer: this.arena, byteOffset: 0 }
    const path = name.startsWith(slotsLeafName('')) ? name.slice(slotsLeafName('').length) : null
    const table = path === null ? undefined : this.tables.get(path)
    return table ? { buffer: table, byteOffset: 0 } : null
  }

  names(): string[] {
    return [...this.loaded.keys()].filter((name) => !this.loading.has(name))
  }

  /** Slot and namespace of the cache blocks of an adapter; undefined: it is not loaded. */
  find(name: string): { slot: number; namespace: string } | undefined {
    const found = this.loading.has(name) ? undefined : this.loaded.get(name)
    return found && { slot: found.slot, namespace: `adapter ${found.version}` }
  }

  /** Loads a PEFT folder. @throws where it does not fit the base, the arena or the slots */
  async load(name: string, folder: string, options: { readonly allowPartial?: boolean } = {}): Promise<void> {
    const slot = this.claim(name)
    try {
      const { base } = this.options
      const { layout, values } = loadAdapter(folder, base.architecture.linears(base.config), options)
      const shape: AdapterShape = { ...layout.adapter, dropout: 0 }
      const magnitudes = layout.tensors.filter(({ kind }) => kind === 'magnitude')
      const factorFloats = magnitudes.reduce((n, tensor) => n + align(tensor.shape[0]!), 0)
      const length = align(layout.length) + factorFloats
      const offset = this.findRoom(length)
      this.loaded.set(name, { slot, room: { offset, length }, version: this.versions++ })
      try {
        this.values.set(values, offset)
        const factors = new Map<string, number>()
        let at = offset + align(layout.length)
        if (magnitudes.length > 0) {
          const norms = await this.norms(shape, offset)
          for (const tensor of magnitudes) {
            const magnitude = viewTensor(values, tensor)
            const norm = norms.get(tensor.path)!
            for (let i = 0; i < magnitude.length; i++) this.values[at + i] = magnitude[i]! / norm[i]!
            factors.set(tensor.path, at)
            at += align(magnitude.length)
          }
        }
        this.writeTables(slot, shape, offset, factors)
      } catch (error) {
        this.loaded.delete(name)
        throw error
      }
    } finally {
      this.loading.delete(name)
    }
  }

  /**
   * Names an adapter that lies in its owner's part of the arena at `offset` (floats).
   * @param factors offsets of DoRA's magnitude / ‖W + scaling·BA‖, by linear; the owner keeps them up to date
   */
  attach(name: string, shape: AdapterShape, offset: number, factors: ReadonlyMap<string, number> = new Map()): void {
    const slot = this.claim(name)
    this.loading.delete(name)
    this.loaded.set(name, { slot, room: null, version: this.versions++ })
    this.writeTables(slot, shape, offset, factors)
  }

  /** The adapter's values changed: what the cache holds of it is not found any more. */
  touch(name: string): void {
    const adapter = this.loaded.get(name)
    if (!adapter) throw new Error(`no adapter ${name} is loaded`)
    adapter.version = this.versions++
  }

  unload(name: string): void {
    const adapter = this.loaded.get(name)
    if (!adapter)
      throw new Error(
        `no adapter ${JSON.stringify(name)} is loaded; loaded are: ${this.names().join(', ') || '(none)'}`,
      )
    for (const table of this.tables.values()) this.row(table, adapter.slot).fill(0n)
    this.loaded.delete(name)
  }

  close(): void {
    if (!this.options.arena) this.arena.free()
    for (const table of this.tables.values()) table.free()
  }

  /** A free slot, reserved under the name. */
  private claim(name: string): number {
    const { maxAdapters } = this.options
    if (this.loaded.has(name) || this.loading.has(name)) throw new Error(`an adapter ${name} is loaded already`)
    if (this.loaded.size >= maxAdapters)
      throw new Error(`all ${maxAdapters} adapter slots are taken: unload one, or raise maxAdapters`)
    this.loading.add(name)
    const taken = new Set([...this.loaded.values()].map(({ slot }) => slot))
    let slot = 0
    while (taken.has(slot)) slot++
    return slot
  }

  private findRoom(length: number): number {
    const rooms = [...this.loaded.values()].flatMap(({ room }) => room ?? []).sort((a, b) => a.offset - b.offset)
    let at = this.first
    for (const room of rooms) {
      if (at + length <= room.offset) return at
      at = room.offset + room.length
    }
    if (at + length <= this.values.length) return at
    throw new Error(
      `the adapter takes ${length} floats and the arena has no gap of that size: unload one, or raise adapterFloats`,
    )
  }

  private row(table: DeviceBuffer, slot: number): BigInt64Array {
    const { buffer, byteOffset } = table.bytes
    return new BigInt64Array(buffer as ArrayBuffer, byteOffset + slot * COLUMNS * 8, COLUMNS)
  }

  private writeTables(
    slot: number,
    { linears }: AdapterShape,
    offset: number,
    factors: ReadonlyMap<string, number>,
  ): void {
    const { maxRank } = this.options
    for (const { rank, path } of linears.values())
      if (rank > maxRank) throw new Error(`${path}: rank ${rank} is above ${maxRank}: raise maxRank`)
    for (const [path, table] of this.tables) {
      const row = this.row(table, slot)
      row.fill(0n)
      const linear = linears.get(path)
      if (!linear) continue
      const start = offset + linear.offset
      row.set(
        [start, start + linear.bOffset, linear.rank, floatBits(linear.scaling), factors.get(path) ?? 0].map(BigInt),
      )
    }
  }

  /** ‖W + scaling·BA‖ by rows of every linear with a magnitude. */
  private async norms(shape: AdapterShape, offset: number): Promise<Map<string, Float32Array>> {
    const { runtime, config, formats, leaf } = this.options.base
    const graph = normsGraph(graphOptions(runtime.info.kernels, this.options.precision), {
      config,
      formats,
      adapter: shape,
    })
    const places = new Map(
      [...shape.linears.values()].map((linear) => [adapterLeafName(linear.path), offset + linear.offset]),
    )
    const program = await bindProgram(runtime, compile(graph, { dims: {} }), {
      leaf: (name) => {
        const at = places.get(name)
        return at === undefined ? leaf(name) : { buffer: this.arena, byteOffset: at * FLOAT_BYTES }
      },
    })
    try {
      await program.run({})
      const withMagnitude = [...shape.linears.values()].filter((linear) => linear.magnitudeOffset !== undefined)
      return new Map(withMagnitude.map(({ path }) => [path, program.f32(normsLeafName(path)).slice()]))
    } finally {
      program.close()
    }
  }
}
