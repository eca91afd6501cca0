// Sampling options with their defaults, checked once when a request arrives.
import { MAX_TOP_LOGPS } from '../compiler/ops/sample-tokens.js'
import type { SamplingOptions } from './request.js'

/** A request that the engine does not take; the message says what to change. */
export class RequestError extends Error {
  override name = 'RequestError'
}

export type Sampling = Required<Omit<SamplingOptions, 'maxNewTokens' | 'constraint' | 'stopIds'>> &
  Pick<SamplingOptions, 'constraint'>

/** Biases that one request may name; a mask is the way to forbid most of a vocabulary. */
export const maxLogitBiases = 1024

function check(name: string, value: number, isValid: boolean, range: string): void {
  if (!isValid) throw new RequestError(`${name} is ${value}; it must be ${range}`)
}

/** @throws RequestError naming the option */
export function resolveSampling(options: SamplingOptions = {}, vocabSize: number): Sampling {
  const sampling: Sampling = {
    temperature: options.temperature ?? 0,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    minP: options.minP ?? 0,
    repetitionPenalty: options.repetitionPenalty ?? 1,
    frequencyPenalty: options.frequencyPenalty ?? 0,
    presencePenalty: options.presencePenalty ?? 0,
    logitBias: options.logitBias ?? new Map(),
    seed: options.seed ?? 0,
    topLogps: options.topLogps ?? 0,
    ...(options.constraint ? { constraint: options.constraint } : {}),
  }
  const s = sampling
  check('temperature', s.temperature, s.temperature >= 0 && Number.isFinite(s.temperature), 'a number from 0')
  check('topK', s.topK, Number.isInteger(s.topK) && s.topK >= 0, 'a whole number from 0')
  check('topP', s.topP, s.topP > 0 && s.topP <= 1, 'above 0 and at most 1')
  check('minP', s.minP, s.minP >= 0 && s.minP <= 1, 'from 0 to 1')
  check(
    'repetitionPenalty',
    s.repetitionPenalty,
    s.repetitionPenalty > 0 && Number.isFinite(s.repetitionPenalty),
    'above 0',
  )
  check('frequencyPenalty', s.frequencyPenalty, Number.isFinite(s.frequencyPenalty), 'a number')
  check('presencePenalty', s.presencePenalty, Number.isFinite(s.presencePenalty), 'a number')
  check('seed', s.seed, Number.isSafeInteger(s.seed), 'a whole number below 2^53')
  const isCount = Number.isInteger(s.topLogps) && s.topLogps >= 0 && s.topLogps <= MAX_TOP_LOGPS
  check('topLogps', s.topLogps, isCount, `a whole number from 0 to ${MAX_TOP_LOGPS}`)
  check('logitBias', s.logitBias.size, s.logitBias.size <= maxLogitBiases, `of at most ${maxLogitBiases} tokens`)
  for (const [id, bias] of s.logitBias) {
    const isToken = Number.isInteger(id) && id >= 0 && id < vocabSize
    check('logitBias', id, isToken, `by ids below ${vocabSize}, the size of the vocabulary`)
    check(`logitBias of token ${id}`, bias, Number.isFinite(bias), 'a number')
  }
  return sampling
}
