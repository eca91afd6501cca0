// Supervised fine-tuning (stop 8): cross-entropy over the target tokens of documents, through the offline loop.
import type { PreparedRun, RunContext } from '../context.js'
import { evaluateChoices, evaluateLoss } from '../evaluate.js'
import { tokenMean } from '../objectives/token-mean.js'
import { type HeldOutMeasure, type OfflineStage, planOffline, preparation, runOffline } from './offline.js'
import { type SftOptions, sftSchema } from './sft-schema.js'
import { defineStage } from './stage.js'

/** Held-out loss and, where rows have choices, accuracy; undefined without held-out rows. */
function heldOutOf(context: RunContext, prepared: PreparedRun): HeldOutMeasure | undefined {
  const { documents, choices } = prepared.heldOut
  const rows = documents.length + choices.length
  if (rows === 0) return undefined
  return {
    rows,
    async run(onProgress) {
      const how = (from: number) => ({
        maxTokens: prepared.maxTokens,
        signal: context.signal,
        onProgress: (done: number) => onProgress(from + done),
      })
      let nll = 0
      let tokens = 0
      const metrics: Record<string, number> = {}
      if (documents.length > 0) {
        const held = await evaluateLoss(prepared.program, documents, how(0))
        nll += held.nllSum
        tokens += held.tokens
      }
      if (choices.length > 0) {
        const chosen = await evaluateChoices(prepared.program, choices, how(documents.length))
        nll += chosen.loss * chosen.tokens
        tokens += chosen.tokens
        metrics['eval/accuracy'] = chosen.accuracy
        metrics['eval/rows'] = chosen.rows
      }
      const loss = tokens > 0 ? nll / tokens : Number.NaN
      return { loss, metrics: { ...metrics, 'eval/perplexity': Math.exp(loss) } }
    },
  }
}

async function open(context: RunContext, options: SftOptions): Promise<OfflineStage> {
  const prepared = await context.prepare({
    ...preparation(context, options),
    rows: 'documents',
    packing: options.packing,
    objective: sft.objective(options),
  })
  return { prepared, heldOut: heldOutOf(context, prepared), samples: options.samples }
}

export const sft = defineStage({
  summary: 'supervised fine-tuning on documents, prompts with completions, or conversations',
  schema: sftSchema,
  objective: ({ loss }) => tokenMean(loss),
  run: (context, options) => runOffline(context, options, () => open(context, options)),
  plan: (context, options) => planOffline(options, () => open(context, options)),
})
