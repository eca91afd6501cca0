// Atomic checkpoints (stop 13): a folder `step-00000012` with the flat parameters and both moments, the state of
// everything that moves, and hashes. Written aside, synced, renamed; half-written ones are never taken for real.
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import type { EvaluationResult } from './events.js'
import type { AdapterLayout, TrainProgram } from './program.js'

/** Everything besides the flat buffers that the next step depends on; JSON. */
export interface TrainState {
  /** Optimizer steps done. */
  step: number
  epoch: number
  seed: number
  tokens: number
  targetTokens: number
  /** Position of the loader, opaque here. */
  loader: unknown
  evaluation: {
    last: EvaluationResult | undefined
    first: EvaluationResult | undefined
    best: EvaluationResult | undefined
    /** Evaluations in a row without improvement. */
    stale: number
  }
  /** Of stages that sample: optimizer updates done, and the weight of the divergence. */
  online?: { updates: number; klCoefficient: number }
}

/** What must agree for a resumed run to be the same run. */
export interface CheckpointIdentity {
  recipeHash: string
  layoutHash: string
  /** Instruction set of the kernels: bits are promised for the same one. */
  isa: string
  versions: Record<string, string>
}

interface StateFile extends CheckpointIdentity {
  version: 1
  createdAt: string
  state: TrainState
  files: Record<string, { bytes: number; sha256: string }>
}

export interface CheckpointEntry {
  step: number
  path: string
}

/** A checkpoint that cannot be used: damaged, or from another run. */
export class CheckpointError extends Error {
  override name = 'CheckpointError'
}

const stateName = 'state.json'
const folderPattern = /^step-(\d{8})$/
const asidePrefix = '.writing-'
const flatFiles = { params: 'params.f32', adamM: 'adam-m.f32', adamV: 'adam-v.f32' } as const

export function checkpointName(step: number): string {
  return `step-${String(step).padStart(8, '0')}`
}

export function hashLayout(layout: AdapterLayout): string {
  const tensors = layout.tensors.map(({ name, shape, offset }) => [name, shape, offset])
  return createHash('sha256')
    .update(JSON.stringify([layout.length, tensors]))
    .digest('hex')
}

const bytesOf = (flat: Float32Array) => new Uint8Array(flat.buffer, flat.byteOffset, flat.byteLength)

/** Writes `bytes` and waits until they are on disk. */
export function writeSynced(path: string, bytes: Uint8Array | string): void {
  const file = openSync(path, 'w')
  try {
    writeFileSync(file, bytes)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

export function syncFolder(path: string): void {
  // Windows cannot open a folder; its rename is durable by itself
  if (process.platform === 'win32') return
  const folder = openSync(path, 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}

function syncTree(path: string): void {
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    const child = join(path, entry.name)
    if (entry.isDirectory()) syncTree(child)
    else {
      const file = openSync(child, 'r+')
      fsyncSync(file)
      closeSync(file)
    }
  }
  syncFolder(path)
}

/** Replaces the folder `to` by `from`, which is complete and synced. */
export function replaceFolder(from: string, to: string): void {
  if (existsSync(to)) {
    const old = join(to, '..', `${asidePrefix}old-${basename(to)}-${process.pid}`)
    rmSync(old, { recursive: true, force: true })
    renameSync(to, old)
    renameSync(from, to)
    rmSync(old, { recursive: true, force: true })
  } else {
    renameSync(from, to)
  }
  syncFolder(join(to, '..'))
}

/** What of a program changes from step to step. */
export type FlatBuffers = Pick<TrainProgram, 'params' | 'adamM' | 'adamV'>

export interface SaveCheckpointOptions {
  folder: string
  program: FlatBuffers
  /** Further programs in training, by name. */
  others?: Readonly<Record<string, FlatBuffers>>
  state: TrainState
  identity: CheckpointIdentity
  /** Writes the adapter in its exchange format (a PEFT folder) into the folder it is given. */
  exportAdapter?: (folder: string) => void | Promise<void>
}

/** Writes one checkpoint below `folder` → its path. */
export async function saveCheckpoint(options: SaveCheckpointOptions): Promise<string> {
  const { folder, program, state, identity } = options
  const name = checkpointName(state.step)
  const aside = join(folder, `${asidePrefix}${name}-${process.pid}`)
  rmSync(aside, { recursive: true, force: true })
  mkdirSync(aside, { recursive: true })
  const files: StateFile['files'] = {}
  const write = (of: FlatBuffers, prefix: string) => {
    for (const [key, name] of Object.entries(flatFiles) as [keyof typeof flatFiles, string][]) {
      const bytes = bytesOf(of[key])
      const file = prefix + name
      writeSynced(join(aside, file), bytes)
      files[file] = { bytes: bytes.byteLength, sha256: createHash('sha256').update(bytes).digest('hex') }
    }
  }
  write(program, '')
  for (const [other, buffers] of Object.entries(options.others ?? {})) write(buffers, `${other}-`)
  if (options.exportAdapter) {
    const adapter = join(aside, 'adapter')
    mkdirSync(adapter)
    await options.exportAdapter(adapter)
    syncTree(adapter)
  }
  const content: StateFile = { version: 1, createdAt: new Date().toISOString(), ...identity, state, files }
  writeSynced(join(aside, stateName), `${JSON.stringify(content, undefined, 2)}\n`)
  syncFolder(aside)
  const path = join(folder, name)
  replaceFolder(aside, path)
  return path
}

/** Complete checkpoints below `folder`, oldest first. Leftovers of a killed writer are not among them. */
export function listCheckpoints(folder: string): CheckpointEntry[] {
  if (!existsSync(folder)) return []
  const found: CheckpointEntry[] = []
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const match = entry.isDirectory() ? folderPattern.exec(entry.name) : null
    if (!match) continue
    const path = join(folder, entry.name)
    if (existsSync(join(path, stateName))) found.push({ step: Number(match[1]), path })
  }
  return found.sort((a, b) => a.step - b.step)
}

/** Removes what killed writers left behind. Only for the process that owns the run directory. */
export function removeLeftovers(folder: string): void {
  if (!existsSync(folder)) return
  for (const name of readdirSync(folder)) {
    if (name.startsWith(asidePrefix)) rmSync(join(folder, name), { recursive: true, force: true })
  }
}

export interface LoadedCheckpoint extends CheckpointIdentity {
  path: string
  state: TrainState
  params: Float32Array
  adamM: Float32Array
  adamV: Float32Array
  /** Further programs by name. */
  others: Record<string, FlatBuffers>
}

/** Reads and verifies one checkpoint; `CheckpointError` names the file that is wrong. */
export function loadCheckpoint(path: string): LoadedCheckpoint {
  const fail = (file: string, problem: string) =>
    new CheckpointError(
      `checkpoint ${join(path, file)}: ${problem}; resume from an earlier checkpoint (--resume-fallback) or start the run anew`,
    )
  let content: StateFile
  try {
    content = JSON.parse(readFileSync(join(path, stateName), 'utf8'))
  } catch (error) {
    throw fail(stateName, `cannot be read (${(error as Error).message})`)
  }
  if (content?.version !== 1) throw fail(stateName, `version ${content?.version} is not known to this release`)
  if (typeof content.state?.step !== 'number' || typeof content.files !== 'object' || content.files === null) {
    throw fail(stateName, 'lacks its state or its list of files')
  }
  const read = (file: string): Float32Array => {
    const expected = content.files[file]
    if (!expected) throw fail(stateName, `does not list ${file}`)
    if (!existsSync(join(path, file))) throw fail(file, 'is missing')
    const { size } = statSync(join(path, file))
    if (size !== expected.bytes) throw fail(file, `has ${size} bytes, ${expected.bytes} were written`)
    const bytes = readFileSync(join(path, file))
    const sha256 = createHash('sha256').update(bytes).digest('hex')
    if (sha256 !== expected.sha256) throw fail(file, 'does not have the content that was written (SHA-256 differs)')
    if (bytes.byteLength % 4 !== 0) throw fail(file, 'is not a whole number of floats')
    return new Float32Array(new Uint8Array(bytes).buffer)
  }
  const readAll = (prefix: string): FlatBuffers => ({
    params: read(prefix + flatFiles.params),
    adamM: read(prefix + flatFiles.adamM),
    adamV: read(prefix + flatFiles.adamV),
  })
  const flats = readAll('')
  const others: LoadedCheckpoint['others'] = {}
  for (const file of Object.keys(content.files)) {
    const other = /^([A-Za-z]\w*)-params\.f32$/.exec(file)?.[1]
    if (other) others[other] = readAll(`${other}-`)
  }
  const { recipeHash, layoutHash, isa, versions, state } = content
  return { path, state, recipeHash, layoutHash, isa, versions, ...flats, others }
}

/** Copies a checkpoint into the live buffers. */
export function restoreProgram(checkpoint: LoadedCheckpoint, program: TrainProgram): void {
  if (checkpoint.layoutHash !== hashLayout(program.layout)) {
    throw new CheckpointError(
      `checkpoint ${checkpoint.path}: holds an adapter of another layout (rank, target modules or model differ); resume with the recipe that wrote it`,
    )
  }
  copyBuffers(checkpoint, program, checkpoint.path)
}

/** Copies those of a further program. @throws where the checkpoint has none of that name, or of another size */
export function restoreOther(checkpoint: LoadedCheckpoint, name: string, program: FlatBuffers): void {
  const saved = checkpoint.others[name]
  if (!saved) throw new CheckpointError(`checkpoint ${checkpoint.path}: holds no ${name} model`)
  copyBuffers(saved, program, checkpoint.path)
}

function copyBuffers(from: FlatBuffers, to: FlatBuffers, path: string): void {
  for (const key of Object.keys(flatFiles) as (keyof typeof flatFiles)[]) {
    if (from[key].length !== to[key].length) {
      throw new CheckpointError(
        `checkpoint ${path}: ${flatFiles[key]} has ${from[key].length} values, the adapter ${to[key].length}`,
      )
    }
    to[key].set(from[key])
  }
}

/**
 * The newest checkpoint below `folder`. A damaged one is an error, unless `fallback`: then the one before it is
 * tried, and `onSkip` hears of each that was passed over.
 */
export function loadLatestCheckpoint(
  folder: string,
  options: { fallback?: boolean; onSkip?: (error: CheckpointError) => void } = {},
): LoadedCheckpoint | undefined {
  for (const { path } of listCheckpoints(folder).reverse()) {
    try {
      return loadCheckpoint(path)
    } catch (error) {
      if (!options.fallback || !(error instanceof CheckpointError)) throw error
      options.onSkip?.(error)
    }
  }
  return undefined
}

export interface KeepPolicy {
  /** How many of the newest stay. */
  last: number
  /** The best one by evaluation stays too. */
  best: boolean
}

/** Removes checkpoints that the policy does not keep → the removed paths. */
export function pruneCheckpoints(folder: string, policy: KeepPolicy, bestStep: number | undefined): string[] {
  const all = listCheckpoints(folder)
  const removed: string[] = []
  for (const { step, path } of all.slice(0, Math.max(0, all.length - policy.last))) {
    if (policy.best && step === bestStep) continue
    // Out of sight first, so that a kill during removal leaves a leftover and no damaged checkpoint
    const aside = join(folder, `${asidePrefix}removed-${basename(path)}-${process.pid}`)
    renameSync(path, aside)
    rmSync(aside, { recursive: true, force: true })
    removed.push(path)
  }
  return removed
}
