// The sampling fields of a request as options of the text layer, with OpenAI's defaults.
import { randomInt } from 'node:crypto'
import type { TextOptions } from '../language-model.js'
import { badRequest } from './errors.js'

export interface SamplingBody {
  readonly seed?: number | null | undefined
  readonly temperature?: number | null | undefined
  readonly top_p?: number | null | undefined
  readonly top_k?: number | null | undefined
  readonly min_p?: number | null | undefined
  readonly repetition_penalty?: number | null | undefined
  readonly frequency_penalty?: number | null | undefined
  readonly presence_penalty?: number | null | undefined
  readonly logit_bias?: Record<string, number> | null | undefined
  readonly stop?: string | string[] | null | undefined
}

const seedRange = 2 ** 32
/** 2^32 over the golden ratio: seeds of choices far from the seeds that people count up. */
const choiceStride = 0x9e3779b1

/** The seed of choice `index`; the first one's is the request's own. */
export function choiceSeed(seed: number, index: number): number {
  return (((seed % seedRange) + index * choiceStride) % seedRange) >>> 0
}

/** Without a seed, every request draws anew. */
export function requestSeed(body: SamplingBody): number {
  return body.seed ?? randomInt(seedRange)
}

function biasOf(bias: Record<string, number>, vocabSize: number): ReadonlyMap<number, number> {
  return new Map(
    Object.entries(bias).map(([key, value]) => {
      const id = Number(key)
      if (id >= vocabSize)
        throw badRequest(`logit_bias: token ${key} is not among the ${vocabSize} there are`, 'logit_bias')
      return [id, value]
    }),
  )
}

export function toTextOptions(body: SamplingBody, vocabSize: number): TextOptions {
  const stop = typeof body.stop === 'string' ? [body.stop] : (body.stop ?? [])
  return {
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? 1,
    topK: Math.max(0, body.top_k ?? 0),
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    frequencyPenalty: body.frequency_penalty ?? 0,
    presencePenalty: body.presence_penalty ?? 0,
    ...(body.logit_bias ? { logitBias: biasOf(body.logit_bias, vocabSize) } : {}),
    ...(stop.length > 0 ? { stop } : {}),
  }
}
