// Log-probabilities of the training data under a frozen reference, computed once and kept in an Arrow file: they do not change from
// epoch to epoch, nor from run to run over the same data. A row's values do not depend on what else is in its batch, so a run with
// the cache takes the same steps, bit for bit, as one without.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { readFloatLists, writeFloatLists } from '../data/index.js'
import { cacheFolder } from '../models/fetch.js'
import type { PreparedRun, RunContext } from './context.js'
import { type MicroBatch, targetsOf } from './program.js'

export interface ReferenceLogpsOptions {
  /** Rows of a micro-batch. */
  readonly microBatchSize: number
  readonly precision: string
  /** The labelled rows of a micro-batch, where they are not those of its labels; `name` tells one choice from another. */
  readonly targets?: { readonly name: string; of(batch: MicroBatch): MicroBatch } | undefined
}

/** Labelled rows of each document of a micro-batch. */
function rowsPerDocument(batch: MicroBatch): number[] {
  const { rows } = targetsOf(batch)
  const counts: number[] = []
  let at = 0
  for (let d = 1; d < batch.cuSeqlens.length; d++) {
    const begin = at
    while (at < rows.length && rows[at]! < batch.cuSeqlens[d]!) at++
    counts.push(at - begin)
  }
  return counts
}

/** Where the values of a run lie: the file's name says everything that they depend on. */
function pathOf({ hashes, isa }: PreparedRun, { precision, targets }: ReferenceLogpsOptions): string {
  const parts = [1, hashes.base, hashes.train, hashes.reference ?? 'base', precision, isa, targets?.name ?? 'labels']
  return join(cacheFolder(), 'reference', `${createHash('sha256').update(JSON.stringify(parts)).digest('hex')}.arrow`)
}

/** Computes all values, a list for each document in order. */
async function compute(
  context: RunContext,
  prepared: PreparedRun,
  options: ReferenceLogpsOptions,
): Promise<Float32Array[]> {
  const lists: Float32Array[] = []
  let total = 0
  for (const { cuSeqlens } of prepared.trainingRows(options.microBatchSize)) total += cuSeqlens.length - 1
  for (const batch of prepared.trainingRows(options.microBatchSize)) {
    context.signal?.throwIfAborted()
    const labelled = options.targets?.of(batch) ?? batch
    const { values } = await prepared.program.score(labelled, { model: 'reference' })
    let at = 0
    for (const count of rowsPerDocument(labelled)) {
      lists.push(values.slice(at, at + count))
      at += count
    }
    context.emit({
      type: 'progress',
      task: 'reference log-probabilities',
      done: lists.length,
      total,
      unit: 'documents',
    })
  }
  return lists
}

/** @returns undefined where there is no file that can be used */
async function readLists(path: string, context: RunContext): Promise<Float32Array[] | undefined> {
  if (!existsSync(path)) return undefined
  try {
    return await readFloatLists(path)
  } catch (error) {
    const message = `${path} is damaged (${(error as Error).message}); reference log-probabilities are computed anew`
    context.emit({ type: 'warning', message })
    return undefined
  }
}

/** Reads the values, or computes and keeps them. */
async function readOrCompute(path: string, context: RunContext, prepared: PreparedRun, options: ReferenceLogpsOptions) {
  const known = await readLists(path, context)
  if (known) return known
  const lists = await compute(context, prepared, options)
  const aside = `${path}-${process.pid}`
  mkdirSync(dirname(path), { recursive: true })
  rmSync(aside, { force: true })
  try {
    writeFloatLists(aside, lists)
    renameSync(aside, path)
  } finally {
    rmSync(aside, { force: true })
  }
  return lists
}

/**
 * Of a micro-batch of training data, [M]: read from the cache, which is filled first where it must be.
 * @throws an abort while it is being filled rejects with its reason, leaves nothing behind, and closes what was prepared
 */
export async function cachedReferenceLogps(
  context: RunContext,
  prepared: PreparedRun,
  options: ReferenceLogpsOptions,
): Promise<(batch: MicroBatch) => Float32Array> {
  const path = pathOf(prepared, options)
  const lists = await readOrCompute(path, context, prepared, options).catch(async (error) => {
    await prepared.close()
    throw error
  })
  return (batch) => {
    const counts = rowsPerDocument(batch)
    const values = new Float32Array(counts.reduce((a, b) => a + b, 0))
    let at = 0
    for (const [d, document] of (batch.documents ?? []).entries()) {
      const list = lists[document]
      if (!list || list.length !== counts[d]) {
        throw new Error(`${path}: does not fit document ${document} of the data; delete it and it is made again`)
      }
      values.set(list, at)
      at += list.length
    }
    return values
  }
}
