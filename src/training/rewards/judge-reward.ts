// Rewards from a judge: a model behind an OpenAI-compatible endpoint that is asked for a number.
import { z } from 'zod'
import { type Completion, type FailurePolicy, guarded, type RewardSource, untilOneFails } from './reward.js'

export interface JudgeRewardOptions {
  readonly name: string
  readonly weight: number
  /** `https://host/v1`. */
  readonly endpoint: string
  readonly model: string
  /** Name of the environment variable that holds the key; absent: none is sent. */
  readonly apiKeyVariable?: string | undefined
  /** What the judge is asked; `{{prompt}}` and `{{completion}}` are filled in. The first number of its answer counts. */
  readonly instruction: string
  /** Scores outside are a failure. */
  readonly range: readonly [number, number]
  readonly concurrency: number
  readonly timeoutMs: number
  readonly onFailure: FailurePolicy
  readonly retries: number
}

export const defaultInstruction = `Rate the answer to the prompt from 0 (useless) to 10 (perfect). Reply with the number alone.

Prompt:
{{prompt}}

Answer:
{{completion}}`

const answerSchema = z.object({
  choices: z.array(z.object({ message: z.object({ content: z.string() }) })).min(1),
})

const maxAnswerBytes = 1 << 20
const firstRetryMs = 500

/** The request of one completion. */
function bodyOf(options: JudgeRewardOptions, { prompt, completion }: Completion): string {
  const filled = options.instruction.replace(/\{\{(prompt|completion)\}\}/g, (_, key) =>
    key === 'prompt' ? prompt : completion,
  )
  return JSON.stringify({
    model: options.model,
    messages: [{ role: 'user', content: filled }],
    temperature: 0,
    max_tokens: 16,
  })
}

/** The first number of the answer. @throws where there is none, or it lies outside the range */
function parseScore(text: string, [least, most]: readonly [number, number]): number {
  const found = /-?\d+(?:\.\d+)?/.exec(text)
  if (!found) throw new Error(`the judge answered ${JSON.stringify(text.slice(0, 80))}, which holds no number`)
  const score = Number(found[0])
  if (score < least || score > most) throw new Error(`the judge gave ${score}, outside ${least} to ${most}`)
  return score
}

/** undefined: it is none. */
function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

async function ask(options: JudgeRewardOptions, completion: Completion, signal: AbortSignal): Promise<number> {
  const key = options.apiKeyVariable === undefined ? undefined : process.env[options.apiKeyVariable]
  if (options.apiKeyVariable !== undefined && !key) {
    throw new Error(`the environment variable ${options.apiKeyVariable} is not set; it holds the judge's key`)
  }
  const response = await fetch(`${options.endpoint.replace(/\/+$/, '')}/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) },
    body: bodyOf(options, completion),
    signal,
  })
  const text = await response.text()
  if (!response.ok) {
    const error = new Error(`the judge answered ${response.status} ${response.statusText}: ${text.slice(0, 200)}`)
    throw Object.assign(error, { isPassing: response.status === 429 || response.status >= 500 })
  }
  if (text.length > maxAnswerBytes) throw new Error('the answer of the judge is longer than 1 MB')
  const parsed = answerSchema.safeParse(jsonOf(text))
  if (!parsed.success) {
    throw new Error(`the judge did not answer as an OpenAI-compatible endpoint does: ${text.slice(0, 200)}`)
  }
  return parseScore(parsed.data.choices[0]!.message.content, options.range)
}

/** Asks again after failures that pass: no connection, 429, 5xx. */
async function askPatiently(options: JudgeRewardOptions, completion: Completion, signal: AbortSignal): Promise<number> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await ask(options, completion, signal)
    } catch (error) {
      const { isPassing, name } = error as { isPassing?: boolean; name?: string }
      const mayPass = isPassing ?? (error instanceof TypeError && name === 'TypeError')
      if (signal.aborted || !mayPass || attempt >= options.retries) throw error
      await new Promise((resolve) => setTimeout(resolve, firstRetryMs * 2 ** attempt))
    }
  }
}

/** Asks `concurrency` questions at a time. */
export function judgeReward(options: JudgeRewardOptions): RewardSource {
  return {
    name: options.name,
    weight: options.weight,
    async score(completions, _, signal) {
      const scores: (number | null)[] = new Array(completions.length).fill(null)
      let next = 0
      const workers = Math.min(options.concurrency, completions.length)
      await untilOneFails(signal, (shared) => {
        const worker = async () => {
          while (next < completions.length) {
            const index = next++
            const one = completions[index]!
            scores[index] = await guarded(options, one, shared, (own) => askPatiently(options, one, own))
          }
        }
        return Array.from({ length: workers }, worker)
      })
      return scores
    },
  }
}
