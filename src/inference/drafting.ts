// Speculation at work: asks a source for drafts, as many as pay by what was measured, and learns from what held.
import type { ComputedSource, Draft, DraftRequest, DraftSource, FreeSource } from './drafts/source.js'
import type { Sampling } from './sampling.js'
import { reserveDrafts, type Scheduler, type Sequence } from './scheduler.js'
import {
  acceptanceKey,
  createSpeculation,
  type DraftPlan,
  type DraftVariant,
  expectedAcceptance,
  makingCost,
  planDrafts,
  recordDraft,
  recordMaking,
  recordStep,
  type Speculation,
} from './speculation.js'

/** A sequence that decodes and may have drafts. */
export interface Candidate {
  readonly sequence: Sequence
  readonly sampling: Sampling
}

export interface DraftingOptions {
  /** Draft tokens of one sequence and step. */
  readonly maxTokens: number
  /** False: every draft is verified whole, whether or not it pays. */
  readonly isMeasured: boolean
  /** Carries out the scheduler's moves: a source that writes the cache runs next. */
  move(): void
}

export class Drafting {
  readonly counts = { proposed: 0, accepted: 0 }
  private readonly source: DraftSource
  private readonly scheduler: Scheduler
  private readonly options: DraftingOptions
  private readonly state: Speculation = createSpeculation()
  /** What the acceptance of a sequence's drafts is counted by. */
  private readonly keys = new Map<number, string>()

  constructor(source: DraftSource, scheduler: Scheduler, options: DraftingOptions) {
    this.source = source
    this.scheduler = scheduler
    this.options = options
  }

  /** Gives the candidates the drafts that their next step verifies. */
  async propose(candidates: readonly Candidate[]): Promise<void> {
    if (candidates.length === 0) return
    const { source } = this
    if (source.kind === 'free') this.read(source, candidates)
    else await this.compute(source, candidates)
  }

  private request({ sequence, sampling }: Candidate): DraftRequest {
    const { tokens, maxTokens, blocks, slot } = sequence
    // k drafts give up to k + 1 tokens.
    const max = Math.max(0, Math.min(this.options.maxTokens, maxTokens - tokens.length - 1))
    return { sequence: sequence.id, tokens, max, blocks, slot, sampling }
  }

  private read(source: FreeSource, candidates: readonly Candidate[]): void {
    const drafts = source.propose(candidates.map((candidate) => this.request(candidate)))
    const offers = drafts.map((draft) => ({
      length: draft?.ids.length ?? 0,
      acceptance: draft ? expectedAcceptance(this.state, acceptanceKey(source.name, draft.evidence)) : 0,
    }))
    const { lengths } = this.plan([{ key: null, offers }])
    for (const [i, draft] of drafts.entries()) this.take(candidates[i]!.sequence, draft, lengths[i]!)
  }

  private async compute(source: ComputedSource, candidates: readonly Candidate[]): Promise<void> {
    const requests = candidates.map((candidate) => this.request(candidate))
    const keys = source.variants.map((variant) => acceptanceKey(source.name, variant))
    const { lengths, variant } = this.plan(
      keys.map((key) => {
        const acceptance = expectedAcceptance(this.state, key)
        const tokenCost = makingCost(this.state, key)
        return { key, offers: requests.map(({ max }) => ({ length: max, acceptance, tokenCost })) }
      }),
    )
    const wanted = requests.flatMap((request, i) => {
      const { sequence } = candidates[i]!
      const max = lengths[i]!
      if (max === 0 || (source.writesCache && !reserveDrafts(this.scheduler, sequence, max))) return []
      return { sequence, request: { ...request, max } }
    })
    // Also what a sequence whose reservation failed has moved.
    this.options.move()
    if (wanted.length === 0) return
    const started = performance.now()
    const drafts = await source.propose(
      wanted.map(({ request }) => request),
      source.variants[variant]!,
    )
    const made = drafts.reduce((n, draft) => n + (draft?.ids.length ?? 0), 0)
    if (made > 0) recordMaking(this.state, keys[variant]!, made, performance.now() - started)
    for (const [i, draft] of drafts.entries()) this.take(wanted[i]!.sequence, draft, draft?.ids.length ?? 0)
  }

  private take(sequence: Sequence, draft: Draft | null, length: number): void {
    if (!draft || length === 0) return
    sequence.drafts = draft.ids.slice(0, length)
    this.keys.set(sequence.id, acceptanceKey(this.source.name, draft.evidence))
  }

  /** How many tokens every sequence verifies, within the rows of a run, and which way of drafting pays best. */
  private plan(variants: readonly DraftVariant[]): DraftPlan {
    const { decoding, options } = this.scheduler
    if (this.options.isMeasured) return planDrafts(this.state, decoding.length, variants, options.decodeRows)
    let room = options.decodeRows - decoding.length
    const lengths = variants[0]!.offers.map(({ length }) => {
      const taken = Math.min(length, room)
      room -= taken
      return taken
    })
    return { variant: 0, lengths }
  }

  /** After a decode run. */
  recordStep(rows: number, milliseconds: number): void {
    recordStep(this.state, rows, milliseconds)
  }

  /** After a sequence's drafts were verified. */
  recordDraft(sequence: Sequence, proposed: number, accepted: number): void {
    this.counts.proposed += proposed
    this.counts.accepted += accepted
    recordDraft(this.state, this.keys.get(sequence.id)!, proposed, accepted)
  }

  release(sequence: Sequence): void {
    this.keys.delete(sequence.id)
    this.source.release(sequence.id)
  }

  async close(): Promise<void> {
    await this.source.close?.()
  }
}
