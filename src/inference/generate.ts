// Continues a prompt, greedily or by sampling (temperature, top-k, top-p). Deterministic for a seed.
import type { FinishReason } from './request.js'
import type { InferenceSession } from './session.js'
import { packSequences } from './session.js'

export interface GenerateOptions {
  readonly maxNewTokens?: number
  /** 0: greedy. */
  readonly temperature?: number
  /** Keep the k likeliest tokens; 0: all. */
  readonly topK?: number
  /** Keep the likeliest tokens that together reach this probability. */
  readonly topP?: number
  readonly seed?: number
  /** Tokens that end the text; they are not returned. */
  readonly stopIds?: readonly number[]
  readonly signal?: AbortSignal
}

export interface GeneratedToken {
  readonly id: number
  /** Natural log of its probability under the model at temperature 1. */
  readonly logp: number
}

/** Yields tokens one by one; returns why it ended. */
export async function* generateTokens(
  session: InferenceSession,
  prompt: ArrayLike<number>,
  options: GenerateOptions = {},
): AsyncGenerator<GeneratedToken, FinishReason> {
  if (prompt.length === 0) throw new Error('an empty prompt: give at least one token')
  const stop = new Set(options.stopIds ?? [])
  const ids = Array.from(prompt)
  const room = session.maxTokens - ids.length
  const limit = Math.min(options.maxNewTokens ?? 128, room)
  if (room <= 0) throw new Error(`the prompt has ${ids.length} tokens; this model takes ${session.maxTokens}`)
  const random = uniformFrom(options.seed ?? 0)
  for (let step = 0; step < limit; step++) {
    const logits = await session.logits(packSequences([ids]), Int32Array.of(ids.length - 1), options.signal)
    const id = choose(logits, options, random)
    if (stop.has(id)) return 'stop'
    ids.push(id)
    yield { id, logp: logits[id]! - logSumExp(logits) }
  }
  return 'length'
}

/** The k likeliest tokens of one row of logits, best first. */
export function topTokens(logits: Float32Array, k: number): GeneratedToken[] {
  const lse = logSumExp(logits)
  const best: number[] = []
  for (let id = 0; id < logits.length; id++) {
    if (best.length === k && logits[id]! <= logits[best[k - 1]!]!) continue
    let at = best.length
    while (at > 0 && logits[best[at - 1]!]! < logits[id]!) at--
    best.splice(at, 0, id)
    if (best.length > k) best.pop()
  }
  return best.map((id) => ({ id, logp: logits[id]! - lse }))
}

function logSumExp(logits: Float32Array): number {
  let top = Number.NEGATIVE_INFINITY
  for (const x of logits) if (x > top) top = x
  let sum = 0
  for (const x of logits) sum += Math.exp(x - top)
  return top + Math.log(sum)
}

function choose(logits: Float32Array, options: GenerateOptions, random: () => number): number {
  const temperature = options.temperature ?? 0
  let best = 0
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id
  if (!(temperature > 0)) return best
  const top = logits[best]!
  let candidates = Array.from(logits, (x, id) => ({ id, weight: Math.exp((x - top) / temperature) }))
  candidates.sort((a, b) => b.weight - a.weight || a.id - b.id)
  if (options.topK) candidates = candidates.slice(0, options.topK)
  const total = candidates.reduce((sum, c) => sum + c.weight, 0)
  const kept: typeof candidates = []
  let mass = 0
  for (const candidate of candidates) {
    kept.push(candidate)
    mass += candidate.weight
    if (options.topP !== undefined && mass >= options.topP * total) break
  }
  let at = random() * mass
  for (const { id, weight } of kept) {
    at -= weight
    if (at <= 0) return id
  }
  return kept.at(-1)!.id
}

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
function uniformFrom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t ^= t + Math.imul(t ^ (t >>> 7), 61 | t)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
