// Preference data: rows become groups of documents that answer the same prompt tokens, stay together through the token file
// and the loader, and are cut or left out with a count.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as arrow from 'apache-arrow'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { expect, it } from 'vitest'
import { TokenFileWriter } from '../../src/data/arrow.js'
import { createChatTemplate } from '../../src/data/chat-template.js'
import { alignLabels, heldOutDocuments, heldOutGroups } from '../../src/data/held-out.js'
import { collate, type LoadedStep, Loader, type LoaderOptions } from '../../src/data/loader.js'
import { type PrepareOptions, prepareStore } from '../../src/data/prepare.js'
import { previewRows } from '../../src/data/preview.js'
import { CounterRandom } from '../../src/data/random.js'
import { RowEncoder } from '../../src/data/row-encoder.js'
import { fileSource, iterableSource } from '../../src/data/row-source.js'
import { detectRowType, type RowTypeName } from '../../src/data/row-types/index.js'
import { type EncodedRow, ignoreIndex, type Row } from '../../src/data/row-types/row-type.js'
import { openTokenStore, type TokenStore } from '../../src/data/token-store.js'
import { createTokenizer } from '../../src/data/tokenizer.js'
import { chatMl, inTemporaryFolder, toyTemplate, toyTokenizer, toyTokenizerJson } from './toy.js'

const options = { tokenizer: toyTokenizer, template: toyTemplate, maxLength: 256 }
const eos = '<|im_end|>'
const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })
const asked = (content: string) => `<|im_start|>user\n${content}${eos}\n<|im_start|>assistant\n`

function prepareRows(folder: string, rows: Row[], more: Partial<PrepareOptions> = {}) {
  const source = iterableSource('pairs', () => rows)
  return prepareStore({ ...options, source, cacheDir: join(folder, 'cache'), ...more })
}

async function withRows(
  rows: Row[],
  more: Partial<PrepareOptions>,
  use: (prepared: Awaited<ReturnType<typeof prepareRows>>) => Promise<void> | void,
): Promise<void> {
  await inTemporaryFolder(async (folder) => {
    const prepared = await prepareRows(folder, rows, more)
    try {
      await use(prepared)
    } finally {
      prepared.store.close()
    }
  })
}

/** A document as the text before its first trained token, and the trained text. */
function parts({ inputIds, labels }: EncodedRow, tokenizer = toyTokenizer): [prompt: string, trained: string] {
  const first = labels.findIndex((label) => label !== ignoreIndex)
  return [
    tokenizer.decode(inputIds.subarray(0, first)),
    tokenizer.decode(inputIds.filter((_, i) => labels[i] !== ignoreIndex)),
  ]
}

const documentsOf = (store: TokenStore) => Array.from({ length: store.numRows }, (_, i) => parts(store.read(i)))
const valuesOf = (store: TokenStore) => Array.from({ length: store.numGroups }, (_, i) => store.valueOf(i))

const errorOf = (use: () => unknown): string => {
  try {
    use()
  } catch (error) {
    return (error as Error).message
  }
  return 'no error'
}

it('encodes pairs of texts and of messages, with a prompt or the one that both sides hold', () => {
  const q = user('Q?')
  const chat = (answer: string) => `${answer}${eos}`
  const cases: [Row, prompt: string, chosen: string, rejected: string, margin?: number][] = [
    [{ prompt: 'Q: ', chosen: 'yes', rejected: 'no' }, 'Q: ', `yes${eos}`, `no${eos}`],
    [{ prompt: 'Q:', chosen: ' yes', rejected: ' yes!', margin: -1.5 }, 'Q:', ` yes${eos}`, ` yes!${eos}`, -1.5],
    [{ prompt: 'Q:', chosen: ' a', rejected: ' b', margin: null }, 'Q:', ` a${eos}`, ` b${eos}`],
    // Cut back to the last white space in common: no word is torn
    [{ chosen: 'Q: is it? yes', rejected: 'Q: is it? yesterday' }, 'Q: is it?', ` yes${eos}`, ` yesterday${eos}`],
    [{ prompt: null, chosen: 'one\n\ntwo', rejected: 'one\n\nten' }, 'one', `\n\ntwo${eos}`, `\n\nten${eos}`],
    [{ prompt: [q], chosen: [assistant('a')], rejected: [assistant('b')] }, asked('Q?'), chat('a'), chat('b')],
    [{ chosen: [q, assistant('a')], rejected: [q, assistant('b')] }, asked('Q?'), chat('a'), chat('b')],
    // Conversations that begin with the prompt, whatever the order of their keys and with columns that say nothing
    [
      {
        prompt: [q],
        chosen: [{ content: 'Q?', role: 'user', tool_calls: null }, assistant('a')],
        rejected: [{ content: 'Q?', role: 'user' }, assistant('b')],
      },
      asked('Q?'),
      chat('a'),
      chat('b'),
    ],
    // The text only repeats what the conversations begin with
    [{ prompt: 'Q?', chosen: [q, assistant('a')], rejected: [q, assistant('b')] }, asked('Q?'), chat('a'), chat('b')],
    // Answers that both sides hold are prompt
    [
      {
        chosen: [q, assistant('so'), user('and?'), assistant('a')],
        rejected: [q, assistant('so'), user('and?'), assistant('b')],
      },
      `${asked('Q?')}so${eos}\n${asked('and?')}`,
      chat('a'),
      chat('b'),
    ],
    // Turns of the user behind the prompt are not trained
    [
      { prompt: [q], chosen: [assistant('a'), user('x'), assistant('c')], rejected: [assistant('b')] },
      asked('Q?'),
      chat('a') + chat('c'),
      chat('b'),
    ],
  ]
  const encoder = new RowEncoder({ ...options, type: 'preference' })
  for (const [row, prompt, chosen, rejected, margin = 0] of cases) {
    const { documents, values, ties, truncatedTokens } = encoder.encode(row, 'row')
    expect(documents.map((document) => parts(document))).toEqual([
      [prompt, chosen],
      [prompt, rejected],
    ])
    expect({ values, ties, truncatedTokens }).toEqual({ values: [margin], ties: 0, truncatedTokens: 0 })
  }
})

it('finds the prompt that two texts hold such that both sides are whole', () => {
  const random = new CounterRandom(4, 'texts')
  const words = ['hello', 'é', '😀', '😁', ' ', '\n', '  ', 'a', 'b', '.']
  const text = (length: number) => Array.from({ length }, () => words[random.nextInt(words.length)]!).join('')
  const encoder = new RowEncoder({ ...options, type: 'preference' })
  for (let i = 0; i < 300; i++) {
    const common = `Q${text(random.nextInt(12))} ${text(random.nextInt(4))}`
    const [chosen, rejected] = [`${common}${text(3)}x`, `${common}${text(3)}y`]
    const { documents } = encoder.encode({ chosen, rejected }, 'row')
    const [left, right] = documents.map((document) => parts(document))
    expect(left!.join('')).toBe(chosen + eos)
    expect(right!.join('')).toBe(rejected + eos)
    expect(left![0]).toBe(right![0])
    expect(left![0]).toMatch(/\S$/)
    for (const completion of [left![1], right![1]]) expect(completion).toMatch(/^\s/)
  }
})

it('hands tools and variables to the template of both sides, and puts the BOS token before both', () => {
  const template = createChatTemplate(
    `{% for tool in tools %}{{ tool.name }};{% endfor %}{{ mood }}${chatMl}`,
    toyTokenizer,
  )
  const tools = [{ name: 'add' }]
  const messages = { prompt: [user('Q')], chosen: [assistant('a')], rejected: [assistant('b')] }
  const scored = { prompt: [user('Q')], completions: [[assistant('a')], [assistant('b')]], scores: [1, 0] }
  const unpaired = { prompt: [user('Q')], completion: [assistant('a')], label: true }
  for (const [type, row] of [
    ['preference', messages],
    ['scored', scored],
    ['unpaired-preference', unpaired],
  ] as const) {
    const encoder = new RowEncoder({ ...options, template, templateVariables: { mood: 'calm' }, type })
    for (const given of [tools, JSON.stringify(tools)]) {
      const { documents } = encoder.encode({ ...row, tools: given }, 'row')
      for (const document of documents) expect(parts(document)[0]).toBe(`add;calm${asked('Q')}`)
    }
    expect(errorOf(() => encoder.encode({ ...row, tools: '{' }, 'f:3'))).toMatch(
      /^f:3: "tools" is a string but not JSON/,
    )
    const bare = new RowEncoder({ ...options, template: undefined, type })
    expect(errorOf(() => bare.encode(row, 'f:3'))).toMatch(
      /^f:3: rows of messages need a chat template.*set `chatTemplate`/,
    )
  }
  const config = { eos_token: eos, bos_token: '<|begin|>', add_bos_token: true }
  const tokenizer = createTokenizer(toyTokenizerJson(), config)
  const encoder = new RowEncoder({ tokenizer, maxLength: 64, type: 'preference' })
  for (const prompt of ['Q', '<|begin|>Q']) {
    const { documents } = encoder.encode({ prompt, chosen: 'a', rejected: 'b' }, 'row')
    for (const { inputIds } of documents) {
      expect(inputIds[0]).toBe(tokenizer.bosId)
      expect(inputIds.filter((id) => id === tokenizer.bosId).length).toBe(1)
    }
  }
})

it('tells the type by the columns, the most telling one first', () => {
  const cases: [string, RowTypeName][] = [
    ['chosen rejected', 'preference'],
    ['prompt chosen rejected margin', 'preference'],
    ['text chosen rejected', 'preference'],
    ['prompt completions scores', 'scored'],
    ['prompt completion', 'prompt-completion'],
    ['prompt completion label', 'unpaired-preference'],
    ['label completion prompt chosen rejected', 'unpaired-preference'],
  ]
  const row = (columns: string) => Object.fromEntries(columns.split(' ').map((column) => [column, 'x']))
  for (const [columns, type] of cases) expect(detectRowType(row(columns), 'f:1'), columns).toBe(type)
  expect(() => detectRowType(row('prompt completion chosen rejected'), 'f:1')).toThrow(
    /^f:1: the columns fit several dataset types \(prompt-completion, preference\); set `type`/,
  )
  expect(() => detectRowType(row('prompt choosen rejected'), 'f:1')).toThrow(
    /^f:1: .*; is "choosen" for "chosen"\?; rename them/,
  )
  expect(() => detectRowType(row('prompt'), 'f:1')).toThrow(
    /^f:1: .*rows of \{prompt\} alone are for stages that sample the answers/,
  )
})

it('names the place and the remedy of rows that cannot be used', () => {
  const q = user('Q')
  const pair = { prompt: 'Q ', chosen: 'a', rejected: 'b' }
  const several = { prompt: 'Q ', completions: ['a', 'b'], scores: [1, 0] }
  const one = { prompt: 'Q ', completion: 'a', label: true }
  const cases: [RowTypeName, unknown, RegExp][] = [
    ['preference', { ...pair, rejected: 'a' }, /are the same, so nothing is preferred; remove the row/],
    ['preference', { chosen: [q, assistant('a')], rejected: [q, assistant('a')] }, /are the same/],
    ['preference', { chosen: 'yes it is', rejected: 'no it is not' }, /no word in common.*give it as "prompt"/],
    ['preference', { chosen: 'yes', rejected: 'yesterday' }, /no word in common.*give it as "prompt"/],
    ['preference', { chosen: ' \n a', rejected: ' \n b' }, /no word in common/],
    [
      'preference',
      { chosen: [user('A'), assistant('a')], rejected: [user('B'), assistant('b')] },
      /no first message in common; give the prompt as "prompt"/,
    ],
    [
      'preference',
      { chosen: [q, assistant('a')], rejected: [q, assistant('a'), user('x'), assistant('b')] },
      /one side has no message of its own.*needs an answer/,
    ],
    // The score of a side is read at its end
    [
      'preference',
      { chosen: [q, assistant('a'), user('x')], rejected: [q, assistant('b')] },
      /last message of "chosen" has the role "user" and must have the role "assistant"; end each side with its answer/,
    ],
    ['preference', { chosen: [q, assistant('a')], rejected: [q] }, /last message of "rejected" has the role "user"/],
    [
      'preference',
      {
        chosen: [q, assistant('s'), user('x'), assistant('a')],
        rejected: [q, assistant('s'), user('y'), assistant('a')],
      },
      /part at messages\[2\] of the role "user", so they answer different prompts/,
    ],
    [
      'preference',
      { prompt: [q], chosen: [assistant('a')], rejected: [{ content: 'a', role: 'assistant', name: null }] },
      /are the same, so nothing is preferred/,
    ],
    ['preference', { ...pair, chosen: '' }, /"chosen" is empty; remove the row/],
    ['preference', { ...pair, rejected: '' }, /"rejected" is empty; remove the row/],
    ['preference', { prompt: [q], chosen: [assistant('a')], rejected: [] }, /"rejected" must be a list of \{role/],
    [
      'preference',
      { ...pair, rejected: undefined },
      /"rejected" must be a string or a list of messages, not undefined/,
    ],
    ['preference', { ...pair, rejected: [assistant('a')] }, /must both be texts, or both lists of messages/],
    ['preference', { ...pair, prompt: [q] }, /"prompt" is a list of messages and "chosen" a text; make both the same/],
    [
      'preference',
      { prompt: [q], chosen: [{ from: 'gpt', value: 'a' }], rejected: [assistant('b')] },
      /chosen\[0\]\.role .*rename "from"/,
    ],
    ['preference', { prompt: [q], chosen: [user('a')], rejected: [assistant('b')] }, /must have the role "assistant"/],
    ['preference', { ...pair, margin: Number.NaN }, /"margin" must be a finite number/],
    ['preference', { ...pair, margin: Number.POSITIVE_INFINITY }, /"margin" must be a finite number/],
    ['preference', { ...pair, margin: '1' }, /"margin" must be a finite number, not "1"/],
    ['preference', [pair], /a row must be an object with "chosen" and "rejected"/],
    ['unpaired-preference', { ...one, label: 'good' }, /"label" must be true \(desirable\) or false, not "good"/],
    ['unpaired-preference', { ...one, label: 2 }, /"label" must be true \(desirable\) or false, not 2/],
    ['unpaired-preference', { ...one, label: null }, /"label" must be true \(desirable\) or false, not null/],
    ['unpaired-preference', { ...one, completion: '' }, /"completion" is empty.*remove the row/],
    ['unpaired-preference', 3, /a row must be an object with "prompt" and "completion" and "label"/],
    ['scored', { ...several, scores: [1] }, /"scores" must be a list of 2 numbers, one for each completion/],
    ['scored', { ...several, scores: [1, 2, 3] }, /"scores" must be a list of 2 numbers/],
    ['scored', { ...several, scores: 1 }, /"scores" must be a list of 2 numbers/],
    ['scored', { ...several, scores: [1, Number.NaN] }, /scores\[1\] must be a finite number/],
    ['scored', { ...several, scores: ['1', 2] }, /scores\[0\] must be a finite number, not "1"/],
    ['scored', { ...several, completions: ['a'], scores: [1] }, /"completions" must be a list of two answers at least/],
    ['scored', { ...several, completions: 'ab' }, /"completions" must be a list of two answers at least, not "ab"/],
    ['scored', { ...several, completions: ['a', ''] }, /"completions\[1\]" is empty; remove the row/],
    ['scored', { ...several, completions: ['a', [assistant('b')]] }, /"completions\[1\]" must be a text/],
    ['scored', { ...several, prompt: [q] }, /"completions\[0\]" must be a list of messages like "prompt", not "a"/],
    [
      'scored',
      { ...several, prompt: [q], completions: [[assistant('a')], [user('b')]] },
      /last message of "completions\[1\]" has the role "user"/,
    ],
    ['scored', { ...several, prompt: 5 }, /"prompt" must be a list of/],
  ]
  for (const [type, row, message] of cases) {
    const found = errorOf(() => new RowEncoder({ ...options, type }).encode(row, 'train.jsonl:7'))
    expect(found).toMatch(/^train\.jsonl:7: /)
    expect(found).toMatch(message)
  }
  expect(() => new RowEncoder({ ...options, type: 'preference', truncation: 'split' })).toThrow(
    /would cut preference rows away from their prompts; use keepStart, keepEnd or drop/,
  )
  const encoder = new RowEncoder({ ...options, type: 'preference' })
  expect(() => encoder.encodeWhole(pair, 'f:1')).toThrow(/f:1: .*not single documents; take a stage/)
})

it('refuses sides that change the tokens of the prompt, and stop tokens that are not trained', () => {
  const encoder = new RowEncoder({ ...options, type: 'preference' })
  // The line break that opens the answer and the one that begins it are one token
  const torn = { prompt: [user('Q')], chosen: [assistant('\n\nhello')], rejected: [assistant('hello')] }
  expect(() => encoder.encode(torn, 'f:2')).toThrow(/^f:2: the prompt becomes other tokens before one answer/)
  const untrained = new RowEncoder({ ...options, type: 'preference', appendEos: false })
  const pair = { prompt: 'Q ', chosen: `a${eos}`, rejected: 'b' }
  expect(() => untrained.encode(pair, 'f:2')).toThrow(/^f:2: the trained part does not end with a stop token[\s\S]*⟦b⟧/)
  const allowed = new RowEncoder({ ...options, type: 'preference', appendEos: false, allowUntrainedStop: true })
  expect(allowed.encode(pair, 'f:2').documents.map((document) => parts(document)[1])).toEqual([`a${eos}`, 'b'])
  // An answer that ends with the stop token gets no second one
  expect(encoder.encode(pair, 'f:2').documents.map((document) => parts(document)[1])).toEqual([`a${eos}`, `b${eos}`])
})

it('makes pairs of scored answers: the best against the worst or every two, and counts ties', async () => {
  const rows = [
    { prompt: 'Q ', completions: ['a', 'b', 'c', 'd'], scores: [2, 5, -1, 2] },
    { prompt: 'R ', completions: ['e', 'f'], scores: [3, 3] },
  ]
  const pair = (better: string, worse: string, prompt = 'Q ') => [
    [prompt, better + eos],
    [prompt, worse + eos],
  ]
  await withRows(rows, {}, ({ store, report }) => {
    expect(documentsOf(store)).toEqual(pair('b', 'c'))
    expect(valuesOf(store)).toEqual([6])
    expect(report).toMatchObject({ type: 'scored', sourceRows: 2, rows: 2, groups: 1, ties: 1, dropped: 0, split: 0 })
  })
  await withRows(rows, { pairs: 'all' }, ({ store, report }) => {
    const order = ['ba', 'bd', 'bc', 'ac', 'dc']
    expect(documentsOf(store)).toEqual(order.flatMap(([better, worse]) => pair(better!, worse!)))
    expect(valuesOf(store)).toEqual([3, 3, 6, 3, 3])
    expect(report).toMatchObject({ rows: 10, groups: 5, ties: 2, dropped: 0, split: 0 })
    expect([0, 4, 9].map((document) => store.sourceRow(document))).toEqual([0, 0, 0])
  })
  const chat = [{ prompt: [user('Q')], completions: [[assistant('a')], [assistant('b')]], scores: [0, 0.5] }]
  await withRows(chat, {}, ({ store }) => {
    expect(documentsOf(store)).toEqual(pair('b', 'a', asked('Q')))
    expect(valuesOf(store)).toEqual([0.5])
  })
  await expect(withRows(rows.slice(1), {}, () => {})).rejects.toThrow(
    /none of its 1 rows can be used: .*1 ties, where neither side is better/,
  )
  // Neither of two equal answers is better, whatever their scores
  const same = [{ prompt: 'Q ', completions: ['a', 'a', 'b'], scores: [3, 2, 1] }]
  await withRows(same, { pairs: 'all' }, ({ store, report }) => {
    expect(documentsOf(store)).toEqual([...pair('a', 'b'), ...pair('a', 'b')])
    expect(report).toMatchObject({ groups: 2, ties: 1 })
  })
})

it('labels single answers', async () => {
  const rows = [
    { prompt: 'Q ', completion: 'a', label: true },
    { prompt: 'Q ', completion: 'b', label: false },
    { prompt: [user('Q')], completion: [assistant('c')], label: 1 },
    { prompt: [user('Q')], completion: [assistant('d')], label: 0 },
  ]
  await withRows(rows, {}, ({ store, report }) => {
    expect(documentsOf(store)).toEqual([
      ['Q ', `a${eos}`],
      ['Q ', `b${eos}`],
      [asked('Q'), `c${eos}`],
      [asked('Q'), `d${eos}`],
    ])
    expect(valuesOf(store)).toEqual([1, 0, 1, 0])
    expect([store.groupSize, store.valueName, store.numGroups]).toEqual([1, 'label', 4])
    expect(report).toMatchObject({ type: 'unpaired-preference', groups: 4, ties: 0, ignoredColumns: [] })
    expect(report.meanLengths).toEqual([report.tokens / 4])
  })
})

it('reads integers and lists of columnar files as it reads JSON', () =>
  inTemporaryFolder(async (folder) => {
    const table = new arrow.Table({
      prompt: arrow.vectorFromArray(['Q '], new arrow.Utf8()),
      completions: arrow.vectorFromArray([['a', 'b']], new arrow.List(new arrow.Field('item', new arrow.Utf8()))),
      scores: arrow.vectorFromArray([[1n, 4n]], new arrow.List(new arrow.Field('item', new arrow.Int64()))),
    })
    writeFileSync(join(folder, 'scored.arrow'), arrow.tableToIPC(table, 'file'))
    const columnData = [
      { name: 'prompt', data: ['Q ', 'Q '], type: 'STRING' as const },
      { name: 'completion', data: ['a', 'b'], type: 'STRING' as const },
      { name: 'label', data: [1n, 0n], type: 'INT64' as const },
    ]
    writeFileSync(join(folder, 'labels.parquet'), Buffer.from(parquetWriteBuffer({ columnData })))
    for (const [name, values] of [
      ['scored.arrow', [3]],
      ['labels.parquet', [1, 0]],
    ] as const) {
      const source = fileSource(join(folder, name))
      const { store } = await prepareStore({ ...options, source, cacheDir: join(folder, 'cache') })
      expect(valuesOf(store), name).toEqual(values)
      store.close()
    }
  }))

it('cuts both sides alike, or leaves the pair out, and counts it', async () => {
  // 8 + 6 and 8 + 3 tokens; the second row fits
  const rows = [
    { prompt: '12345678', chosen: 'ccccc', rejected: 'rr', margin: 2 },
    { prompt: 'Q', chosen: 'c', rejected: 'r', margin: 3 },
  ]
  const short = [
    ['Q', `c${eos}`],
    ['Q', `r${eos}`],
  ]
  await withRows(rows, { maxLength: 10 }, ({ store, report }) => {
    expect(documentsOf(store)).toEqual([['12345678', 'cc'], ['12345678', 'rr'], ...short])
    expect(report).toMatchObject({ sourceRows: 2, rows: 4, groups: 2, truncated: 1, truncatedTokens: 5, dropped: 0 })
    expect(report).toMatchObject({ tokens: 26, targetTokens: 8, maskedTokens: 18, meanLengths: [13 / 2, 13 / 2] })
  })
  await withRows(rows, { maxLength: 10, truncation: 'keepEnd' }, ({ store, report }) => {
    expect(documentsOf(store)).toEqual([['5678', `ccccc${eos}`], ['5678', `rr${eos}`], ...short])
    expect(report).toMatchObject({ groups: 2, truncated: 1, truncatedTokens: 8, dropped: 0, meanLengths: [6.5, 5] })
  })
  await withRows(rows, { maxLength: 10, truncation: 'drop' }, ({ store, report }) => {
    expect(documentsOf(store)).toEqual(short)
    expect(valuesOf(store)).toEqual([3])
    expect(store.sourceRow(0)).toBe(1)
    expect(report).toMatchObject({ groups: 1, truncated: 0, truncatedTokens: 0, dropped: 1, droppedTooLong: 1 })
  })
  for (const row of [rows[0]!, { ...rows[0]!, chosen: rows[0]!.rejected, rejected: rows[0]!.chosen }]) {
    await expect(withRows([row], { maxLength: 10, truncation: 'error' }, () => {})).rejects.toThrow(
      /^pairs row 0: has 14 tokens and maxLength is 10; raise it, or set `truncation`/,
    )
  }
})

it('leaves out pairs that cutting takes the prompt or an answer from', async () => {
  const fits = { prompt: 'Q', chosen: 'c', rejected: 'r' }
  const cases: [Row, Partial<PrepareOptions>, object][] = [
    // Nothing of the answers is within the limit
    [{ prompt: 'p'.repeat(12), chosen: 'a', rejected: 'b' }, {}, { dropped: 1, droppedWithoutTarget: 1 }],
    // The whole prompt would fall away: 4 of 4 tokens, then more
    [{ prompt: 'pppp', chosen: 'c'.repeat(9), rejected: 'r' }, { truncation: 'keepEnd' }, { droppedWithoutTarget: 1 }],
    [{ prompt: 'pppp', chosen: 'c', rejected: 'r'.repeat(20) }, { truncation: 'keepEnd' }, { droppedWithoutTarget: 1 }],
    // Both sides begin with the same words and differ behind the limit only
    [{ prompt: 'pp', chosen: 'the same words a', rejected: 'the same words b' }, {}, { ties: 1, dropped: 0 }],
  ]
  for (const [row, more, counts] of cases) {
    await withRows([row, fits], { maxLength: 10, ...more }, ({ store, report }) => {
      expect(report).toMatchObject({ sourceRows: 2, groups: 1, truncated: 0, truncatedTokens: 0, ...counts })
      expect(store.sourceRow(0)).toBe(1)
    })
    await expect(withRows([row], { maxLength: 10, ...more }, () => {})).rejects.toThrow(
      /none of its 1 rows can be used/,
    )
  }
  // 3 of 4 prompt tokens fall away: one is left to answer
  const row = { prompt: 'pppq', chosen: 'c'.repeat(8), rejected: 'r' }
  await withRows([row], { maxLength: 10, truncation: 'keepEnd' }, ({ store }) =>
    expect(documentsOf(store)).toEqual([
      ['q', `cccccccc${eos}`],
      ['q', `r${eos}`],
    ]),
  )
  // Of a row that makes several pairs each one that is left out counts
  const scored = { prompt: 'Q', completions: ['a', 'b', 'c'.repeat(20)], scores: [3, 2, 1] }
  await withRows([scored], { pairs: 'all', maxLength: 10, truncation: 'drop' }, ({ report }) =>
    expect(report).toMatchObject({ sourceRows: 1, groups: 1, dropped: 2, droppedTooLong: 2 }),
  )
})

/** Pairs of random lengths; chosen answers are of "c", rejected ones of "r", the margin is the number of the pair. */
function randomPairs(count: number): Row[] {
  const random = new CounterRandom(1, 'pairs')
  const some = (letter: string, most: number) => letter.repeat(1 + random.nextInt(most))
  return Array.from({ length: count }, (_, i) => ({
    prompt: `${i}:${some('p', 20)}`,
    chosen: some('c', 30),
    rejected: some('r', 30),
    margin: i,
  }))
}

it('gives back from the file what was written, over many record batches', async () => {
  const rows = randomPairs(3001)
  await withRows(rows, { maxLength: 64 }, ({ store, report, path }) => {
    expect([store.groupSize, store.valueName, store.numGroups, store.numRows]).toEqual([2, 'margin', 3001, 6002])
    expect(valuesOf(store)).toEqual([...rows.keys()])
    for (const [i, { prompt, chosen, rejected }] of rows.entries()) {
      const [left, right] = [store.read(2 * i), store.read(2 * i + 1)]
      expect(parts(left)).toEqual([prompt, `${chosen}${eos}`])
      expect(parts(right)).toEqual([prompt, `${rejected}${eos}`])
      for (const document of [2 * i, 2 * i + 1]) {
        expect(store.sourceRow(document)).toBe(i)
        expect(store.placeOf(document)).toBe(`pairs row ${i}`)
      }
    }
    const mean = (side: number) => rows.reduce((sum, _, i) => sum + store.lengths[2 * i + side]!, 0) / rows.length
    expect(report.meanLengths).toEqual([mean(0), mean(1)])
    expect(report).toMatchObject({ rows: 6002, groups: 3001, ties: 0 })
    expect(() => store.valueOf(3001)).toThrow(RangeError)
    expect(path).toBe(store.path)
  })
})

it('keeps a file apart by how its pairs are made, and finds its report again', () =>
  inTemporaryFolder(async (folder) => {
    const rows = [{ prompt: 'Q ', completions: ['a', 'b', 'c'], scores: [1, 2, 3] }]
    const first = await prepareRows(folder, rows)
    const again = await prepareRows(folder, rows)
    const every = await prepareRows(folder, rows, { pairs: 'all' })
    expect([first, again, every].map(({ isCached }) => isCached)).toEqual([false, true, false])
    expect(again.report).toEqual(first.report)
    expect(valuesOf(again.store)).toEqual([2])
    expect(valuesOf(every.store)).toEqual([1, 2, 1])
    for (const { store } of [first, again, every]) store.close()
  }))

it('refuses token files that lack the value column, end inside a group or are cut off', () =>
  inTemporaryFolder(async (folder) => {
    const write = (name: string, numRows: number, metadata: Record<string, string>, hasValues: boolean): string => {
      const path = join(folder, name)
      const writer = new TokenFileWriter(path, metadata, hasValues)
      const values = hasValues ? { values: new Float64Array(numRows).fill(0.5) } : {}
      writer.write({
        numRows,
        offsets: Int32Array.from({ length: numRows + 1 }, (_, i) => 2 * i),
        inputIds: new Int32Array(2 * numRows).fill(5),
        labels: new Int32Array(2 * numRows).fill(5),
        rows: new Int32Array(numRows),
        places: Buffer.from('x'.repeat(numRows)),
        placeOffsets: Int32Array.from({ length: numRows + 1 }, (_, i) => i),
        ...values,
      })
      writer.close()
      return path
    }
    const pairs = { groupSize: '2', valueName: 'margin' }
    const good = await openTokenStore(write('good.arrow', 4, pairs, true))
    expect(valuesOf(good)).toEqual([0.5, 0.5])
    good.close()
    const plain = await openTokenStore(write('plain.arrow', 3, {}, false))
    expect([plain.groupSize, plain.valueName, plain.numGroups]).toEqual([1, undefined, 3])
    expect(plain.valueOf(0)).toBeNaN()
    plain.close()
    const cases: [string, RegExp][] = [
      [
        write('values.arrow', 4, pairs, false),
        /values\.arrow: lacks its column of margin; delete it and it will be made/,
      ],
      [
        write('odd.arrow', 3, pairs, true),
        /odd\.arrow: ends inside a group of documents; delete it and it will be made/,
      ],
      [write('size.arrow', 4, { ...pairs, groupSize: 'x' }, true), /size\.arrow: ends inside a group/],
    ]
    for (const [path, message] of cases) await expect(openTokenStore(path)).rejects.toThrow(message)
  }))

it('makes a file again that was cut off, and refuses to open it', () =>
  inTemporaryFolder(async (folder) => {
    const rows = randomPairs(20)
    const { path, store } = await prepareRows(folder, rows)
    store.close()
    const bytes = readFileSync(path)
    for (let end = 0; end < bytes.length; end += 97) {
      writeFileSync(path, bytes.subarray(0, end))
      await expect(openTokenStore(path), String(end)).rejects.toThrow(/delete it and it will be made again/)
    }
    const again = await prepareRows(folder, rows)
    expect(again.isCached).toBe(false)
    expect(valuesOf(again.store)).toEqual([...rows.keys()])
    again.store.close()
  }))

const maxLength = 64

async function all(given: LoaderOptions): Promise<LoadedStep[]> {
  const steps: LoadedStep[] = []
  for await (const step of new Loader(given)) steps.push(step)
  return steps
}

const groupsOf = (steps: LoadedStep[]) =>
  steps.flatMap(({ microBatches }) => microBatches.flatMap(({ groups }) => groups!))

it('never separates pairs: chosen first, each once per epoch, packed or not', () =>
  withRows(randomPairs(151), { maxLength }, async ({ store }) => {
    const everyGroup = Array.from({ length: 151 }, (_, i) => i)
    const longestPair = Math.max(...everyGroup.map((i) => store.lengths[2 * i]! + store.lengths[2 * i + 1]!))
    expect(longestPair).toBeGreaterThan(maxLength)
    for (const packing of [false, true]) {
      for (const curriculum of [undefined, { startLength: 24, fraction: 0.5 }]) {
        const given = { store, seed: 5, maxLength, packing, microBatchSize: 2, gradientAccumulationSteps: 3, epochs: 2 }
        const steps = await all({ ...given, curriculum })
        const { maxTokens, totalSteps } = new Loader({ ...given, curriculum })
        expect(maxTokens).toBe(2 * (packing ? 2 * maxLength : longestPair))
        expect(steps.length).toBe(totalSteps)
        for (const { inputIds, cuSeqlens, documents, groups, numbers, labels } of steps.flatMap(
          (s) => s.microBatches,
        )) {
          if (!packing) expect(groups!.length).toBeLessThanOrEqual(2)
          expect(documents).toEqual(groups!.flatMap((group) => [2 * group, 2 * group + 1]))
          expect(numbers).toEqual({ margin: groups! })
          expect(inputIds.length).toBeLessThanOrEqual(maxTokens)
          for (const [i, document] of documents.entries()) {
            const [start, end] = [cuSeqlens[i]!, cuSeqlens[i + 1]!]
            const stored = store.read(document)
            expect(inputIds.subarray(start, end)).toEqual(stored.inputIds)
            expect(labels.subarray(start, end)).toEqual(alignLabels(stored.labels))
            expect(parts(stored)[1]).toMatch(i % 2 === 0 ? /^c+</ : /^r+</)
          }
        }
        const epochs = [steps.filter(({ epoch }) => epoch <= 1), steps.filter(({ epoch }) => epoch > 1)].map(groupsOf)
        for (const order of epochs) expect([...order].sort((a, b) => a - b)).toEqual(everyGroup)
        expect(epochs[0]).not.toEqual(epochs[1])
        expect(await all({ ...given, curriculum })).toEqual(steps)
        expect(groupsOf(await all({ ...given, seed: 6, curriculum }))).not.toEqual(groupsOf(steps))
      }
    }
    const inOrder = await all({ store, seed: 1, maxLength, shuffle: false })
    expect(groupsOf(inOrder)).toEqual(everyGroup)
    expect(() => new Loader({ store, seed: 1, maxLength: 20 })).toThrow(/longest document has \d+ tokens/)
  }))

it('packs pairs into twice the length of a document, and counts pairs else', () =>
  withRows(randomPairs(200), { maxLength }, async ({ store }) => {
    const packed = await all({ store, seed: 3, maxLength, packing: true })
    const sizes = packed.map(({ inputTokens }) => inputTokens)
    expect(Math.max(...sizes)).toBeLessThanOrEqual(2 * maxLength)
    const total = sizes.reduce((sum, size) => sum + size, 0)
    expect(total).toBe(store.lengths.reduce((sum, length) => sum + length, 0))
    expect(total / (packed.length * 2 * maxLength)).toBeGreaterThan(0.85)
    expect(packed.some(({ microBatches }) => microBatches[0]!.groups!.length > 1)).toBe(true)
    const counted = await all({ store, seed: 3, maxLength, microBatchSize: 3, gradientAccumulationSteps: 2 })
    expect(counted.length).toBe(Math.ceil(200 / 6))
    for (const { microBatches } of counted.slice(0, -1))
      expect(microBatches.map(({ groups, documents }) => [groups!.length, documents.length])).toEqual([
        [3, 6],
        [3, 6],
      ])
    expect(counted.at(-1)!.microBatches.map(({ groups }) => groups!.length)).toEqual([2])
    const full = await all({
      store,
      seed: 3,
      maxLength,
      microBatchSize: 3,
      gradientAccumulationSteps: 2,
      dropLast: true,
    })
    expect(full.length).toBe(33)
  }))

it('continues pairs from a saved state bit for bit', () =>
  withRows(randomPairs(61), { maxLength }, async ({ store }) => {
    for (const packing of [false, true]) {
      const given = { store, seed: 9, maxLength, packing, microBatchSize: 2, gradientAccumulationSteps: 2, epochs: 2.5 }
      const whole = await all(given)
      for (const stop of [0, 1, whole.length >> 1, whole.length - 1, whole.length]) {
        const first = new Loader(given)
        for (let i = 0; i < stop; i++) await first.next()
        const second = new Loader(given)
        second.setState(JSON.parse(JSON.stringify(first.getState())))
        const rest = []
        for await (const step of second) rest.push(step)
        expect(rest).toEqual(whole.slice(stop))
      }
      const state = new Loader(given).getState()
      expect(() => new Loader({ ...given, microBatchSize: 1 }).setState(state)).toThrow(/not those of the checkpoint/)
    }
  }))

it('gives labels of single answers with each batch, and no groups of other rows', async () => {
  const rows = Array.from({ length: 9 }, (_, i) => ({ prompt: `${i} `, completion: 'a', label: i % 3 === 0 }))
  await withRows(rows, {}, async ({ store }) => {
    const steps = await all({ store, seed: 2, maxLength: 256, microBatchSize: 4 })
    for (const { documents, groups, numbers } of steps.flatMap(({ microBatches }) => microBatches)) {
      expect(documents).toEqual(groups)
      expect(numbers).toEqual({ label: groups!.map((group) => Number(group % 3 === 0)) })
    }
    expect(groupsOf(steps).sort()).toEqual([...rows.keys()])
  })
  await withRows([{ text: 'hello' }], {}, ({ store, report }) => {
    const batch = collate(store, [0])
    expect([batch.groups, batch.numbers]).toEqual([undefined, undefined])
    expect([report.groups, report.ties, report.meanLengths]).toEqual([undefined, undefined, undefined])
  })
})

it('holds out whole groups with their numbers', async () => {
  await withRows(randomPairs(5), {}, ({ store }) => {
    const groups = heldOutGroups(store)
    expect(groups.length).toBe(5)
    for (const [i, { documents, numbers }] of groups.entries()) {
      expect(numbers).toEqual({ margin: i })
      expect(documents.map(({ row }) => row)).toEqual([2 * i, 2 * i + 1])
      for (const { ids, labels, row } of documents) {
        const stored = store.read(row)
        expect(ids).toEqual(stored.inputIds)
        expect(labels).toEqual(alignLabels(stored.labels))
      }
    }
    expect(heldOutGroups(store, 2)).toEqual(groups.slice(0, 2))
    expect(heldOutGroups(store, 99)).toEqual(groups)
  })
  await withRows([{ prompt: 'Q ', completion: 'a', label: false }], {}, ({ store }) =>
    expect(heldOutGroups(store)).toEqual([{ documents: heldOutDocuments(store), numbers: { label: 0 } }]),
  )
  await withRows([{ text: 'hello' }], {}, ({ store }) =>
    expect(heldOutGroups(store)).toEqual([{ documents: heldOutDocuments(store), numbers: {} }]),
  )
})

it('previews both sides of a pair, one after the other, with their place and number', async () => {
  const sideOf = ({ place }: { place: string }) => /^pairs row (\d+) \((chosen|rejected), margin \1\)$/.exec(place)
  await withRows(randomPairs(20), {}, ({ store }) => {
    const preview = previewRows(store, toyTokenizer, { count: 4, seed: 1 })
    expect(preview.map((row) => sideOf(row)?.[2])).toEqual(Array(4).fill(['chosen', 'rejected']).flat())
    expect(preview.map((row) => sideOf(row)?.[1]).slice(0, 2)).toEqual(['0', '0'])
    expect(new Set(preview.map((row) => sideOf(row)?.[1])).size).toBe(4)
    for (let i = 0; i < preview.length; i += 2) {
      const [chosen, rejected] = [preview[i]!, preview[i + 1]!]
      expect(sideOf(chosen)![1]).toBe(sideOf(rejected)![1])
      expect(chosen.runs[0]).toEqual(rejected.runs[0])
      expect([chosen.runs[1]!.text, rejected.runs[1]!.text].map((text) => text[0])).toEqual(['c', 'r'])
    }
    expect(previewRows(store, toyTokenizer, { count: 99 }).length).toBe(40)
  })
  await withRows([{ prompt: 'Q ', completion: 'a', label: true }], {}, ({ store }) =>
    expect(previewRows(store, toyTokenizer).map(({ place }) => place)).toEqual(['pairs row 0 (label 1)']),
  )
})
