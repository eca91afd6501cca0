// The human preferences that a recipe names: their rows, from files as the hub has them, over a server that plays it.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, beforeEach, expect, it, vi } from 'vitest'
import { createHhRlhf, pairOf, parseConversation } from '../../datasets/hh-rlhf.js'
import type { Row } from '../../src/data/index.js'
import { RowEncoder } from '../../src/data/index.js'
import { fetchHubDataset } from '../../src/models/fetch.js'
import { toyTemplate, toyTokenizer } from './toy.js'

const line = (rejected: string, question = 'Why?') =>
  JSON.stringify({
    chosen: '\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because.',
    rejected: `\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: ${question}\n\nAssistant: ${rejected}`,
  })
const contents: Record<string, Buffer> = {
  'helpful-base/train.jsonl.gz': gzipSync(
    `${line('No.')}\n${line('Other.', 'When?')}\n${line('')}\n${line('Never.')}\n`,
  ),
  'helpful-base/test.jsonl.gz': gzipSync(`${line('Never mind.')}\n`),
}
const revision = 'a'.repeat(40)
let server: Server
let folder: string
let asked: string[]
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-hub-'))
  server = createServer((request, response) => {
    const url = request.url!
    asked.push(url)
    if (url.startsWith('/api/datasets/Anthropic/hh-rlhf/revision/')) {
      const names = [...Object.keys(contents), '../outside']
      const siblings = names.map((rfilename) => ({ rfilename, size: contents[rfilename]?.length }))
      response.end(JSON.stringify({ sha: revision, siblings }))
      return
    }
    const prefix = `/datasets/Anthropic/hh-rlhf/resolve/${revision}/`
    const content = url.startsWith(prefix) ? contents[url.slice(prefix.length)] : undefined
    if (content) response.end(content)
    else response.writeHead(404).end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  vi.stubEnv('HF_ENDPOINT', `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  vi.stubEnv('ESPALIER_CACHE', folder)
})
beforeEach(() => {
  asked = []
})
afterAll(() => {
  vi.unstubAllEnvs()
  server.close()
  rmSync(folder, { recursive: true, force: true })
})

it('reads conversations, and leaves out what is no pair', () => {
  expect(parseConversation('\n\nHuman: A\n\nB: c\n\nAssistant: D')).toEqual([
    { role: 'user', content: 'A\n\nB: c' },
    { role: 'assistant', content: 'D' },
  ])
  expect(() => parseConversation('Human: A')).toThrow(/is no conversation: Human: A/)
  expect(pairOf(line('No.'))).toMatchObject({ chosen: [{ content: 'Because.' }], rejected: [{ content: 'No.' }] })
  expect(pairOf(line('No.', 'When?'))).toBeUndefined()
  expect(pairOf(line(''))).toBeUndefined()
})

it('downloads once, says what it leaves out, and gives rows that a stage takes', async () => {
  const said: string[] = []
  const dataset = createHhRlhf()
  const load = () => dataset.load({ seed: 0, log: (text) => said.push(text) })
  const { train, heldOut } = await load()
  const rows = [...(train as Iterable<Row>), ...(heldOut as Iterable<Row>)]
  expect(rows.map(({ rejected }) => rejected)).toEqual(
    ['No.', 'Never.', 'Never mind.'].map((content) => [{ role: 'assistant', content }]),
  )
  expect(said).toEqual(['2 of 4 train pairs answer different prompts and are left out'])
  const encoder = new RowEncoder({
    type: dataset.type!,
    tokenizer: toyTokenizer,
    template: toyTemplate,
    maxLength: 256,
  })
  for (const row of rows) expect(encoder.encode(row, 'here').documents).toHaveLength(2)
  expect(asked).toHaveLength(4)
  await load()
  expect(asked).toHaveLength(4)
  expect(readdirSync(join(folder, 'hub-datasets')).filter((name) => name.includes('partial'))).toEqual([])
})

it('says what could not be fetched', async () => {
  const fetching = (repo: string, file: string, offline = false) => fetchHubDataset(repo, file, { offline })
  await expect(fetching('Anthropic/hh-rlhf', 'none.gz')).rejects.toThrow(
    /none\.gz of .* there is no none\.gz; there are helpful/,
  )
  await expect(fetching('Anthropic/hh-rlhf', '../outside')).rejects.toThrow(/there is no \.\.\/outside/)
  await expect(fetching('../up/x', 'y')).rejects.toThrow(/no name of a repository/)
  await expect(fetching('Anthropic/other', 'x.gz')).rejects.toThrow(/could not be fetched: .*404/)
  await expect(fetching('Anthropic/hh-rlhf', 'none.gz', true)).rejects.toThrow(/not in the cache/)
})
