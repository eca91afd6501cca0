// Held-out rows of preference data, a batch at a time through the objective itself: nothing is measured otherwise than trained.
import type { HeldOutGroup, PreparedRun } from '../context.js'
import { packDocuments } from '../evaluate.js'
import type { AccumulateResult, MicroBatch } from '../program.js'

export interface GroupEvaluation {
  /** Mean over the rows. */
  readonly loss: number
  readonly batches: readonly MicroBatch[]
  readonly results: readonly AccumulateResult[]
}

/** Micro-batches of at most `microBatchSize` rows and the tokens that the program holds. */
export function groupBatches(prepared: PreparedRun, microBatchSize: number): MicroBatch[] {
  const batches: MicroBatch[] = []
  const tokensOf = (group: HeldOutGroup) => group.documents.reduce((n, { ids }) => n + ids.length, 0)
  let members: { group: HeldOutGroup; index: number }[] = []
  const flush = () => {
    if (members.length === 0) return
    const names = Object.keys(members[0]!.group.numbers)
    batches.push({
      ...packDocuments(members.flatMap(({ group }) => group.documents)),
      groups: members.map(({ index }) => index),
      numbers: Object.fromEntries(names.map((name) => [name, members.map(({ group }) => group.numbers[name]!)])),
    })
    members = []
  }
  let tokens = 0
  for (const [index, group] of prepared.heldOut.groups.entries()) {
    const size = tokensOf(group)
    if (members.length === microBatchSize || tokens + size > prepared.maxTokens) {
      flush()
      tokens = 0
    }
    members.push({ group, index })
    tokens += size
  }
  flush()
  return batches
}

/** @param fill what the stage does with the micro-batches of a step */
export async function evaluateGroups(
  prepared: PreparedRun,
  batches: readonly MicroBatch[],
  fill: (batches: MicroBatch[]) => Promise<MicroBatch[]>,
  options: { signal: AbortSignal | undefined; onProgress(done: number): void },
): Promise<GroupEvaluation> {
  const rows = batches.reduce((sum, { groups }) => sum + groups!.length, 0)
  const filled = await fill([...batches])
  const results: AccumulateResult[] = []
  let loss = 0
  let done = 0
  for (const batch of filled) {
    options.signal?.throwIfAborted()
    const result = await prepared.program.evaluate(batch, { lossScale: 1 / rows })
    results.push(result)
    loss += result.lossSum
    done += batch.groups!.length
    options.onProgress(done)
  }
  return { loss, batches: filled, results }
}

/** Rows of the micro-batches: what a mean over the step divides by. */
export const countGroups = (batches: readonly MicroBatch[]): number =>
  batches.reduce((sum, { groups }) => sum + (groups?.length ?? 0), 0)

/** One output of all results, end to end. */
export const outputOf = (results: readonly AccumulateResult[], name: string): number[] =>
  results.flatMap(({ outputs }) => Array.from(outputs[name] ?? []))
