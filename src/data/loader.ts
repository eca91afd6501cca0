// The loader (stop 7 of a run): whole optimizer steps from a token store. Shuffled anew each epoch, packed or not, and a pure
// function of the seed, the documents and the position, so that resuming is setting the position.
import { createHash } from 'node:crypto'
import { basename } from 'node:path'
import { packBestFit } from './packing.js'
import { CounterRandom, permutation } from './random.js'
import { ignoreIndex } from './row-types/row-type.js'
import type { TokenStore } from './token-store.js'

/** Documents are packed within windows of the shuffled order, so that packs differ from epoch to epoch. */
const packingWindow = 1 << 15
const curriculumPhases = 8

/** Documents laid end to end: N tokens, no padding. */
export interface LoadedBatch {
  inputIds: Int32Array // [N]
  /** Aligned: `labels[i]` is the target at position i, the token after `inputIds[i]`; −100 at the last token of a document. */
  labels: Int32Array // [N]
  positionIds: Int32Array // [N], from 0 in every document
  cuSeqlens: Int32Array // [documents + 1]
  /** Numbers of the documents in the token store (`store.placeOf` says where each came from). */
  documents: number[]
  /** Of preference data: the numbers of its rows, whose documents stand side by side here, and what each carries. */
  groups?: number[]
  numbers?: Readonly<Record<string, number[]>>
}

export interface LoadedStep {
  /** Counts from 1. */
  step: number
  /** Passes over the data after this step, fractional. */
  epoch: number
  microBatches: LoadedBatch[]
  /** Labels other than −100 of all micro-batches. */
  targetTokens: number
  inputTokens: number
}

/** Short documents first: the longest document (and pack) grows from `startLength` to `maxLength` over the first `fraction` of epoch 1. */
export interface LengthCurriculum {
  startLength: number
  fraction: number
}

export interface LoaderOptions {
  store: TokenStore
  seed: number
  /** Tokens of a pack (of pairs, twice that); also the longest document. */
  maxLength: number
  packing?: boolean | undefined
  /** Packs of a micro-batch when packing, else documents (or pairs). Default 1. */
  microBatchSize?: number | undefined
  /** Micro-batches of an optimizer step. Default 1. */
  gradientAccumulationSteps?: number | undefined
  epochs?: number | undefined
  /** Stops earlier or goes on over more epochs. */
  maxSteps?: number | undefined
  /** Default true. */
  shuffle?: boolean | undefined
  /** Leave out the last step of an epoch where it is not full (default: it is given, smaller; losses are per token anyway). */
  dropLast?: boolean | undefined
  curriculum?: LengthCurriculum | undefined
}

export interface LoaderState {
  version: 1
  epoch: number
  /** Steps of this epoch that have been given. */
  position: number
  step: number
  /** Hash of what the order depends on; another one cannot be continued. */
  fingerprint: string
}

/** A micro-batch from rows of the store: documents, or the groups of documents that rows of preference data are. */
export function collate(store: TokenStore, units: readonly number[]): LoadedBatch {
  const { groupSize, valueName } = store
  const documents = units.flatMap((unit) => Array.from({ length: groupSize }, (_, i) => unit * groupSize + i))
  const cuSeqlens = new Int32Array(documents.length + 1)
  for (const [i, document] of documents.entries()) cuSeqlens[i + 1] = cuSeqlens[i]! + store.lengths[document]!
  const total = cuSeqlens[documents.length]!
  const inputIds = new Int32Array(total)
  const labels = new Int32Array(total).fill(ignoreIndex)
  const positionIds = new Int32Array(total)
  for (const [i, document] of documents.entries()) {
    const { inputIds: ids, labels: own } = store.read(document)
    const offset = cuSeqlens[i]!
    inputIds.set(ids, offset)
    labels.set(own.subarray(1), offset) // one to the left; the last position keeps −100
    for (let position = 0; position < ids.length; position++) positionIds[offset + position] = position
  }
  const batch = { inputIds, labels, positionIds, cuSeqlens, documents }
  if (valueName === undefined) return batch
  return { ...batch, groups: [...units], numbers: { [valueName]: units.map((unit) => store.valueOf(unit)) } }
}

function countTargets(labels: Int32Array): number {
  let count = 0
  for (const label of labels) if (label !== ignoreIndex) count++
  return count
}

/** Tokens of each row of a store, all documents of its group together. */
function groupLengths({ lengths, groupSize, numGroups }: TokenStore): Int32Array {
  if (groupSize === 1) return lengths
  return Int32Array.from({ length: numGroups }, (_, group) => {
    let sum = 0
    for (let i = 0; i < groupSize; i++) sum += lengths[group * groupSize + i]!
    return sum
  })
}

export class Loader {
  readonly totalSteps: number
  /** Tokens of the largest micro-batch that the options allow. */
  readonly maxTokens: number
  readonly fingerprint: string
  readonly #options: LoaderOptions
  readonly #unitsPerStep: number
  /** Tokens of each row of the store. */
  readonly #lengths: Int32Array
  readonly #microBatchSize: number
  #epoch = 0
  #position = 0
  #step = 0
  #units: { epoch: number; list: number[][] } | undefined
  readonly #unitCounts: number[] = []

  constructor(options: LoaderOptions) {
    const {
      store,
      microBatchSize = 1,
      gradientAccumulationSteps = 1,
      epochs = 1,
      maxSteps,
      maxLength,
      curriculum,
    } = options
    const positive: [string, number | undefined][] = [
      ['microBatchSize', microBatchSize],
      ['gradientAccumulationSteps', gradientAccumulationSteps],
      ['epochs', epochs],
      ['maxSteps', maxSteps],
    ]
    for (const [name, value] of positive) {
      if (value !== undefined && !(value > 0 && (name === 'epochs' || Number.isInteger(value)))) {
        throw new Error(`${name} must be a positive ${name === 'epochs' ? 'number' : 'integer'}, not ${value}`)
      }
    }
    if (curriculum && !(curriculum.startLength >= 2 && curriculum.fraction > 0 && curriculum.fraction <= 1)) {
      throw new Error('curriculum needs a startLength of at least 2 and a fraction above 0 and up to 1')
    }
    let longestDocument = 0
    for (const length of store.lengths) longestDocument = Math.max(longestDocument, length)
    if (longestDocument > maxLength) {
      throw new Error(
        `the longest document has ${longestDocument} tokens and maxLength is ${maxLength}; prepare it again`,
      )
    }
    this.#lengths = groupLengths(store)
    let longest = 0
    for (const length of this.#lengths) longest = Math.max(longest, length)
    this.#options = options
    this.#microBatchSize = microBatchSize
    this.#unitsPerStep = microBatchSize * gradientAccumulationSteps
    this.maxTokens = microBatchSize * (options.packing ? maxLength * store.groupSize : longest)
    this.fingerprint = createHash('sha256')
      .update(
        JSON.stringify([
          basename(store.path), // the key of the token file
          options.seed,
          maxLength,
          options.packing ?? false,
          microBatchSize,
          gradientAccumulationSteps,
          options.shuffle ?? true,
          options.dropLast ?? false,
          curriculum ?? null,
        ]),
      )
      .update(store.lengths)
      .digest('hex')
    this.totalSteps = this.#countSteps(epochs, maxSteps)
    if (this.totalSteps === 0) {
      throw new Error('there is not one full optimizer step in the data; lower the batch size or switch dropLast off')
    }
  }

  #stepsOf(epoch: number): number {
    const units = this.#unitCounts[epoch] ?? this.#unitsOf(epoch).length
    this.#unitCounts[epoch] = units
    return this.#options.dropLast ? Math.floor(units / this.#unitsPerStep) : Math.ceil(units / this.#unitsPerStep)
  }

  #countSteps(epochs: number, maxSteps: number | undefined): number {
    let steps = 0
    for (let epoch = 0; epoch < epochs; epoch++) {
      if (maxSteps !== undefined && steps >= maxSteps) return maxSteps
      const share = Math.min(1, epochs - epoch)
      steps += share === 1 ? this.#stepsOf(epoch) : Math.round(share * this.#stepsOf(epoch))
    }
    return maxSteps === undefined ? steps : this.#options.epochs === undefined ? maxSteps : Math.min(steps, maxSteps)
  }

  /** Packs or single documents of an epoch, in order. */
  #unitsOf(epoch: number): number[][] {
    if (this.#units?.epoch === epoch) return this.#units.list
    const { store, seed, shuffle = true, curriculum } = this.#options
    const order = shuffle
      ? permutation(store.numGroups, seed, 'loader/documents', epoch)
      : Uint32Array.from({ length: store.numGroups }, (_, i) => i)
    const list =
      curriculum && epoch === 0
        ? this.#byPhases(order, curriculum)
        : this.#packed(order, this.#options.maxLength * store.groupSize, epoch, 0)
    this.#units = { epoch, list }
    return list
  }

  #packed(order: Uint32Array, capacity: number, epoch: number, phase: number): number[][] {
    const { seed, packing, shuffle = true } = this.#options
    if (!packing) return Array.from(order, (document) => [document])
    const packs: number[][] = []
    for (let start = 0; start < order.length; start += packingWindow) {
      packs.push(...packBestFit(order.subarray(start, start + packingWindow), this.#lengths, capacity))
    }
    // Best fit leaves long documents first and the emptiest pack last.
    if (shuffle) new CounterRandom(seed, `loader/packs/${phase}`, epoch).shuffle(packs)
    return packs
  }

  /** Phases of growing length, each with its share of the documents that are short enough; then all the rest. */
  #byPhases(order: Uint32Array, { startLength, fraction }: LengthCurriculum): number[][] {
    const { groupSize } = this.#options.store
    const maxLength = this.#options.maxLength * groupSize
    const units: number[][] = []
    let rest = order
    const share = Math.ceil((order.length * fraction) / curriculumPhases)
    for (let phase = 0; phase < curriculumPhases; phase++) {
      const limit = Math.min(
        maxLength,
        Math.round(startLength * groupSize + ((maxLength - startLength * groupSize) * phase) / curriculumPhases),
      )
      const taken: number[] = []
      const left: number[] = []
      for (const document of rest)
        (taken.length < share && this.#lengths[document]! <= limit ? taken : left).push(document)
      units.push(...this.#packed(Uint32Array.from(taken), limit, 0, phase))
      rest = Uint32Array.from(left)
    }
    return [...units, ...this.#packed(rest, maxLength, 0, curriculumPhases)]
  }

  /** The next optimizer step; undefined after the last. */
  async next(): Promise<LoadedStep | undefined> {
    if (this.#step >= this.totalSteps) return undefined
    while (this.#position >= this.#stepsOf(this.#epoch)) {
      this.#epoch++
      this.#position = 0
    }
    const units = this.#unitsOf(this.#epoch)
    const start = this.#position * this.#unitsPerStep
    const chosen = units.slice(start, start + this.#unitsPerStep)
    const microBatches: LoadedBatch[] = []
    for (let i = 0; i < chosen.length; i += this.#microBatchSize) {
      microBatches.push(collate(this.#options.store, chosen.slice(i, i + this.#microBatchSize).flat()))
    }
    this.#position++
    this.#step++
    return {
      step: this.#step,
      epoch: this.#epoch + this.#position / this.#stepsOf(this.#epoch),
      microBatches,
      targetTokens: microBatches.reduce((sum, { labels }) => sum + countTargets(labels), 0),
      inputTokens: microBatches.reduce((sum, { inputIds }) => sum + inputIds.length, 0),
    }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<LoadedStep> {
    for (let step = await this.next(); step; step = await this.next()) yield step
  }

  /** The position, as of the last step given out; plain JSON. */
  getState(): LoaderState {
    return { version: 1, epoch: this.#epoch, position: this.#position, step: this.#step, fingerprint: this.fingerprint }
  }

  /** Continues from a state of a loader over the same documents with the same options. */
  setState(state: unknown): void {
    const { version, epoch, position, step, fingerprint } = (state ?? {}) as Partial<LoaderState>
    if (version !== 1 || ![epoch, position, step].every((value) => Number.isSafeInteger(value) && value! >= 0)) {
      throw new Error('the loader state is damaged; resume from another checkpoint')
    }
    if (fingerprint !== this.fingerprint) {
      throw new Error(
        'the data or the options that decide its order (seed, maxLength, packing, microBatchSize, gradientAccumulationSteps, ' +
          'shuffle, dropLast, curriculum) are not those of the checkpoint; resume with the same ones or start a new run',
      )
    }
    this.#epoch = epoch!
    this.#position = position!
    this.#step = step!
  }
}
