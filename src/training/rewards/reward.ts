// Where rewards come from (stop 8 of the online stages): a source scores finished completions, one number each, or null
// where it has nothing to say about one.
import { setMaxListeners } from 'node:events'
import type { Row } from '../../data/index.js'

/** One finished completion as reward sources see it. */
export interface Completion {
  /** The prompt as the model saw it. */
  readonly prompt: string
  /** Without the token that ended it. */
  readonly completion: string
  /** Generated tokens, the end token included. */
  readonly tokens: number
  /** `length`: it was cut at the most tokens. */
  readonly finishReason: 'stop' | 'length'
  /** The row that the prompt came from, other columns included. */
  readonly row: Row
  /** Where that row was. */
  readonly place: string
}

/** A function of a program or a recipe. Scores of one completion, or of all at once where it takes a list. */
export type RewardFunction = (completion: Completion, signal: AbortSignal) => Score | Promise<Score>
/** null: not scored by this source. */
export type Score = number | null

export interface RewardSource {
  readonly name: string
  readonly weight: number
  /** @param ids prompt and completion tokens of each, ended where they were cut, for sources that read tokens */
  score(completions: readonly Completion[], ids: readonly Int32Array[], signal: AbortSignal): Promise<Score[]>
  close?(): void
}

/** What happens where a source fails on a completion: the run stops, or the completion counts as this. */
export type FailurePolicy = 'stop' | { readonly score: number | null }

/** A reward source failed on one completion. */
export class RewardError extends Error {
  override name = 'RewardError'
  readonly completion: Completion
  constructor(source: string, problem: string, completion: Completion, cause?: unknown) {
    super(
      `reward ${source}: ${problem}\n  prompt (${completion.place}): ${quote(completion.prompt)}\n  completion: ${quote(completion.completion)}\n` +
        '  Mend the reward, or let the recipe say how such a completion scores (onFailure: { score: … }).',
      { cause },
    )
    this.completion = completion
  }
}

const shown = 400
const quote = (text: string) => JSON.stringify(text.length > shown ? `${text.slice(0, shown)}…` : text)

/**
 * Scores one completion, held to its time and to being a number.
 * @throws RewardError by the policy `stop`; an abort rejects with its reason
 */
export async function guarded(
  source: { readonly name: string; readonly timeoutMs: number; readonly onFailure: FailurePolicy },
  completion: Completion,
  signal: AbortSignal,
  score: (signal: AbortSignal) => Score | Promise<Score>,
): Promise<Score> {
  const { controller: own, unlink } = linkedController(signal)
  let timer: NodeJS.Timeout | undefined
  try {
    signal.throwIfAborted()
    const stopped = new Promise<never>((_, reject) => {
      own.signal.addEventListener('abort', () => reject(own.signal.reason), { once: true })
      timer = setTimeout(
        () => own.abort(new Error(`gave no answer within ${source.timeoutMs / 1000} s`)),
        source.timeoutMs,
      )
    })
    stopped.catch(() => {})
    const value = await Promise.race([score(own.signal), stopped])
    if (value === null || (typeof value === 'number' && Number.isFinite(value))) return value
    throw new Error(`gave ${String(value)}, which is no number`)
  } catch (error) {
    if (signal.aborted) throw signal.reason
    if (source.onFailure !== 'stop') return source.onFailure.score
    throw new RewardError(source.name, (error as Error)?.message ?? String(error), completion, error)
  } finally {
    clearTimeout(timer)
    unlink()
  }
}

/** Waits for work that goes on at once; the first failure ends the rest through the signal that they share. */
export async function untilOneFails<T>(
  signal: AbortSignal,
  start: (shared: AbortSignal) => Promise<T>[],
): Promise<T[]> {
  const { controller: shared, unlink } = linkedController(signal)
  setMaxListeners(0, shared.signal) // one for each completion
  try {
    return await Promise.all(start(shared.signal))
  } catch (error) {
    shared.abort(error)
    throw error
  } finally {
    unlink()
  }
}

/** A controller that aborts with a signal. Not `AbortSignal.any`: of Node 20, what that returns may be collected unheard. */
function linkedController(signal: AbortSignal): { controller: AbortController; unlink(): void } {
  const controller = new AbortController()
  const onAbort = () => controller.abort(signal.reason)
  if (signal.aborted) onAbort()
  signal.addEventListener('abort', onAbort, { once: true })
  return { controller, unlink: () => signal.removeEventListener('abort', onAbort) }
}
