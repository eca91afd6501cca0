// The tokenizer files made from the reference GGUF give the reference ids and template.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { createTokenizer } from '../../src/data/tokenizer.js'
import { goldenDir } from '../golden/folder.js'
import { referenceBase } from './reference-base.js'

const read = <T>(name: string): T => JSON.parse(readFileSync(goldenDir('models/templates', name), 'utf8')) as T
const base = await referenceBase('the tokenizer of the imported base')

describe.skipIf(!base)('tokenizer of the imported base', () => {
  const { cases } = read<{ cases: { text: string; ids: number[] }[] }>('tokenizer.json')

  it('gives the reference ids', () => {
    const tokenizer = createTokenizer(base!.tokenizerJson, base!.tokenizerConfig)
    for (const { text, ids } of cases) expect([...tokenizer.encode(text)], JSON.stringify(text)).toEqual(ids)
  })

  it('carries the chat template', () => {
    expect(base!.tokenizerConfig.chat_template).toBe(
      read<{ chat_template: string }>('conversations.json').chat_template,
    )
  })
})
