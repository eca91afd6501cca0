// A byte-level tokenizer with three special tokens, a ChatML template and temporary folders, for tests without a base.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createChatTemplate } from '../../src/data/chat-template.js'
import { createTokenizer } from '../../src/data/tokenizer.js'

function byteAlphabet(): string[] {
  const chars: string[] = []
  let shifted = 0
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    chars.push(String.fromCharCode(isPrintable ? byte : 256 + shifted++))
  }
  return chars
}

const specials = ['<|im_start|>', '<|im_end|>', '<|begin|>']
const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }

export function toyTokenizerJson(merges: string[] = []): { [key: string]: unknown } {
  const tokens = [...specials, ...byteAlphabet(), ...merges.map((merge) => merge.replace(' ', ''))]
  return {
    version: '1.0',
    added_tokens: specials.map((content, id) => ({ id, content, special: true, normalized: false })),
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] },
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', unk_token: null, vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges },
  }
}

export const chatMl =
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

export const toyTokenizer = createTokenizer(toyTokenizerJson(['h e', 'l l', 'he ll', 'Ċ Ċ']), {
  eos_token: '<|im_end|>',
  bos_token: '<|begin|>',
})
export const toyTemplate = createChatTemplate(chatMl, toyTokenizer)

/** A folder that is removed when `use` is done. */
export async function inTemporaryFolder<T>(use: (folder: string) => Promise<T> | T): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-data-'))
  try {
    return await use(folder)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
