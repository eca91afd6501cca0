// Tokenizer and chat template against the reference values of `models/templates`: exact equality of text, ids and masks.
import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { createChatTemplate } from '../../src/data/chat-template.js'
import { baseTokenizer } from '../data/base-tokenizer.js'
import { goldenDir } from './folder.js'

interface TokenizerCase {
  text: string
  ids: number[]
  ids_specials_as_text?: number[]
  decoded?: string
}

interface Conversation {
  name: string
  messages: { role: string; content: string }[]
  add_generation_prompt: boolean
  text: string
  ids: number[]
  assistant_spans: [number, number][]
  assistant_mask: number[]
}

function readCases<T>(name: string): T | undefined {
  const path = goldenDir('models', 'templates', name)
  if (!existsSync(path)) {
    console.warn(`SKIPPED: ${path} is not there`)
    return undefined
  }
  return JSON.parse(readFileSync(path, 'utf8')) as T
}

const tokenizer = await baseTokenizer()
const tokenizerCases = readCases<{ cases: TokenizerCase[] }>('tokenizer.json')
const conversations = readCases<{ chat_template: string; conversations: Conversation[] }>('conversations.json')

describe.skipIf(!tokenizer || !tokenizerCases)('tokenizer of the base', () => {
  it('gives the reference ids for every string', () => {
    for (const { text, ids } of tokenizerCases!.cases) expect([...tokenizer!.encode(text)], text).toEqual(ids)
  })

  it('gives the reference ids where special tokens are plain text', () => {
    for (const { text, ids, ids_specials_as_text: asText } of tokenizerCases!.cases) {
      expect([...tokenizer!.encode(text, { specialsAsText: true })], text).toEqual(asText ?? ids)
    }
  })

  it('decodes to the text, whole and as a stream', () => {
    for (const { text, ids, decoded } of tokenizerCases!.cases) {
      expect(tokenizer!.decode(ids)).toBe(decoded ?? text)
      const stream = tokenizer!.createDecodeStream()
      expect(ids.map((id) => stream.push(id)).join('') + stream.end()).toBe(decoded ?? text)
    }
  })
})

describe.skipIf(!tokenizer || !conversations)('chat template of the base', () => {
  const template = conversations && tokenizer ? createChatTemplate(conversations.chat_template, tokenizer) : undefined

  for (const conversation of conversations?.conversations ?? []) {
    it(`renders, tokenizes and masks ${conversation.name}`, () => {
      const options = { addGenerationPrompt: conversation.add_generation_prompt }
      const rendered = template!.renderMarked(conversation.messages, options)
      expect(rendered.text).toBe(conversation.text)
      expect(template!.render(conversation.messages, options)).toBe(conversation.text)

      // The reference counts code points, we count UTF-16 units.
      const codePoints = (position: number): number => [...rendered.text.slice(0, position)].length
      const spans = rendered.spans.map(([start, end]) => [codePoints(start), codePoints(end)])
      expect(spans).toEqual(conversation.assistant_spans)

      const { ids, trained } = tokenizer!.encodeMarked(rendered.text, rendered.spans)
      expect([...ids]).toEqual(conversation.ids)
      expect([...trained]).toEqual(conversation.assistant_mask)
    })
  }
})
