// An annotation that goes on: which pair is asked about now, what was answered, and reward heads that are refitted behind it. Pairs
// come in a random order until features are there and the first answers are in; from then on those that teach most come first.
import { type Comparison, permutation } from '../../data/index.js'
import { chooseRound } from './acquisition.js'
import type { Annotation, AnnotationLog, Label } from './log.js'
import { RewardEnsemble } from './reward-ensemble.js'

export const orders = ['active', 'random'] as const
export type Order = (typeof orders)[number]

/** What the heads are told of an answer: 1 the first is better, ½ neither; null nothing. */
export const targetOf: Readonly<Record<Label, number | null>> = {
  first: 1,
  second: 0,
  tie: 0.5,
  bothBad: 0.5,
  skip: null,
}

export interface AnnotatorOptions {
  readonly comparisons: readonly Comparison[]
  readonly log: AnnotationLog
  /** Default `active`. */
  readonly order?: Order | undefined
  readonly seed?: number | undefined
  /** Called whenever `status` may say something else. */
  readonly onChange?: (() => void) | undefined
}

export interface AnnotatorStatus {
  /** Answers of the log that stand, those to pairs that the data no longer has included. */
  readonly answered: number
  /** Pairs of the data without an answer. */
  readonly left: number
  readonly counts: Readonly<Record<Label, number>>
  /** How the pair that is shown was chosen. */
  readonly order: Order
  /** Of the last answers that preferred one side, the share that the heads had foreseen, and over how many. */
  readonly agreement: { readonly share: number; readonly answers: number } | undefined
}

/** Answers between two fits of the heads. */
const REFIT_ANSWERS = 8
/** Pairs chosen at once: enough that none is missing while the heads are fitted. */
const ROUND_PAIRS = 2 * REFIT_ANSWERS
/** Agreement is over the last answers only: the heads learn. */
const AGREEMENT_ANSWERS = 50

export class Annotator {
  readonly comparisons: readonly Comparison[]
  readonly #log: AnnotationLog
  readonly #isActive: boolean
  readonly #seed: number
  readonly #onChange: () => void
  readonly #indexOf: ReadonlyMap<string, number>
  readonly #shuffled: readonly number[]
  readonly #answered = new Set<number>()
  /** Chosen by the heads, next one first. */
  #round: number[] = []
  #current: number | undefined
  #currentOrder: Order = 'random'
  #shownAt = performance.now()
  #differences: readonly Float32Array[] | undefined
  #ensemble: RewardEnsemble | undefined
  /** Answers that the last fit knew. */
  #fitted = 0
  #fitting: Promise<void> | undefined
  /** By id of the pair: whether the heads had foreseen the answer. */
  readonly #foreseen = new Map<string, boolean>()
  readonly #closing = new AbortController()

  constructor({ comparisons, log, order = 'active', seed = 0, onChange = () => {} }: AnnotatorOptions) {
    this.comparisons = comparisons
    this.#log = log
    this.#isActive = order === 'active'
    this.#seed = seed
    this.#onChange = onChange
    this.#indexOf = new Map(comparisons.map(({ id }, i) => [id, i]))
    this.#shuffled = Array.from(permutation(comparisons.length, seed, 'annotate/order'))
    for (const { id } of log.standing) {
      const index = this.#indexOf.get(id)
      if (index !== undefined) this.#answered.add(index)
    }
    this.#advance()
  }

  /** The pair to judge; undefined where all have an answer. */
  get current(): Comparison | undefined {
    return this.#current === undefined ? undefined : this.comparisons[this.#current]
  }

  get status(): AnnotatorStatus {
    const counts: Record<Label, number> = { first: 0, second: 0, tie: 0, bothBad: 0, skip: 0 }
    for (const { label } of this.#log.standing) counts[label]++
    const judged = this.#log.standing.flatMap(({ id }) => this.#foreseen.get(id) ?? []).slice(-AGREEMENT_ANSWERS)
    return {
      answered: this.#log.standing.length,
      left: this.comparisons.length - this.#answered.size,
      counts,
      order: this.#currentOrder,
      agreement:
        judged.length === 0
          ? undefined
          : { share: judged.filter(Boolean).length / judged.length, answers: judged.length },
    }
  }

  /** Takes what heads see of every pair, as FeatureSpace gives it [C]; from now on the heads choose. */
  learn(differences: readonly Float32Array[]): void {
    if (!this.#isActive) return
    if (differences.length !== this.comparisons.length)
      throw new Error(`features of ${differences.length} pairs for ${this.comparisons.length} pairs`)
    this.#differences = differences
    this.#ensemble = new RewardEnsemble(differences[0]?.length ?? 0, { seed: this.#seed })
    this.#refit()
  }

  /** Waits until the heads know every answer so far. */
  async settled(): Promise<void> {
    this.#refit(1)
    while (this.#fitting) {
      await this.#fitting
      this.#refit(1)
    }
  }

  /** The next `count` pairs, for whoever answers many at once. */
  nextRound(count: number): Comparison[] {
    const left = this.#shuffled.filter((i) => !this.#answered.has(i))
    const chosen =
      this.#ensemble && this.#differences && this.#fitted > 0
        ? chooseRound(
            this.#ensemble,
            left.map((i) => this.#differences![i]!),
            count,
          ).map((k) => left[k]!)
        : left.slice(0, count)
    return chosen.map((i) => this.comparisons[i]!)
  }

  /**
   * Writes what is said of the pair that is shown, and goes on to the next one.
   * @throws AnnotationLogError where it could not be written; the pair stays
   */
  answer(label: Label, by = 'human'): void {
    const comparison = this.current
    if (comparison) this.record(comparison, label, by, (performance.now() - this.#shownAt) / 1000)
  }

  /** The same for any pair. @param seconds that it took */
  record(comparison: Comparison, label: Label, by: string, seconds: number): void {
    const index = this.#indexOf.get(comparison.id)
    if (index === undefined) throw new Error(`pair ${comparison.id} is not of this data`)
    this.#log.append(comparison, label, by, seconds)
    this.#foresee(index, label)
    this.#answered.add(index)
    if (index === this.#current) this.#advance()
    this.#refit()
    this.#onChange()
  }

  /** Takes back the last answer and shows its pair again, where the data has it. @returns what was taken back */
  undo(): Annotation | undefined {
    const taken = this.#log.undo()
    if (!taken) return undefined
    this.#foreseen.delete(taken.id)
    const index = this.#indexOf.get(taken.id)
    if (index !== undefined) {
      this.#answered.delete(index)
      if (this.#current !== undefined) this.#round.unshift(this.#current)
      this.#show(index, this.#currentOrder)
    }
    this.#refit()
    this.#onChange()
    return taken
  }

  /** Ends what goes on behind; the log is the caller's to close. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#fitting
  }

  #show(index: number | undefined, order: Order): void {
    this.#current = index
    this.#currentOrder = order
    this.#shownAt = performance.now()
  }

  #advance(): void {
    const isOpen = (i: number) => !this.#answered.has(i)
    const chosen = this.#round.findIndex(isOpen)
    if (chosen >= 0) {
      const index = this.#round[chosen]!
      this.#round = this.#round.slice(chosen + 1)
      this.#show(index, this.#fitted > 0 ? 'active' : 'random')
    } else {
      this.#show(this.#shuffled.find(isOpen), 'random')
    }
  }

  #foresee(index: number, label: Label): void {
    const target = targetOf[label]
    if (!this.#ensemble || this.#fitted === 0 || target === null || target === 0.5) return
    const margin = this.#ensemble.margin(this.#differences![index]!)
    this.#foreseen.set(this.comparisons[index]!.id, margin > 0 === (target === 1))
  }

  /** The answers that the heads can learn from, in the order of the log. */
  #known(): { indices: number[]; targets: number[]; labels: number } {
    const known = this.#log.standing.flatMap(({ id, label }) => {
      const index = this.#indexOf.get(id)
      const target = targetOf[label]
      return index === undefined || target === null ? [] : [{ index, target }]
    })
    return {
      indices: known.map(({ index }) => index),
      targets: known.map(({ target }) => target),
      labels: known.length,
    }
  }

  /** Fits the heads where enough has changed since they last were, one fit at a time. */
  #refit(least = REFIT_ANSWERS): void {
    const ensemble = this.#ensemble
    const differences = this.#differences
    if (!ensemble || !differences || this.#fitting || this.#closing.signal.aborted) return
    const { indices, targets, labels } = this.#known()
    if (labels === 0 || Math.abs(labels - this.#fitted) < least) return
    const fit = async () => {
      try {
        await ensemble.fit(
          indices.map((i) => differences[i]!),
          targets,
          this.#closing.signal,
        )
        this.#fitted = labels
        const left = this.#shuffled.filter((i) => !this.#answered.has(i) && i !== this.#current)
        this.#round = chooseRound(
          ensemble,
          left.map((i) => differences[i]!),
          ROUND_PAIRS,
        ).map((k) => left[k]!)
      } catch (error) {
        if (!this.#closing.signal.aborted) throw error
      } finally {
        this.#fitting = undefined
      }
      this.#refit()
      this.#onChange()
    }
    this.#fitting = fit()
  }
}
