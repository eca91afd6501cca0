// Evaluates a base, with or without an adapter beside it, on the held-out rows of a recipe, without a training step: what
// `espalier eval` comes from. Perplexity and choices by log-probabilities, everything else over generated answers.
import type { HeldOutQuestion, Metric } from '../data/index.js'
import { Engine } from '../inference/engine.js'
import { LanguageModel } from '../inference/language-model.js'
import { InferenceSession } from '../inference/session.js'
import { openBase } from '../models/base-directory.js'
import { prepareBase } from '../models/fetch.js'
import type { Precision } from '../models/graphs.js'
import { loadBase } from '../models/loaded-base.js'
import { openRuntime } from '../runtime/index.js'
import { openAdapter } from './adapter.js'
import { bootstrap, bootstrapDifference, type Estimate, type RowShare } from './bootstrap.js'
import type { RunContext } from './context.js'
import { evaluateChoices, evaluateLoss } from './evaluate.js'
import { type PreparedData, prepareData, type TrainableRecipe } from './prepare.js'
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
      return { values: await session.logps(batch, targets.rows, targets.labels) }
    },
  }
}

export interface EvaluateAdapterOptions {
  /** A PEFT folder; absent: the base alone. */
  adapter?: string
  /** Measure the base beside the adapter; default true. */
  compare?: boolean
  maxRows?: number
  /** Which metrics; default all that the data has. */
  metrics?: readonly string[]
  /** Tokens of a generated answer. Default: 16 more than the longest answer of the data, at most 256. */
  maxNewTokens?: number
  precision?: Precision
  signal?: AbortSignal
  emit?: RunContext['emit']
}

export interface MetricEstimates {
  rows: number
  base?: Estimate
  adapter?: Estimate
  /** Adapter minus base, drawn over the same rows. */
  difference?: Estimate
}

export interface AdapterEvaluation {
  base: string
  adapter: string | undefined
  rows: number
  tokens: number
  /** Nats per target token, of the adapter where there is one; of the right answers where rows have choices. */
  loss: number
  /** Share of rows whose right answer is the likeliest, where rows have choices. */
  accuracy: number | undefined
  /** By name: perplexity, accuracy (choices), exactMatch and the data's own, with 95 % intervals. */
  metrics: Record<string, MetricEstimates>
}

/** Packs are of this many tokens unless a row is longer: long enough for full speed. */
const packTokens = 2048
const mostNewTokens = 256
const spareNewTokens = 16

const transforms: Record<string, (quotient: number) => number> = { perplexity: Math.exp }

/** The answer is the row's own, but for blanks around it. */
const exactMatch: Metric = ({ expected, answer }) => answer.trim() === expected.trim()

/** Shares of rows by metric, of base or adapter. */
type Measured = Map<string, RowShare[]>

/** What log-probabilities give. */
async function measureLikelihoods(
  session: InferenceSession,
  data: PreparedData,
  passed: Parameters<typeof evaluateLoss>[2],
): Promise<Measured> {
  const scorer = scorerOf(session)
  if (data.choices.length === 0) {
    const { perDocument } = await evaluateLoss(scorer, data.documents, passed)
    return new Map([['perplexity', perDocument.map(({ nllSum, tokens }) => ({ sum: nllSum, weight: tokens }))]])
  }
  const { logps, isRight } = await evaluateChoices(scorer, data.choices, passed)
  const shares = data.choices.map(({ answer, choices }, i) => ({
    sum: -logps[i]![answer]!,
    weight: choices[answer]!.length,
  }))
  return new Map([
    ['perplexity', shares],
    ['accuracy', isRight.map((right) => ({ sum: Number(right), weight: 1 }))],
  ])
}

/** What generated answers give: all rows in one batch, every metric over the same answers. */
async function measureAnswers(
  model: LanguageModel,
  questions: readonly HeldOutQuestion[],
  metrics: ReadonlyMap<string, Metric>,
  options: { adapter: string | null; maxNewTokens: number; signal?: AbortSignal; onProgress(done: number): void },
): Promise<Measured> {
  const { adapter, maxNewTokens, signal, onProgress } = options
  const prompts = questions.map(({ prompt }) => ({ ids: prompt }))
  const measured: Measured = new Map([...metrics.keys()].map((name) => [name, new Array<RowShare>(questions.length)]))
  let done = 0
  for await (const result of model.generateMany(prompts, { adapter, maxNewTokens, ...(signal ? { signal } : {}) })) {
    const { row, expected, place } = questions[result.index]!
    const answered = { row, expected, answer: result.text, finishReason: result.finishReason }
    for (const [name, metric] of metrics) {
      const value = Number(await metric(answered))
      if (!Number.isFinite(value)) throw new Error(`metric ${name} gives ${value} for ${place}; it must give a number`)
      measured.get(name)![result.index] = { sum: value, weight: 1 }
    }
    onProgress(++done)
  }
  return measured
}

/** The metrics over answers that are asked for, and a check that every name is known. */
function chooseMetrics(recipe: TrainableRecipe, data: PreparedData, hasAnswers: boolean, asked?: readonly string[]) {
  const own = { ...recipe.data.dataset?.metrics, ...recipe.data.metrics }
  const generated = new Map<string, Metric>(hasAnswers ? [['exactMatch', exactMatch], ...Object.entries(own)] : [])
  const known = ['perplexity', ...(data.choices.length > 0 ? ['accuracy'] : []), ...generated.keys()]
  const unknown = asked?.find((name) => !known.includes(name))
  if (unknown !== undefined) throw new Error(`no metric ${unknown} on this data; there are: ${known.join(', ')}`)
  if (!hasAnswers && Object.keys(own).length > 0)
    throw new Error('the metrics of this recipe are over answers, and its rows have none: give rows with answers')
  const isAsked = (name: string) => asked === undefined || asked.includes(name)
  return { isAsked, generated: new Map([...generated].filter(([name]) => isAsked(name))) }
}

export async function evaluateAdapter(
  recipe: TrainableRecipe,
  options: EvaluateAdapterOptions = {},
): Promise<AdapterEvaluation> {
  const { signal, emit = () => {}, compare = true } = options
  const { maxLength = 1024, seed = 0 } = recipe.stage as { maxLength?: number; seed?: number }
  const { source, format } = typeof recipe.base === 'string' ? { source: recipe.base, format: undefined } : recipe.base
  const found = await prepareBase(source, { format, signal })
  const runtime = await openRuntime(recipe.runtime ?? {})
  try {
    const opened = openBase(found.dir)
    const preparing = { maxLength, seed, maxEvaluationRows: options.maxRows, signal }
    const data = await prepareData(opened, recipe.data, preparing, emit)
    data.store.close()
    if (data.documents.length + data.choices.length === 0) {
      throw new Error('the data of this recipe has no held-out rows to evaluate on: give it a held-out split')
    }
    const questions = await data.questions(options.maxRows)
    const { isAsked, generated } = chooseMetrics(recipe, data, questions.length > 0, options.metrics)

    const base = await loadBase(runtime, opened)
    const sides = (['base', 'adapter'] as const).filter((side) =>
      side === 'base' ? compare || options.adapter === undefined : options.adapter !== undefined,
    )
    const measured: Partial<Record<'base' | 'adapter', Measured>> = {}
    const lengths = [...data.documents.map(({ ids }) => ids.length), ...data.choices.map(({ prompt }) => prompt.length)]
    const maxTokens = Math.max(packTokens, ...lengths.map((length) => length + maxLength))
    for (const side of sides) {
      const adapter =
        side === 'base'
          ? undefined
          : openAdapter(opened, { lora: {}, startAdapter: options.adapter, seed, baseName: found.name })
      const params = new Float32Array(adapter?.layout.length ?? 0)
      adapter?.fill(params)
      const session = await InferenceSession.open({
        base,
        adapter: adapter ? { shape: { ...adapter.layout.adapter, dropout: 0 }, params } : null,
        precision: options.precision,
        maxTokens,
      })
      const task = `evaluating the ${side}`
      measured[side] = await measureLikelihoods(session, data, {
        maxTokens: packTokens,
        signal,
        onProgress: (done, total) => emit({ type: 'progress', task, done, total, unit: 'rows' }),
      })
      session.close()
    }

    if (generated.size > 0) {
      const engine = await Engine.open({ base, ...(options.precision ? { precision: options.precision } : {}) })
      const { tokenizer, template } = data
      const model = new LanguageModel({ name: found.name, dir: found.dir, base, tokenizer, template, engine })
      const longest = Math.max(...questions.map(({ answerTokens }) => answerTokens))
      const maxNewTokens = options.maxNewTokens ?? Math.min(mostNewTokens, longest + spareNewTokens)
      const fitting = questions.filter(({ prompt }) => prompt.length + maxNewTokens <= engine.maxSequenceTokens)
      if (fitting.length < questions.length)
        emit({
          type: 'warning',
          message: `${questions.length - fitting.length} of ${questions.length} held-out rows leave no room for an answer and are left out of ${[...generated.keys()].join(', ')}`,
        })
      try {
        if (options.adapter !== undefined) await model.loadAdapter('evaluated', options.adapter)
        for (const side of sides) {
          const task = `answers of the ${side}`
          const answers = await measureAnswers(model, fitting, generated, {
            adapter: side === 'base' ? null : 'evaluated',
            maxNewTokens,
            ...(signal ? { signal } : {}),
            onProgress: (done) => emit({ type: 'progress', task, done, total: fitting.length, unit: 'rows' }),
          })
          for (const [name, shares] of answers) measured[side]!.set(name, shares)
        }
      } finally {
        await model.close()
      }
    }
    base.close()

    const metrics: Record<string, MetricEstimates> = {}
    const last = measured.adapter ?? measured.base!
    for (const [name, shares] of last) {
      if (!isAsked(name) || shares.length === 0) continue
      const how = { seed, ...(transforms[name] ? { transform: transforms[name] } : {}) }
      const [ofBase, ofAdapter] = [measured.base?.get(name), measured.adapter?.get(name)]
      metrics[name] = {
        rows: shares.length,
        ...(ofBase ? { base: bootstrap(ofBase, how) } : {}),
        ...(ofAdapter ? { adapter: bootstrap(ofAdapter, how) } : {}),
        ...(ofBase && ofAdapter ? { difference: bootstrapDifference(ofBase, ofAdapter, how) } : {}),
      }
    }
    const sumOf = (shares: readonly RowShare[], key: keyof RowShare) =>
      shares.reduce((sum, share) => sum + share[key], 0)
    const nll = last.get('perplexity')!
    const right = last.get('accuracy')
    return {
      base: found.name,
      adapter: options.adapter,
      rows: lengths.length,
      tokens: sumOf(nll, 'weight'),
      loss: sumOf(nll, 'sum') / sumOf(nll, 'weight'),
      accuracy: right && sumOf(right, 'sum') / right.length,
      metrics,
    }
  } finally {
    await runtime.close()
  }
}
