// Questions with choices, held-out documents and the preview of `espalier plan`.
import { expect, it } from 'vitest'
import { encodeChoices, heldOutDocuments } from '../../src/data/held-out.js'
import { showMarked } from '../../src/data/mask-checks.js'
import { prepareStore } from '../../src/data/prepare.js'
import { previewRows } from '../../src/data/preview.js'
import { RowEncoder } from '../../src/data/row-encoder.js'
import { iterableSource } from '../../src/data/row-source.js'
import { ignoreIndex, type Row } from '../../src/data/row-types/row-type.js'
import { inTemporaryFolder, toyTemplate, toyTokenizer } from './toy.js'

const options = { tokenizer: toyTokenizer, template: toyTemplate, maxLength: 512 }
const ids = (text: string): number[] => [...toyTokenizer.encode(text)]

it('turns a row into a prompt and its choices, tokens as in training', () => {
  const rows: [Row, 'messages' | 'prompt-completion', string][] = [
    [
      {
        messages: [
          { role: 'user', content: 'hello?' },
          { role: 'assistant', content: 'no' },
        ],
      },
      'messages',
      '<|im_start|>user\nhello?<|im_end|>\n<|im_start|>assistant\n',
    ],
    [{ prompt: 'hello? ', completion: 'no' }, 'prompt-completion', 'hello? '],
  ]
  for (const [row, type, prompt] of rows) {
    const encoder = new RowEncoder({ ...options, type })
    const placed = { row, place: 'a.jsonl:3' }
    const found = encodeChoices(encoder, placed, ['yes', 'no'], toyTokenizer, 7)
    expect([...found.prompt]).toEqual(ids(prompt))
    expect(found.choices.map((choice) => [...choice])).toEqual([ids('yes'), ids('no')])
    expect(found).toMatchObject({ answer: 1, row: 7, place: 'a.jsonl:3' })
    // One answer begins with the other: the stop token tells them apart.
    const close = encodeChoices(encoder, placed, ['no', 'not'], toyTokenizer)
    expect(close.choices.map((choice) => [...choice])).toEqual([ids('no<|im_end|>'), ids('not<|im_end|>')])
    expect(() => encodeChoices(encoder, placed, ['yes', 'maybe'], toyTokenizer)).toThrow(
      /a\.jsonl:3: the answer "no" is none of the choices "yes", "maybe"/,
    )
  }
  const encoder = new RowEncoder({ ...options, type: 'language-modelling' })
  expect(() => encodeChoices(encoder, { row: { text: 'x' }, place: 'p' }, ['x'], toyTokenizer)).toThrow(
    /have no answer/,
  )
})

it('aligns the labels of held-out documents', () =>
  inTemporaryFolder(async (folder) => {
    const source = iterableSource('rows', () => [
      { prompt: 'ab', completion: 'c' },
      { prompt: 'x', completion: 'yz' },
    ])
    const { store } = await prepareStore({ ...options, source, cacheDir: folder })
    const documents = heldOutDocuments(store)
    expect(documents.map(({ ids: all }) => toyTokenizer.decode(all))).toEqual(['abc<|im_end|>', 'xyz<|im_end|>'])
    const [c, end] = [ids('c')[0]!, toyTokenizer.eosId!]
    expect([...documents[0]!.labels]).toEqual([ignoreIndex, c, end, ignoreIndex])
    expect(heldOutDocuments(store, 1).length).toBe(1)
    store.close()
  }))

it('previews rows with their trained tokens', () =>
  inTemporaryFolder(async (folder) => {
    const rows = Array.from({ length: 20 }, (_, i) => ({ prompt: `é${i}: `, completion: `w${i}` }))
    const { store } = await prepareStore({ ...options, source: iterableSource('rows', () => rows), cacheDir: folder })
    const preview = previewRows(store, toyTokenizer, { count: 4, seed: 1 })
    expect(preview.length).toBe(4)
    expect(preview[0]).toMatchObject({ place: 'rows row 0', length: 8, numTrained: 3 })
    expect(preview[0]!.runs).toEqual([
      { text: 'é0: ', isTrained: false },
      { text: 'w0<|im_end|>', isTrained: true },
    ])
    expect(preview[0]!.tokens.at(-1)).toEqual({ id: toyTokenizer.eosId, text: '<|im_end|>', trained: true })
    expect(new Set(preview.map(({ place }) => place)).size).toBe(4)
    expect(showMarked(store.read(0), toyTokenizer)).toBe('é0: ⟦w0<|im_end|>⟧')
    expect(previewRows(store, toyTokenizer, { count: 4, seed: 1 })).toEqual(preview)
    expect(previewRows(store, toyTokenizer, { count: 100 }).length).toBe(20)
    store.close()
  }))
