// Evaluates a base, with or without an adapter, on the held-out rows of a recipe, without a training step: what
// `espalier eval` and the demo's before and after come from.
import { InferenceSession } from '../inference/session.js'
import { openBase } from '../models/base-directory.js'
import { prepareBase } from '../models/fetch.js'
import type { Precision } from '../models/graphs.js'
import { loadBase } from '../models/loaded-base.js'
import { openRuntime } from '../runtime/index.js'
import { openAdapter } from './adapter.js'
import type { RunContext } from './context.js'
import { evaluateChoices, evaluateLoss } from './evaluate.js'
import { prepareData, type TrainableRecipe } from './prepare.js'
import type { MicroBatch, TrainProgram } from './program.js'

/** A session in the form that evaluation takes. */
export function scorerOf(session: InferenceSession): Pick<TrainProgram, 'score'> {
  return {
    async score(batch: MicroBatch) {
      const rows: number[] = []
      if (!batch.targets) batch.labels.forEach((label, i) => void (label >= 0 && rows.push(i)))
      const targets = batch.targets ?? {
        rows: Int32Array.from(rows),
        labels: Int32Array.from(rows, (row) => batch.labels[row]!),
      }
      const logps = await session.logps(batch, targets.rows, targets.labels)
      return { logps, nllSum: -logps.reduce((a, b) => a + b, 0), tokens: logps.length }
    },
  }
}

export interface EvaluateAdapterOptions {
  /** A PEFT folder; absent: the base alone. */
  adapter?: string
  maxRows?: number
  precision?: Precision
  signal?: AbortSignal
  emit?: RunContext['emit']
}

export interface AdapterEvaluation {
  base: string
  adapter: string | undefined
  rows: number
  tokens: number
  /** Nats per target token; of the right answers where rows have choices. */
  loss: number
  /** Share of rows whose right answer is the likeliest, where rows have choices. */
  accuracy: number | undefined
}

/** Packs are of this many tokens unless a row is longer: long enough for full speed. */
const packTokens = 2048

export async function evaluateAdapter(
  recipe: TrainableRecipe,
  options: EvaluateAdapterOptions = {},
): Promise<AdapterEvaluation> {
  const emit = options.emit ?? (() => {})
  const { maxLength = 1024, seed = 0 } = recipe.stage as { maxLength?: number; seed?: number }
  const { source, format } = typeof recipe.base === 'string' ? { source: recipe.base, format: undefined } : recipe.base
  const found = await prepareBase(source, { format, signal: options.signal })
  const runtime = await openRuntime(recipe.runtime ?? {})
  try {
    const opened = openBase(found.dir)
    const preparing = { maxLength, seed, maxEvaluationRows: options.maxRows, signal: options.signal }
    const data = await prepareData(opened, recipe.data, preparing, emit)
    data.store.close()
    if (data.documents.length + data.choices.length === 0) {
      throw new Error('the data of this recipe has no held-out rows to evaluate on: give it a held-out split')
    }
    const base = await loadBase(runtime, opened)
    const adapter =
      options.adapter === undefined
        ? undefined
        : openAdapter(opened, { lora: {}, startAdapter: options.adapter, seed, baseName: found.name })
    const params = new Float32Array(adapter?.layout.length ?? 0)
    adapter?.fill(params)
    const lengths = [...data.documents.map(({ ids }) => ids.length), ...data.choices.map(({ prompt }) => prompt.length)]
    const maxTokens = Math.max(packTokens, ...lengths.map((length) => length + maxLength))
    const session = await InferenceSession.open({
      base,
      adapter: adapter ? { shape: { ...adapter.layout.adapter, dropout: 0 }, params } : null,
      precision: options.precision,
      maxTokens,
    })
    const scorer = scorerOf(session)
    const task = adapter ? 'evaluating the adapter' : 'evaluating the base'
    const passed = {
      maxTokens: packTokens,
      signal: options.signal,
      onProgress: (done: number, total: number) => emit({ type: 'progress', task, done, total, unit: 'rows' }),
    }
    const held = await evaluateLoss(scorer, data.documents, passed)
    const chosen = data.choices.length > 0 ? await evaluateChoices(scorer, data.choices, passed) : undefined
    const tokens = held.tokens + (chosen?.tokens ?? 0)
    session.close()
    base.close()
    return {
      base: found.name,
      adapter: options.adapter,
      rows: lengths.length,
      tokens,
      loss: (held.nllSum + (chosen ? chosen.loss * chosen.tokens : 0)) / tokens,
      accuracy: chosen?.accuracy,
    }
  } finally {
    await runtime.close()
  }
}
