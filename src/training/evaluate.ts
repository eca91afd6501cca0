// Evaluation on held-out rows (stop 12): token NLL of documents, and the share of rows whose right answer has the
// highest log-probability. Forward only, in packs of bounded size, so that memory is never above that of a step.
import type { MicroBatch, ScoredModel, TrainProgram } from './program.js'

/** One document: ids and aligned labels (`labels[i]` is the target at position i, −100 none). */
export interface Document {
  ids: ArrayLike<number>
  labels: ArrayLike<number>
  row?: number
}

/** A question with several answers, tokenized; the model is asked which it finds most likely. */
export interface ChoiceRow {
  prompt: ArrayLike<number>
  choices: ArrayLike<number>[]
  /** Index of the right one. */
  answer: number
  row?: number
}

/** Lays documents end to end → one micro-batch. */
export function packDocuments(documents: readonly Document[]): MicroBatch {
  const tokens = documents.reduce((sum, { ids }) => sum + ids.length, 0)
  const batch = {
    inputIds: new Int32Array(tokens),
    labels: new Int32Array(tokens),
    positionIds: new Int32Array(tokens),
    cuSeqlens: new Int32Array(documents.length + 1),
    documents: documents.map(({ row }, index) => row ?? index),
  }
  let at = 0
  for (const [d, { ids, labels }] of documents.entries()) {
    batch.inputIds.set(ids, at)
    batch.labels.set(labels, at)
    for (let i = 0; i < ids.length; i++) batch.positionIds[at + i] = i
    at += ids.length
    batch.cuSeqlens[d + 1] = at
  }
  return batch
}

/** Groups items, in order, so that no group holds more than `maxTokens` (a longer item stands alone) or `maxItems`. */
export function* groupByTokens<T>(
  items: Iterable<T>,
  lengthOf: (item: T) => number,
  maxTokens: number,
  maxItems = Number.POSITIVE_INFINITY,
): Generator<T[]> {
  let group: T[] = []
  let tokens = 0
  for (const item of items) {
    const length = lengthOf(item)
    if (group.length > 0 && (tokens + length > maxTokens || group.length === maxItems)) {
      yield group
      group = []
      tokens = 0
    }
    group.push(item)
    tokens += length
  }
  if (group.length > 0) yield group
}

export interface EvaluateOptions {
  /** Tokens in one forward run; at most those of a training micro-batch, for which memory is planned. */
  maxTokens: number
  /** Default: the adapter in training. */
  model?: ScoredModel
  signal?: AbortSignal
  onProgress?(done: number, total: number): void
}

export interface HeldOutLoss {
  nllSum: number
  tokens: number
  /** `nllSum / tokens`; NaN without targets. */
  loss: number
  /** Of every document. */
  perDocument: { nllSum: number; tokens: number }[]
}

/** Mean NLL over the targets of all documents: one division, whatever the packs. */
export async function evaluateLoss(
  program: Pick<TrainProgram, 'score'>,
  documents: readonly Document[],
  options: EvaluateOptions,
): Promise<HeldOutLoss> {
  let nllSum = 0
  let tokens = 0
  let done = 0
  const perDocument: HeldOutLoss['perDocument'] = []
  for (const group of groupByTokens(documents, ({ ids }) => ids.length, options.maxTokens)) {
    options.signal?.throwIfAborted()
    const { values } = await program.score(packDocuments(group), { model: options.model })
    let at = 0
    for (const { labels } of group) {
      const own = { nllSum: 0, tokens: 0 }
      for (let i = 0; i < labels.length; i++) {
        if (labels[i]! < 0) continue
        own.nllSum -= values[at++]!
        own.tokens++
      }
      nllSum += own.nllSum
      tokens += own.tokens
      perDocument.push(own)
    }
    done += group.length
    options.onProgress?.(done, documents.length)
  }
  return { nllSum, tokens, loss: tokens > 0 ? nllSum / tokens : Number.NaN, perDocument }
}

interface ChoiceDocument {
  ids: number[]
  /** Position and token of every target, and the choice that it counts for. */
  targets: { position: number; token: number; choice: number }[]
  row: number
}

/**
 * Documents that score every choice of a row. A choice's tokens but the last have to be read, the last is only a
 * target: choices that differ in their last token alone (answers of one token above all) share a document.
 */
function choiceDocuments({ prompt, choices }: ChoiceRow, row: number): ChoiceDocument[] {
  const documents = new Map<string, ChoiceDocument>()
  for (const [choice, tokens] of choices.entries()) {
    const read = Array.from(tokens).slice(0, -1)
    const key = read.join(' ')
    const document = documents.get(key) ?? { ids: [...Array.from(prompt), ...read], targets: [], row }
    documents.set(key, document)
    for (let i = 0; i < tokens.length; i++) {
      document.targets.push({ position: prompt.length - 1 + i, token: tokens[i]!, choice })
    }
  }
  for (const { targets } of documents.values()) targets.sort((a, b) => a.position - b.position)
  return [...documents.values()]
}

export interface ChoiceResult {
  /** Share of rows whose right answer scored highest. */
  accuracy: number
  correct: number
  rows: number
  /** Summed log-probability of every choice, per row. */
  logps: number[][]
  /** Whether the right answer scored highest, per row. */
  isRight: boolean[]
  /** Mean NLL of the right answers, in nats per token. */
  loss: number
  tokens: number
}

/** Accuracy by comparing summed log-probabilities of the answers; a tie counts as wrong. */
export async function evaluateChoices(
  program: Pick<TrainProgram, 'score'>,
  rows: readonly ChoiceRow[],
  options: EvaluateOptions,
): Promise<ChoiceResult> {
  const logps = rows.map(({ choices }) => choices.map(() => 0))
  const documents = rows.flatMap((row, index) => {
    if (row.prompt.length === 0 || row.choices.some((choice) => choice.length === 0)) {
      throw new Error(`held-out row ${row.row ?? index}: an empty prompt or answer cannot be scored`)
    }
    return choiceDocuments(row, index)
  })
  let done = 0
  for (const group of groupByTokens(documents, ({ ids }) => ids.length, options.maxTokens)) {
    options.signal?.throwIfAborted()
    const batch = packDocuments(
      group.map(({ ids, row }) => ({ ids, labels: new Int32Array(ids.length).fill(-100), row })),
    )
    const flat = group.flatMap(({ targets }, d) => targets.map((target) => ({ ...target, d })))
    batch.targets = {
      rows: Int32Array.from(flat, ({ d, position }) => batch.cuSeqlens[d]! + position),
      labels: Int32Array.from(flat, ({ token }) => token),
    }
    const { values } = await program.score(batch, { model: options.model })
    for (const [m, { d, choice }] of flat.entries()) logps[group[d]!.row]![choice]! += values[m]!
    done += group.length
    options.onProgress?.(done, documents.length)
  }
  const isRight: boolean[] = []
  let nll = 0
  let tokens = 0
  for (const [index, { answer, choices }] of rows.entries()) {
    const scores = logps[index]!
    isRight.push(scores.every((score, choice) => choice === answer || score < scores[answer]!))
    nll -= scores[answer]!
    tokens += choices[answer]!.length
  }
  const correct = isRight.filter(Boolean).length
  return { accuracy: correct / rows.length, correct, rows: rows.length, logps, isRight, loss: nll / tokens, tokens }
}
