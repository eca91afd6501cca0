// The scheduler without a model: a simulated cache holds for every row a digest of the tokens before it, so that a
// block which is shared, copied, swapped or given up wrongly shows as a wrong digest.
import { describe, expect, it } from 'vitest'
import { availableBlocks, blockTokens, isWritable } from '../../src/inference/blocks.js'
import {
  commitDecode,
  commitFirst,
  commitPrefill,
  createScheduler,
  endSequence,
  enqueue,
  isIdle,
  planStep,
  runningCount,
  type Scheduler,
  type SchedulerOptions,
  type Sequence,
  type StepPlan,
} from '../../src/inference/scheduler.js'
import { seeded } from '../training/toy-program.js'

const mix = (h: number, x: number): number => Math.imul((h ^ x) + 0x9e3779b9, 0x85ebca6b) ^ (h >>> 13)

/** Digest of tokens[0..position], computed for an adapter. */
function digest(sequence: Sequence, position: number): number {
  let h = sequence.slot + 7
  for (let i = 0; i <= position; i++) h = mix(h, sequence.tokens[i]!)
  return h
}

/** What the simulated model says next: a function of all tokens, from a small vocabulary. */
const nextToken = (h: number): number => Math.abs(h % 5)

class Simulation {
  readonly s: Scheduler
  readonly options: SchedulerOptions
  readonly cache: Float64Array[]
  readonly host = new Map<number, Float64Array>()
  prefilled = 0
  /** Steps since anything was computed. */
  idleSteps = 0

  constructor(options: SchedulerOptions) {
    this.options = options
    this.s = createScheduler(options)
    this.cache = Array.from({ length: options.blocks }, () => new Float64Array(blockTokens).fill(Number.NaN))
  }

  private move(plan: StepPlan): void {
    for (const move of plan.moves) {
      if (move.kind === 'copy') this.cache[move.block]!.set(this.cache[move.from]!)
      if (move.kind === 'out') this.host.set(move.slot, this.cache[move.block]!.slice())
      if (move.kind === 'in') this.cache[move.block]!.set(this.host.get(move.slot)!)
      if (move.kind === 'drop') this.host.delete(move.slot)
    }
  }

  private write(sequence: Sequence, tokens: readonly number[], from: number): void {
    let h = from === 0 ? sequence.slot + 7 : this.read(sequence, from - 1)
    for (let i = from; i < tokens.length; i++) {
      const block = sequence.blocks[Math.floor(i / blockTokens)]!
      if (!isWritable(this.s.pool, block)) throw new Error(`sequence ${sequence.id} writes block ${block}, not its own`)
      h = mix(h, tokens[i]!)
      this.cache[block]![i % blockTokens] = h
    }
  }

  private read(sequence: Sequence, position: number): number {
    return this.cache[sequence.blocks[Math.floor(position / blockTokens)]!]![position % blockTokens]!
  }

  private check(sequence: Sequence): void {
    let h = sequence.slot + 7
    for (let i = 0; i < sequence.computed; i++) {
      h = mix(h, sequence.tokens[i]!)
      if (this.read(sequence, i) !== h)
        throw new Error(`sequence ${sequence.id}: position ${i} of ${sequence.computed} holds another text`)
    }
  }

  /** `draft` proposes tokens for a sequence. */
  step(draft: (sequence: Sequence) => number[] = () => []): void {
    for (const sequence of this.s.decoding) sequence.drafts = draft(sequence)
    const plan = planStep(this.s)
    this.move(plan)
    let rows = 0
    let budget = 0
    let samples = 0
    for (const { sequence, from, to, samples: drawn } of plan.prefill) {
      expect(sequence.slot).toBe(plan.prefill[0]!.sequence.slot)
      this.check(sequence)
      this.write(sequence, sequence.tokens.slice(0, to), from)
      budget += to - from
      samples += drawn.length
    }
    this.prefilled += budget
    expect(budget).toBeLessThanOrEqual(this.options.prefillTokens)
    expect(samples).toBeLessThanOrEqual(this.options.maxSequences)
    for (const sequence of plan.decode) {
      this.check(sequence)
      expect(sequence.tokens.length + sequence.drafts.length).toBeLessThan(sequence.maxTokens)
      this.write(sequence, [...sequence.tokens, ...sequence.drafts], sequence.computed)
      rows += 1 + sequence.drafts.length
    }
    expect(rows).toBeLessThanOrEqual(this.options.decodeRows)
    for (const sequence of plan.decode) {
      const emitted: number[] = []
      const at = sequence.computed
      for (let i = 0; i <= sequence.drafts.length; i++) {
        emitted.push(nextToken(this.read(sequence, at + i)))
        if (sequence.drafts[i] !== emitted[i]) break
      }
      commitDecode(sequence, emitted)
    }
    for (const chunk of plan.prefill) {
      const { sequence, to, samples: drawn } = chunk
      const h = this.read(sequence, to - 1)
      commitPrefill(this.s, chunk)
      for (const sample of drawn) commitFirst(sample, nextToken(h) + (sample.id % 3))
    }
    for (const sequence of [...this.s.decoding, ...this.s.swapped])
      if (sequence.tokens.length >= sequence.maxTokens) endSequence(this.s, sequence)
    this.idleSteps = rows + budget > 0 || isIdle(this.s) ? 0 : this.idleSteps + 1
    this.invariants()
  }

  invariants(): void {
    const { pool, waiting, prefilling, decoding, swapped, swap } = this.s
    const references = new Int32Array(pool.size)
    for (const sequence of [...prefilling, ...decoding]) for (const block of sequence.blocks) references[block]!++
    if (pool.references.join() !== references.join()) throw new Error('a block is held by nobody, or by too many')
    if ([...waiting, ...swapped].some(({ blocks }) => blocks.length > 0)) throw new Error('blocks held outside')
    const held = references.filter((n) => n > 0).length
    expect(availableBlocks(pool) + held).toBe(pool.size)
    expect(new Set([...pool.free, ...pool.idle]).size).toBe(availableBlocks(pool))
    const slots = new Set(swapped.flatMap(({ hostSlots }) => hostSlots))
    expect(swap.references.size).toBe(slots.size)
    expect(runningCount(this.s)).toBeLessThanOrEqual(this.options.maxSequences)
    expect(this.idleSteps).toBeLessThan(3)
  }
}

const options = (given: Partial<SchedulerOptions> = {}): SchedulerOptions => ({
  blocks: 64,
  maxSequences: 8,
  prefillTokens: 64,
  decodeRows: 16,
  ...given,
})

const range = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i)
const add = (
  simulation: Simulation,
  prompt: number[],
  newTokens: number,
  given: { samples?: number; slot?: number } = {},
) =>
  enqueue(simulation.s, {
    promptIds: prompt,
    maxTokens: new Array(given.samples ?? 1).fill(prompt.length + newTokens),
    slot: given.slot ?? -1,
    namespace: `${given.slot ?? -1}`,
  })

function finish(simulation: Simulation): void {
  for (let i = 0; !isIdle(simulation.s); i++) {
    if (i > 100_000) throw new Error('it never ends')
    simulation.step()
  }
  expect(availableBlocks(simulation.s.pool)).toBe(simulation.s.pool.size)
  simulation.s.moves.length = 0
}

describe('prefix sharing', () => {
  it('computes the prompt of a group once and shares its blocks, the partial one by copy on write', () => {
    const simulation = new Simulation(options({ maxSequences: 16, decodeRows: 32 }))
    const group = add(simulation, range(70), 20, { samples: 16 })
    while (group[0]!.state !== 'decoding') simulation.step()
    expect(simulation.prefilled).toBe(70)
    expect(simulation.s.pool.size - availableBlocks(simulation.s.pool)).toBe(3)
    simulation.step()
    // Two full blocks once, and sixteen of the rest.
    expect(simulation.s.pool.size - availableBlocks(simulation.s.pool)).toBe(18)
    expect(group.map(({ cachedTokens }) => cachedTokens)).toEqual([0, ...new Array(15).fill(70)])
    finish(simulation)
    expect(group.every(({ tokens }) => tokens.length === 90)).toBe(true)
  })

  it('splits a group that is larger than what runs at once, and still finds its blocks', () => {
    const simulation = new Simulation(options({ maxSequences: 4 }))
    add(simulation, range(70), 5, { samples: 10 })
    finish(simulation)
    expect(simulation.prefilled).toBe(70 + 6 + 6)
  })

  it('finds a prompt that ran before, and computes its last token again in a copy', () => {
    const simulation = new Simulation(options())
    add(simulation, range(64), 3)
    finish(simulation)
    const [again] = add(simulation, range(64), 3)
    finish(simulation)
    expect(simulation.prefilled).toBe(65)
    expect(again!.cachedTokens).toBe(63)
  })

  it('computes the last block again where the prompt fills the whole pool', () => {
    const simulation = new Simulation(options({ blocks: 3 }))
    add(simulation, range(95), 1)
    finish(simulation)
    add(simulation, range(96), 0)
    finish(simulation)
    const [again] = add(simulation, range(96), 0)
    finish(simulation)
    expect(again!.cachedTokens).toBe(64)
  })

  it('waits for a prefix that is being computed instead of computing it again', () => {
    const simulation = new Simulation(options())
    const system = range(96)
    for (let i = 0; i < 5; i++) add(simulation, [...system, ...range(10, 200 + 100 * i)], 4)
    finish(simulation)
    expect(simulation.prefilled).toBe(96 + 5 * 10)
  })

  it('keeps adapters apart', () => {
    const simulation = new Simulation(options())
    for (const slot of [-1, 0, 1]) add(simulation, range(64), 2, { slot })
    finish(simulation)
    expect(simulation.prefilled).toBe(3 * 64)
  })

  it('never shares what was generated', () => {
    const simulation = new Simulation(options())
    const [first] = add(simulation, range(40), 60)
    finish(simulation)
    const [second] = add(simulation, first!.tokens, 4)
    finish(simulation)
    expect(second!.cachedTokens).toBe(32)
  })
})

describe('preemption', () => {
  it('swaps the newest out when blocks run out and lets every sequence reach its end', () => {
    const simulation = new Simulation(options({ blocks: 8 }))
    const all = range(4).map((i) => add(simulation, range(33, 100 * i), 100)[0]!)
    const ended: number[] = []
    for (let i = 0; !isIdle(simulation.s); i++) {
      expect(i).toBeLessThan(2000)
      simulation.step()
      for (const { id, state } of all) if (state === 'ended' && !ended.includes(id)) ended.push(id)
    }
    expect(simulation.s.preemptions).toBeGreaterThan(0)
    expect(simulation.prefilled).toBe(4 * 33)
    expect(ended[0]).toBe(0)
    expect(all.every(({ tokens }) => tokens.length === 133)).toBe(true)
  })

  it('refuses what can never fit', () => {
    const simulation = new Simulation(options({ blocks: 2 }))
    expect(() => add(simulation, range(60), 5)).toThrow(/never fit/)
  })
})

it('keeps every text whole over thousands of random steps of joins, cancels, drafts and preemptions', () => {
  let preemptions = 0
  for (let seed = 1; seed <= 8; seed++) {
    const random = seeded(seed)
    const int = (n: number) => Math.floor(random() * n)
    const simulation = new Simulation(
      options({
        blocks: 10 + int(20),
        maxSequences: 3 + int(10),
        prefillTokens: 8 + int(120),
        decodeRows: 16 + int(20),
      }),
    )
    const { blocks } = simulation.options
    const prefixes = range(3).map((i) => range(20 + int(150), 1000 * i))
    const all: Sequence[] = []
    const draft = (sequence: Sequence) => {
      const drafts: number[] = []
      let h = digest(sequence, sequence.tokens.length - 1)
      for (let i = int(6); i > 0; i--) {
        // Right with a probability of three quarters.
        drafts.push(random() < 0.75 ? nextToken(h) : 9)
        h = mix(h, drafts.at(-1)!)
      }
      return drafts
    }
    for (let step = 0; step < 400; step++) {
      if (random() < 0.2) {
        const prefix = prefixes[int(3)]!
        const prompt = [...prefix.slice(0, 1 + int(prefix.length)), ...range(int(40), 10_000 * int(3))]
        const newTokens = 1 + int(160)
        if (prompt.length + newTokens <= blocks * blockTokens)
          all.push(
            ...add(simulation, prompt, newTokens, { samples: random() < 0.3 ? 1 + int(14) : 1, slot: int(3) - 1 }),
          )
      }
      const live = all.filter(({ state }) => state !== 'ended')
      while (live.length > 0 && random() < 0.25) endSequence(simulation.s, live[int(live.length)]!)
      simulation.step(draft)
    }
    finish(simulation)
    expect(all.every(({ state }) => state === 'ended')).toBe(true)
    // Without a cancel a text is what the simulated model says, whatever happened to it.
    for (const { slot, tokens, promptLength } of all) {
      let h = slot + 7
      tokens.forEach((token, i) => {
        if (i > promptLength && token !== nextToken(h)) throw new Error(`token ${i} of ${tokens.length} is wrong`)
        h = mix(h, token)
      })
    }
    preemptions += simulation.s.preemptions
  }
  expect(preemptions).toBeGreaterThan(50)
})
