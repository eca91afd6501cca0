// What people preferred: conversations of Anthropic's hh-rlhf (Bai et al., "Training a helpful and harmless assistant with
// reinforcement learning from human feedback", 2022), from the Hugging Face hub. For machines that reach it.
import { readFileSync } from 'node:fs'
import { gunzipSync } from 'node:zlib'
import { type ChatMessage, type Dataset, defineDataset, fetchHubDataset, type Row } from 'espalier'

export interface HhRlhfOptions {
  /** Which part of the set. Default `helpful-base`. */
  part?: 'helpful-base' | 'helpful-online' | 'helpful-rejection-sampled' | 'harmless-base'
  /** The first rows of each split; default all. */
  trainRows?: number
  heldOutRows?: number
}

const maxBytes = 2 ** 30
const roles: Record<string, string> = { Human: 'user', Assistant: 'assistant' }

/** `\n\nHuman: …\n\nAssistant: …` → messages. @throws where it begins otherwise */
export function parseConversation(text: string): ChatMessage[] {
  const parts = text.split(/\n\n(Human|Assistant): ?/)
  if (parts[0] !== '' || parts.length < 3) throw new Error(`is no conversation: ${text.slice(0, 60)}`)
  return Array.from({ length: (parts.length - 1) / 2 }, (_, i) => ({
    role: roles[parts[2 * i + 1]!]!,
    content: parts[2 * i + 2]!.trim(),
  }))
}

/** The pair of a line of the files; undefined where the two sides answer different prompts, or not at all. */
export function pairOf(line: string): Row | undefined {
  const { chosen, rejected } = JSON.parse(line) as { chosen: string; rejected: string }
  const [good, bad] = [parseConversation(chosen), parseConversation(rejected)]
  const [prompt, other] = [good.slice(0, -1), bad.slice(0, -1)]
  const answers = [good.at(-1)!, bad.at(-1)!]
  if (answers.some(({ role, content }) => role !== 'assistant' || content === '')) return undefined
  if (prompt.length === 0 || JSON.stringify(prompt) !== JSON.stringify(other)) return undefined
  return { prompt, chosen: [answers[0]!], rejected: [answers[1]!] }
}

export function createHhRlhf({ part = 'helpful-base', trainRows, heldOutRows }: HhRlhfOptions = {}): Dataset {
  return defineDataset({
    name: `hh-rlhf-${part}`,
    description: 'Two answers of an assistant, the one that a person preferred chosen',
    source: 'Anthropic/hh-rlhf of the Hugging Face hub (Bai et al., arXiv 2204.05862)',
    license: 'MIT, as its card states it',
    type: 'preference',
    async load({ signal, log }) {
      const read = async (split: 'train' | 'test', most?: number): Promise<Row[]> => {
        const path = await fetchHubDataset('Anthropic/hh-rlhf', `${part}/${split}.jsonl.gz`, { signal })
        const text = gunzipSync(readFileSync(path), { maxOutputLength: maxBytes }).toString('utf8')
        const lines = text.split('\n').filter(Boolean)
        const rows = lines.map(pairOf).filter((row) => row !== undefined)
        if (rows.length < lines.length) {
          log(
            `${lines.length - rows.length} of ${lines.length} ${split} pairs answer different prompts and are left out`,
          )
        }
        return rows.slice(0, most)
      }
      return { train: await read('train', trainRows), heldOut: await read('test', heldOutRows) }
    },
  })
}

export default createHhRlhf()
