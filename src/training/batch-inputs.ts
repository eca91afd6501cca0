// The tokens of a micro-batch in the memory of a compiled program.
import { batchLeaves } from '../models/context.js'
import { headLeaves } from '../models/graphs.js'
import type { BoundProgram } from '../runtime/bind.js'
import { type MicroBatch, targetsOf } from './program.js'

/** Sizes of the symbolic dimensions: tokens N, labelled rows M, documents + 1 S, and an objective's own. */
export type Dims = Readonly<Record<string, number>> & { readonly N: number; readonly M: number; readonly S: number }

/** The sizes of a micro-batch. */
export function sizesOf(batch: MicroBatch): Dims {
  return { ...batch.dims, N: batch.inputIds.length, M: targetsOf(batch).rows.length, S: batch.cuSeqlens.length }
}

/**
 * Copies ids, positions, document bounds, labelled rows and labels.
 * @param most what the program was compiled for
 * @returns the sizes of this micro-batch
 * @throws where it is larger than the program, or has nothing to learn from
 */
export function fillBatch(program: BoundProgram, batch: MicroBatch, most: Dims): Dims {
  const { rows, labels } = targetsOf(batch)
  const dims = sizesOf({ ...batch, targets: { rows, labels } })
  if (dims.N > most.N) throw new Error(`a micro-batch of ${dims.N} tokens; the step was compiled for ${most.N}`)
  if (dims.M > most.M) throw new Error(`${dims.M} targets in a micro-batch; compiled for ${most.M}`)
  if (dims.S > most.S) throw new Error(`${dims.S - 1} documents in a micro-batch; compiled for ${most.S - 1}`)
  if (dims.M === 0) throw new Error('a micro-batch without a target token; nothing can be learned from it')
  program.i32(batchLeaves.inputIds).set(batch.inputIds)
  program.i32(batchLeaves.positionIds).set(batch.positionIds)
  program.i32(batchLeaves.cuSeqlens).set(batch.cuSeqlens)
  if (program.has(headLeaves.labels)) program.i32(headLeaves.labels).set(labels)
  program.i32(headLeaves.lossRows).set(rows)
  return dims
}
