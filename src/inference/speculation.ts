// How many draft tokens a decode step verifies. A draft is accepted while it equals the token that the model draws at its
// position. The noise of a draw is keyed by seed and position alone, so this gives exactly the tokens of plain decoding;
// for a draft that is a fixed guess it is also the exact acceptance rule of arXiv 2211.17192: x is accepted with p(x),
// else the token is drawn from p without x. Only measured times and acceptance decide whether drafts pay.

/** Medians are taken over so many of the latest steps of each number of rows. */
const timeWindow = 9
/** Counts fade by this factor with every draft, so that acceptance follows the text. */
const memory = 0.97
/** What is believed before anything was counted: this acceptance, with the weight of so many tokens. */
const prior = { acceptance: 0.6, weight: 4 }
/** Cost of a further row before two numbers of rows were measured, as a share of a step: low, so that it is tried. */
const assumedRowCost = 0.05
/** Every way to draft is first tried in short drafts, until so many of their tokens were judged. */
const trial = { tokens: 2, judged: 4 } as const
/** Drafts must promise this much more speed: less is noise. */
const leastGain = 1.02
/** Steps without drafts after which a short one is tried all the same; doubled each time that it does not pay. */
const probing = { first: 32, last: 512, tokens: 3 } as const

export interface Speculation {
  /** Milliseconds of the latest decode steps, by rows. */
  readonly times: Map<number, number[]>
  /** Milliseconds of making one draft token lately, by source and variant. */
  readonly making: Map<string, number[]>
  /** Fading counts of draft tokens, by source and evidence. */
  readonly acceptance: Map<string, { accepted: number; tried: number }>
  /** Steps with a draft at hand that took none of it. */
  idleSteps: number
  probeAfter: number
}

export const createSpeculation = (): Speculation => ({
  times: new Map(),
  making: new Map(),
  acceptance: new Map(),
  idleSteps: 0,
  probeAfter: probing.first,
})

function remember<K>(times: Map<K, number[]>, key: K, milliseconds: number): void {
  const known = times.get(key)
  if (!known) times.set(key, [milliseconds])
  else {
    known.push(milliseconds)
    if (known.length > timeWindow) known.shift()
  }
}

export const recordStep = ({ times }: Speculation, rows: number, milliseconds: number): void =>
  remember(times, rows, milliseconds)

/** Counts the time of making drafts of `tokens` tokens together. */
export const recordMaking = ({ making }: Speculation, key: string, tokens: number, milliseconds: number): void =>
  remember(making, key, milliseconds / tokens)

/** Evidence in steps of half an octave: 2, 3, 4, 6, 8, 12, … */
export const acceptanceKey = (source: string, evidence: number): string =>
  `${source} ${Math.round(2 * Math.log2(Math.max(1, evidence)))}`

/** Counts a draft of `proposed` tokens of which the first `accepted` held; those behind the first wrong one say nothing. */
export function recordDraft({ acceptance }: Speculation, key: string, proposed: number, accepted: number): void {
  const counts = acceptance.get(key) ?? { accepted: 0, tried: 0 }
  const tried = Math.min(proposed, accepted + 1)
  acceptance.set(key, {
    accepted: counts.accepted * memory ** tried + accepted,
    tried: counts.tried * memory ** tried + tried,
  })
}

/** Probability that a draft token holds where those before it did. */
export function expectedAcceptance({ acceptance }: Speculation, key: string): number {
  const { accepted, tried } = acceptance.get(key) ?? { accepted: 0, tried: 0 }
  return (accepted + prior.acceptance * prior.weight) / (tried + prior.weight)
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Milliseconds of a step of so many rows: measured medians, straight lines between them; null: nothing is measured. */
export function stepCost({ times }: Speculation, rows: number): number | null {
  const known = [...times.keys()].sort((a, b) => a - b)
  if (known.length === 0) return null
  const cost = (at: number) => median(times.get(at)!)
  const above = known.find((at) => at >= rows)
  const below = known.findLast((at) => at <= rows)
  if (above === rows) return cost(rows)
  if (below !== undefined && above !== undefined)
    return cost(below) + ((cost(above) - cost(below)) * (rows - below)) / (above - below)
  if (below === undefined) return cost(above!)
  const before = known.at(-2)
  const slope = before === undefined ? assumedRowCost * cost(below) : (cost(below) - cost(before)) / (below - before)
  return cost(below) + Math.max(0, slope) * (rows - below)
}

/** A draft at hand, or one that a source would make. */
export interface DraftOffer {
  readonly length: number
  /** Probability that each token holds where those before it did. */
  readonly acceptance: number
  /** Milliseconds of making one token of it; 0 where it is made already. */
  readonly tokenCost?: number
}

/**
 * How many tokens of each offer to verify: the set with the most expected tokens per millisecond. A further token of a
 * draft is worth the probability that all before it and it hold, so taking tokens by worth takes prefixes.
 * @param sequences rows of the step without drafts
 * @param cost milliseconds of a step by rows
 */
export function chooseDrafts(
  sequences: number,
  offers: readonly DraftOffer[],
  cost: (rows: number) => number,
  maxRows: number,
): number[] {
  return weighDrafts(sequences, offers, cost, maxRows).lengths
}

function weighDrafts(
  sequences: number,
  offers: readonly DraftOffer[],
  cost: (rows: number) => number,
  maxRows: number,
): { lengths: number[]; rate: number } {
  const tokens = offers.flatMap(({ length, acceptance, tokenCost }, offer) =>
    Array.from({ length }, (_, i) => ({ offer, worth: acceptance ** (i + 1), cost: tokenCost ?? 0 })),
  )
  tokens.sort((a, b) => b.worth - a.worth)
  let expected = sequences
  let making = 0
  let best = { rate: (sequences / cost(sequences)) * leastGain, count: 0 }
  for (const [i, token] of tokens.slice(0, Math.max(0, maxRows - sequences)).entries()) {
    expected += token.worth
    making += token.cost
    const rate = expected / (cost(sequences + i + 1) + making)
    if (rate > best.rate) best = { rate, count: i + 1 }
  }
  const lengths = offers.map(() => 0)
  for (const { offer } of tokens.slice(0, best.count)) lengths[offer]!++
  return { lengths, rate: best.rate }
}

/** One way to draft: what it offers to every sequence. */
export interface DraftVariant {
  /** Its acceptance and making are counted by it; null where the drafts are there already. */
  readonly key: string | null
  readonly offers: readonly DraftOffer[]
}

/** How a step drafts: which variant, and how many tokens for every sequence. */
export interface DraftPlan {
  readonly variant: number
  readonly lengths: readonly number[]
}

/**
 * The variant and the lengths that pay best, with a short draft now and then where none pays, so that a change is
 * noticed.
 */
export function planDrafts(
  state: Speculation,
  sequences: number,
  variants: readonly DraftVariant[],
  maxRows: number,
): DraftPlan {
  const none = { variant: 0, lengths: variants[0]!.offers.map(() => 0) }
  const isEmpty = variants.every(({ offers }) => offers.every(({ length }) => length === 0))
  if (stepCost(state, sequences) === null || isEmpty) return none
  const room = Math.max(0, maxRows - sequences)
  const untried = variants.findIndex(
    ({ key }) => key !== null && (state.acceptance.get(key)?.tried ?? 0) < trial.judged,
  )
  if (untried >= 0) return shortDraft(variants, untried, Math.min(room, trial.tokens))
  const weighed = variants.map(({ offers }) =>
    weighDrafts(sequences, offers, (rows) => stepCost(state, rows)!, maxRows),
  )
  const best = weighed.reduce((a, { rate }, i) => (rate > weighed[a]!.rate ? i : a), 0)
  const { lengths } = weighed[best]!
  if (lengths.some((length) => length > 0)) {
    state.idleSteps = 0
    // It pays again: a later pause is probed as soon as the first one.
    state.probeAfter = probing.first
    return { variant: best, lengths }
  }
  state.idleSteps++
  if (state.idleSteps < state.probeAfter) return none
  state.idleSteps = 0
  state.probeAfter = Math.min(probing.last, 2 * state.probeAfter)
  const likeliest = variants.map(({ offers }) => Math.max(...offers.map((o) => (o.length > 0 ? o.acceptance : -1))))
  return shortDraft(variants, likeliest.indexOf(Math.max(...likeliest)), Math.min(room, probing.tokens))
}

/** At most `tokens` of a variant's likeliest offer. */
function shortDraft(variants: readonly DraftVariant[], variant: number, tokens: number): DraftPlan {
  const { offers } = variants[variant]!
  const worth = offers.map(({ length, acceptance }) => (length > 0 ? acceptance : -1))
  const best = worth.indexOf(Math.max(...worth))
  return { variant, lengths: offers.map(({ length }, i) => (i === best ? Math.min(length, tokens) : 0)) }
}

/** Milliseconds of making one token of a draft; 0 before it was measured. */
export function makingCost(state: Speculation, key: string): number {
  const known = state.making.get(key)
  return known ? median(known) : 0
}
