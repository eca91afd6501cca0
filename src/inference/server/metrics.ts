// Metrics in the Prometheus text format. What the engine counts is read from its statistics when somebody looks.
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { EngineStatistics } from '../request.js'
import type { Admission } from './limits.js'

export interface ServerMetrics {
  readonly contentType: string
  text(): Promise<string>
  request(route: string, method: string, code: number, seconds: number): void
  firstToken(seconds: number): void
  /** Mean time between the tokens of one sequence. */
  perToken(seconds: number): void
}

const prefix = 'espalier_'
const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
const perTokenSeconds = [0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5]

let ofProcess: Registry | undefined

/** Memory, event-loop lag, garbage collection: watched once in a process, however many servers it starts. */
function processMetrics(): Registry {
  if (!ofProcess) {
    ofProcess = new Registry()
    collectDefaultMetrics({ register: ofProcess })
  }
  return ofProcess
}

export function createMetrics(admission: Admission, statistics: () => EngineStatistics): ServerMetrics {
  const registry = new Registry()
  const registers = [registry]

  const gauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name: prefix + name,
      help,
      registers,
      collect() {
        this.set(read())
      },
    })
  /** A count that is kept elsewhere. */
  const counter = (name: string, help: string, read: () => number) =>
    new Counter({
      name: prefix + name,
      help,
      registers,
      collect() {
        this.reset()
        this.inc(read())
      },
    })

  gauge('queue_requests', 'Requests that wait for a place', () => admission.queued)
  gauge('admitted_sequences', 'Sequences that hold a place', () => admission.running)
  gauge('running_sequences', 'Sequences that the engine computes', () => statistics().running)
  gauge('waiting_sequences', 'Sequences that wait in the engine', () => statistics().waiting)
  gauge('swapped_sequences', 'Sequences whose cache is swapped out', () => statistics().swapped)
  gauge('cache_blocks', 'Blocks of the cache', () => statistics().blocks.total)
  gauge('cache_blocks_used', 'Blocks of the cache in use', () => statistics().blocks.used)
  gauge('cache_blocks_cached', 'Blocks kept for prompts that begin alike', () => statistics().blocks.cached)
  gauge('draft_acceptance', 'Share of the drafted tokens that were taken', () => {
    const { proposed, accepted } = statistics().drafts
    return proposed === 0 ? 0 : accepted / proposed
  })
  counter('draft_tokens_total', 'Tokens that a draft proposed', () => statistics().drafts.proposed)
  counter('draft_accepted_tokens_total', 'Proposed tokens that were taken', () => statistics().drafts.accepted)
  counter('prompt_tokens_total', 'Tokens of prompts', () => statistics().promptTokens)
  counter('cached_tokens_total', 'Tokens of prompts that were found in the cache', () => statistics().cachedTokens)
  counter('generated_tokens_total', 'Tokens generated', () => statistics().generatedTokens)
  counter('engine_steps_total', 'Steps of the engine', () => statistics().steps)
  counter('preemptions_total', 'Sequences swapped out', () => statistics().preemptions)

  const requests = new Counter({
    name: `${prefix}http_requests_total`,
    help: 'Requests by route and status; 499: the client left before the answer ended',
    labelNames: ['route', 'method', 'code'] as const,
    registers,
  })
  const duration = new Histogram({
    name: `${prefix}http_request_seconds`,
    help: 'Time from a request to the end of its answer',
    labelNames: ['route'] as const,
    buckets: seconds,
    registers,
  })
  const firstToken = new Histogram({
    name: `${prefix}time_to_first_token_seconds`,
    help: 'Time from a request to its first token, waiting included',
    buckets: seconds,
    registers,
  })
  const perToken = new Histogram({
    name: `${prefix}time_per_token_seconds`,
    help: 'Mean time between the tokens of a sequence',
    buckets: perTokenSeconds,
    registers,
  })
  processMetrics()
  return {
    contentType: registry.contentType,
    text: () => Registry.merge([registry, processMetrics()]).metrics(),
    request(route, method, code, took) {
      requests.inc({ route, method, code })
      duration.observe({ route }, took)
    },
    firstToken: (took) => firstToken.observe(took),
    perToken: (took) => perToken.observe(took),
  }
}
