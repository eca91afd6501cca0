// From files to token files: every type through every format, counts of what is cut and dropped, the cache's key, and errors that
// name the place.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as arrow from 'apache-arrow'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { expect, it } from 'vitest'
import { createChatTemplate } from '../../src/data/chat-template.js'
import { type PrepareOptions, prepareStore, prepareTokens } from '../../src/data/prepare.js'
import { fileSource, iterableSource } from '../../src/data/row-source.js'
import { ignoreIndex, type Row } from '../../src/data/row-types/row-type.js'
import { createTokenizer } from '../../src/data/tokenizer.js'
import { chatMl, inTemporaryFolder, toyTemplate, toyTokenizer, toyTokenizerJson } from './toy.js'

const options = { tokenizer: toyTokenizer, template: toyTemplate, maxLength: 256 }

function writeJsonl(path: string, rows: unknown[]): string {
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
  return path
}

async function prepareRows(folder: string, rows: unknown[], more: Partial<PrepareOptions> = {}) {
  const source = fileSource(writeJsonl(join(folder, 'rows.jsonl'), rows))
  return prepareStore({ ...options, source, cacheDir: join(folder, 'cache'), ...more })
}

/** Trained parts of a document as text. */
function trainedText(row: { inputIds: Int32Array; labels: Int32Array }): string {
  return toyTokenizer.decode(row.inputIds.filter((_, i) => row.labels[i] !== ignoreIndex))
}

const conversation = {
  messages: [
    { role: 'user', content: 'Hello?' },
    { role: 'assistant', content: 'hello' },
    { role: 'user', content: 'Again' },
    { role: 'assistant', content: '' },
  ],
}

it('encodes each type and marks what is trained', () =>
  inTemporaryFolder(async (folder) => {
    const expectations: [Row[], string[], Partial<PrepareOptions>][] = [
      [[{ text: 'hello' }, { text: 'ü😀' }], ['hello<|im_end|>', 'ü😀<|im_end|>'], {}],
      [[{ prompt: 'hello ', completion: 'world' }], ['world<|im_end|>'], {}],
      [[{ prompt: 'a', completion: 'b<|im_end|>' }], ['b<|im_end|>'], {}],
      [[conversation], ['hello<|im_end|><|im_end|>'], {}],
      [[conversation], ['<|im_end|>'], { assistantTurns: 'last' }],
      [[{ prompt: conversation.messages.slice(0, 3), completion: conversation.messages.slice(3) }], ['<|im_end|>'], {}],
      [[{ inputIds: [3, 4, 5] }], [toyTokenizer.decode([3, 4, 5])], {}],
      [[{ inputIds: [3, 4, 5], labels: [ignoreIndex, 4, 5] }], [toyTokenizer.decode([4, 5])], {}],
    ]
    for (const [rows, texts, more] of expectations) {
      const { store, report } = await prepareRows(folder, rows, more)
      expect(report.rows).toBe(rows.length)
      expect(texts.map((_, i) => trainedText(store.read(i)))).toEqual(texts)
      expect(store.placeOf(0)).toBe(`${join(folder, 'rows.jsonl')}:1`)
      store.close()
    }
  }))

it('puts the tokenizer’s BOS before plain text once, and never before a rendered conversation', () =>
  inTemporaryFolder(async (folder) => {
    const config = { eos_token: '<|im_end|>', bos_token: '<|begin|>', add_bos_token: true }
    const tokenizer = createTokenizer(toyTokenizerJson(), config)
    const template = createChatTemplate(`{{ bos_token }}${chatMl}`, tokenizer)
    const bos = tokenizer.bosId!
    const rows = [{ text: 'ab' }, { text: '<|begin|>ab' }]
    const { store } = await prepareRows(folder, rows, { tokenizer, template })
    for (const row of [0, 1]) expect([...store.read(row).inputIds].filter((id) => id === bos)).toEqual([bos])
    store.close()
    const chat = await prepareRows(folder, [conversation], { tokenizer, template })
    expect([...chat.store.read(0).inputIds].filter((id) => id === bos)).toEqual([bos])
    chat.store.close()
  }))

it('reads the same rows from JSONL, Parquet, Arrow files and Arrow streams', () =>
  inTemporaryFolder(async (folder) => {
    const rows = Array.from({ length: 300 }, (_, i) => ({
      prompt: `question ${i}`,
      completion: `answer ${'x'.repeat(i % 7)}`,
    }))
    const columnData = (['prompt', 'completion'] as const).map((name) => ({
      name,
      data: rows.map((row) => row[name]),
      type: 'STRING' as const,
    }))
    const table = arrow.tableFromArrays({
      prompt: rows.map((row) => row.prompt),
      completion: rows.map((row) => row.completion),
    })
    writeJsonl(join(folder, 'a.jsonl'), rows)
    writeFileSync(join(folder, 'a.parquet'), Buffer.from(parquetWriteBuffer({ columnData, rowGroupSize: [64] })))
    writeFileSync(join(folder, 'a.arrow'), arrow.tableToIPC(table, 'file'))
    writeFileSync(join(folder, 'stream.arrow'), arrow.tableToIPC(table, 'stream'))
    for (const name of ['a.jsonl', 'a.parquet', 'a.arrow', 'stream.arrow']) {
      const seen: unknown[] = []
      for await (const { row } of fileSource(join(folder, name)).rows()) seen.push(row)
      expect(seen, name).toEqual(rows)
    }
  }))

it('leaves null fields of columnar structs out of the rows', () =>
  inTemporaryFolder(async (folder) => {
    const row = {
      messages: [
        { role: 'user', content: 'hi', name: null },
        { role: 'assistant', content: 'yes', name: 'bot' },
      ],
    }
    const plain = {
      messages: [
        { role: 'user', content: 'hi' },
        { role: 'assistant', content: 'yes', name: 'bot' },
      ],
    }
    const item = new arrow.Struct([
      new arrow.Field('role', new arrow.Utf8()),
      new arrow.Field('content', new arrow.Utf8()),
      new arrow.Field('name', new arrow.Utf8(), true),
    ])
    const vector = arrow.vectorFromArray([row.messages], new arrow.List(new arrow.Field('item', item)))
    writeFileSync(join(folder, 'a.arrow'), arrow.tableToIPC(new arrow.Table({ messages: vector }), 'file'))
    for await (const placed of fileSource(join(folder, 'a.arrow')).rows()) expect(placed.row).toEqual(plain)
  }))

it('reads what pyarrow wrote', async () => {
  const read = async (name: string): Promise<unknown[]> => {
    const found: unknown[] = []
    for await (const { row } of fileSource(fileURLToPath(new URL(`files/${name}`, import.meta.url))).rows())
      found.push(row)
    return found
  }
  const messages = Array.from({ length: 60 }, (_, i) => ({
    messages: [
      { role: 'user', content: `question ${i}` },
      i % 7 === 0
        ? { role: 'assistant', tool_calls: [{ name: 'f', n: i }] }
        : { role: 'assistant', content: `answer ${i}` },
    ],
  }))
  for (const name of ['messages-v1.parquet', 'messages-v2.parquet', 'messages-stream.arrow', 'messages-file.arrow']) {
    expect(await read(name), name).toEqual(messages)
  }
  const ids = Array.from({ length: 60 }, (_, i) => ({
    inputIds: Array.from({ length: (i % 50) + 2 }, (_, j) => (j % 40) + 3),
  }))
  expect(
    (await read('ids-delta.parquet')).map((row) => ({
      inputIds: Array.from((row as { inputIds: number[] }).inputIds),
    })),
  ).toEqual(ids)
})

it('writes a file that apache-arrow reads', () =>
  inTemporaryFolder(async (folder) => {
    const rows = Array.from({ length: 5000 }, (_, i) => ({ text: `text ${i}` }))
    const { path, store, report } = await prepareRows(folder, rows)
    const table = arrow.tableFromIPC(readFileSync(path))
    expect(table.numRows).toBe(5000)
    for (const i of [0, 1, 4095, 4096, 4999]) {
      const { inputIds, labels } = store.read(i)
      expect([...table.getChild('inputIds')!.get(i)]).toEqual([...inputIds])
      expect([...table.getChild('labels')!.get(i)]).toEqual([...labels])
      expect(table.getChild('length')!.get(i)).toBe(inputIds.length)
      expect(table.getChild('place')!.get(i)).toBe(store.placeOf(i))
      expect(store.lengths[i]).toBe(inputIds.length)
      expect(store.sourceRow(i)).toBe(i)
    }
    expect(report.tokens).toBe(store.lengths.reduce((sum, length) => sum + length, 0))
    store.close()
  }))

it('finds the file again only where rows, tokenizer, template and options are the same', () =>
  inTemporaryFolder(async (folder) => {
    const keys = new Set<string>()
    const add = async (rows: unknown[], more: Partial<PrepareOptions> = {}): Promise<boolean> => {
      const { key, isCached, store } = await prepareRows(folder, rows, more)
      store.close()
      keys.add(key)
      return isCached
    }
    expect(await add([conversation])).toBe(false)
    expect(await add([conversation])).toBe(true)
    const other = createTokenizer(toyTokenizerJson(['h e']), { eos_token: '<|im_end|>' })
    expect(await add([conversation], { tokenizer: other })).toBe(false)
    expect(await add([conversation], { template: createChatTemplate(`${chatMl} `, toyTokenizer) })).toBe(false)
    expect(await add([conversation], { maxLength: 255 })).toBe(false)
    expect(await add([conversation], { assistantTurns: 'last' })).toBe(false)
    expect(await add([conversation, conversation])).toBe(false)
    expect(keys.size).toBe(6)
    expect(readdirSync(join(folder, 'cache')).filter((name) => !/^[0-9a-f]{64}\.(arrow|json)$/.test(name))).toEqual([])
  }))

it('counts what it cuts, splits and drops', () =>
  inTemporaryFolder(async (folder) => {
    const texts = [{ text: 'x'.repeat(9) }, { text: 'x'.repeat(30) }, { text: '' }]
    const cases: [Partial<PrepareOptions>, number[], object][] = [
      [{ truncation: 'keepStart' }, [10, 16], { truncated: 1, truncatedTokens: 15, dropped: 1, droppedEmpty: 1 }],
      [{ truncation: 'keepEnd' }, [10, 16], { truncated: 1, truncatedTokens: 15, dropped: 1 }],
      [{ truncation: 'split' }, [10, 16, 15], { truncated: 0, split: 1, dropped: 1 }],
      [{ truncation: 'drop' }, [10], { truncated: 0, dropped: 2, droppedTooLong: 1, droppedEmpty: 1 }],
    ]
    for (const [more, lengths, counts] of cases) {
      const { store, report } = await prepareRows(folder, texts, { ...more, maxLength: 16 })
      expect([...store.lengths]).toEqual(lengths)
      expect(report).toMatchObject({ ...counts, sourceRows: 3, rows: lengths.length })
      expect(report.lengthQuantiles).toMatchObject({ min: 10, max: Math.max(...lengths) })
      expect(report.targetTokens).toBe(lengths.reduce((sum, length) => sum + length - 1, 0))
      store.close()
    }
    const rows = [
      { prompt: 'p'.repeat(40), completion: 'c' },
      { prompt: 'p', completion: 'c' },
    ]
    const { report, store } = await prepareRows(folder, rows, { maxLength: 16 })
    expect(report).toMatchObject({ rows: 1, dropped: 1, droppedWithoutTarget: 1, truncated: 0 })
    store.close()
    await expect(prepareRows(folder, texts, { truncation: 'error', maxLength: 16 })).rejects.toThrow(
      /rows\.jsonl:2: has 31 tokens/,
    )
  }))

it('names file, line and remedy for rows that cannot be used', () =>
  inTemporaryFolder(async (folder) => {
    const good = { prompt: 'a', completion: 'b' }
    const cases: [unknown[], RegExp][] = [
      [[good, { prompt: 'a' }], /rows\.jsonl:2: "completion" must be a string/],
      [[good, { prompt: 1, completion: 'b' }], /rows\.jsonl:2: "prompt" must be a string/],
      [[good, { prompt: 'a', completion: '' }], /rows\.jsonl:2: "completion" is empty/],
      [[good, [1]], /rows\.jsonl:2: must be a JSON object/],
      [[{ promt: 'a', completion: 'b' }], /rows\.jsonl:1: .*is "promt" for "prompt"\?/],
      [[{ messages: [] }], /rows\.jsonl:1: "messages" must be a list/],
      [[{ messages: [{ from: 'gpt', value: 'x' }] }], /rows\.jsonl:1: messages\[0\]\.role .*rename "from" to "role"/],
      [[{ messages: [{ role: 'user', content: 'x' }] }], /rows\.jsonl:1: no message has the role "assistant"/],
      [
        [{ messages: [{ role: 'assistant', content: 3 }] }],
        /rows\.jsonl:1: messages\[0\]\.content must be a string, not 3/,
      ],
      [[{ inputIds: [1, 2, 99_999] }], /rows\.jsonl:1: inputIds\[2\] is 99999/],
      [[{ inputIds: [1, 2], labels: [1] }], /rows\.jsonl:1: "labels" has 1 entries/],
      [[{ inputIds: [3, 4], labels: [-100, -100] }], /rows\.jsonl:1: .*0 % of the tokens/],
      [[{ inputIds: [3, 4, 1], labels: [-100, 4, -100] }], /rows\.jsonl:1: .*stop token <\|im_end\|>/],
    ]
    for (const [rows, message] of cases)
      await expect(prepareRows(folder, rows), JSON.stringify(rows)).rejects.toThrow(message)
    writeFileSync(join(folder, 'bad.jsonl'), '{"text":"a"}\n{"text":')
    const source = fileSource(join(folder, 'bad.jsonl'))
    await expect(prepareTokens({ ...options, source, cacheDir: folder })).rejects.toThrow(
      /bad\.jsonl:2: is not valid JSON/,
    )
    writeFileSync(join(folder, 'latin.jsonl'), Buffer.from([0x7b, 0x22, 0xe9, 0x22, 0x3a, 0x31, 0x7d]))
    const latin = fileSource(join(folder, 'latin.jsonl'))
    await expect(prepareTokens({ ...options, source: latin, cacheDir: folder })).rejects.toThrow(
      /latin\.jsonl:1: is not valid UTF-8/,
    )
    expect(() => fileSource(join(folder, 'a.csv'))).toThrow(/names no known format/)
    await expect(prepareTokens({ ...options, source: fileSource('no.jsonl'), cacheDir: folder })).rejects.toThrow(
      /no\.jsonl: cannot be read/,
    )
  }))

it('refuses masks of 0 % and 100 % and an untrained stop token, and shows the row', () =>
  inTemporaryFolder(async (folder) => {
    const withoutEnd = createChatTemplate(
      "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}",
      toyTokenizer,
    )
    await expect(prepareRows(folder, [conversation], { template: withoutEnd })).rejects.toThrow(
      /rows\.jsonl:1: the trained part does not end with a stop token[\s\S]*⟦hello⟧/,
    )
    const generation = createChatTemplate(
      "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
      toyTokenizer,
    )
    await expect(prepareRows(folder, [conversation], { template: generation })).rejects.toThrow(
      /leaves the stop token <\|im_end\|>/,
    )
    const { store } = await prepareRows(folder, [conversation], { template: generation, allowUntrainedStop: true })
    expect(trainedText(store.read(0))).toBe('hello')
    store.close()
    const everything = createChatTemplate(
      "{% generation %}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}{% endgeneration %}",
      toyTokenizer,
    )
    await expect(prepareRows(folder, [conversation], { template: everything })).rejects.toThrow(/100 % of the tokens/)
    const nothing = createChatTemplate(
      "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}{% generation %}{% endgeneration %}",
      toyTokenizer,
    )
    await expect(prepareRows(folder, [conversation], { template: nothing })).rejects.toThrow(/0 % of the tokens/)
    await expect(prepareRows(folder, [{ prompt: 'a', completion: 'b' }], { appendEos: false })).rejects.toThrow(
      /does not end with a stop token/,
    )
  }))

it('takes rows from iterables, renames columns and reports the rest', () =>
  inTemporaryFolder(async (folder) => {
    const cacheDir = join(folder, 'cache')
    async function* rows(): AsyncGenerator<Row> {
      for (let i = 0; i < 600; i++) yield { text: `row ${i}`, extra: i }
    }
    const seen: { done: number; total?: number }[] = []
    const source = iterableSource('generated', rows)
    const { report } = await prepareTokens({
      ...options,
      source,
      cacheDir,
      onProgress: (progress) => seen.push(progress),
    })
    expect(report).toMatchObject({ rows: 600, type: 'language-modelling', ignoredColumns: ['extra'] })
    expect(seen.at(-1)).toEqual({ done: 600, total: 600 })
    writeJsonl(join(folder, 'b.jsonl'), [{ body: 'hello' }])
    const renamed = fileSource(join(folder, 'b.jsonl'), { columns: { text: 'body' } })
    expect((await prepareTokens({ ...options, source: renamed, cacheDir })).report.rows).toBe(1)
    const wrong = fileSource(join(folder, 'b.jsonl'), { columns: { text: 'boddy' } })
    await expect(prepareTokens({ ...options, source: wrong, cacheDir })).rejects.toThrow(
      /b\.jsonl:1: there is no column "boddy" \(is it "body"\?\)/,
    )
    let pass = 0
    const unsteady = iterableSource('unsteady', () => Array.from({ length: ++pass }, () => ({ text: 'ab' })))
    await expect(prepareTokens({ ...options, type: 'language-modelling', source: unsteady, cacheDir })).rejects.toThrow(
      /same rows each time/,
    )
    const aborted = AbortSignal.abort(new Error('stopped'))
    const again = iterableSource('again', rows)
    await expect(prepareTokens({ ...options, source: again, cacheDir, signal: aborted })).rejects.toThrow('stopped')
    expect(readdirSync(cacheDir).filter((name) => name.startsWith('.'))).toEqual([])
  }))
