// Spans of assistant messages: marked by the template, found around the content, or found between prefixes; else an error.
import { expect, it } from 'vitest'
import { type ChatMessage, createChatTemplate } from '../../src/data/chat-template.js'

const tokens = { bosToken: '<s>', eosToken: '</s>', specialTokens: ['<s>', '</s>', '<|end|>'] }
const conversation: ChatMessage[] = [
  { role: 'user', content: 'Hi' },
  { role: 'assistant', content: ' Hello \n' },
  { role: 'user', content: 'Bye' },
  { role: 'assistant', content: 'Bye!' },
]

function marked(source: string, messages = conversation): string[] {
  const { text, spans } = createChatTemplate(source, tokens).renderMarked(messages)
  return spans.map(([start, end]) => text.slice(start, end))
}

it('takes the content and the end token after it', () => {
  const plain = "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|end|>' + '\n' }}{% endfor %}"
  expect(marked(plain)).toEqual([' Hello \n<|end|>', 'Bye!<|end|>'])
  // Llama 2: a space before the end token belongs to it.
  expect(
    marked(
      "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
  ).toEqual([' Hello \n </s>', 'Bye! </s>'])
  expect(marked(plain, [{ role: 'user', content: 'x' }])).toEqual([])
  expect(marked(plain, [{ role: 'assistant', content: '' }])).toEqual(['<|end|>'])
})

it('takes no BOS of the next turn for an end token', () => {
  expect(marked("{% for m in messages %}{{ '<s>' + m.role + ': ' + m.content }}{% endfor %}")).toEqual([
    ' Hello \n',
    'Bye!',
  ])
})

it('follows templates that trim', () => {
  expect(marked("{% for m in messages %}{{ m.role + ':' + (m.content | trim) + '<|end|>' }}{% endfor %}")).toEqual([
    'Hello<|end|>',
    'Bye!<|end|>',
  ])
})

it('follows generation blocks, with their whitespace control', () => {
  const sources = [
    "{% for m in messages %}\n<{{ m.role }}>\n{% if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}<|end|>\n{% endgeneration %}\n{% else %}\n{{ m.content }}<|end|>\n{% endif %}\n{% endfor %}",
    "{%- for m in messages -%}\n<{{ m.role }}>\n{%- if m.role == 'assistant' -%}\n  {%- generation -%}\n  {{ m.content }}<|end|>\n  {%- endgeneration -%}\n{%- else -%}\n{{ m.content }}<|end|>\n{%- endif -%}\n{%- endfor -%}",
  ]
  for (const source of sources) {
    const template = createChatTemplate(source, tokens)
    expect(template.hasGenerationTags).toBe(true)
    const { text, spans, messages } = template.renderMarked(conversation)
    expect(text).toBe(template.render(conversation))
    expect(spans.map(([start, end]) => text.slice(start, end).trim())).toEqual(['Hello \n<|end|>', 'Bye!<|end|>'])
    expect(messages).toEqual([1, 3])
  }
})

it('finds tool calls between prefixes', () => {
  const source =
    "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
  const calls = [{ name: 'f', arguments: { x: 1 } }]
  const found = marked(source, [
    { role: 'user', content: 'x' },
    { role: 'assistant', tool_calls: calls },
    { role: 'user', content: 'y' },
    { role: 'assistant', content: 'z' },
  ])
  expect(found).toEqual(['[{"name": "f", "arguments": {"x": 1}}]<|end|>', 'z<|end|>'])
})

it('finds reworked content between prefixes, and says so where it cannot', () => {
  const upper =
    "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}{{ m.content | upper | replace('\\ufdd0', '') }}{% else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
  expect(marked(upper)).toEqual([' HELLO \n<|end|>', 'BYE!<|end|>'])
  const hidden = "{{ messages | length }}{% for m in messages %}{{ m.content | length }}{{ '<|end|>' }}{% endfor %}"
  expect(() => marked(hidden)).toThrow(/cannot find what the assistant says in messages\[1\][\s\S]*generation/)
})

it('keeps noncharacters of the text apart from its own', () => {
  const plain = "{% for m in messages %}{{ m.content + '<|end|>' }}{% endfor %}"
  expect(marked(plain, [{ role: 'assistant', content: 'a\ufdd0b\ufdd1' }])).toEqual(['a\ufdd0b\ufdd1<|end|>'])
})

it('passes on what a template raises, and its parse errors', () => {
  const strict = createChatTemplate(
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}",
    tokens,
  )
  expect(() => strict.render([{ role: 'system', content: 'x' }])).toThrow(/refuses these messages: user first/)
  expect(() => createChatTemplate('{% for %}', tokens)).toThrow(/does not parse/)
  expect(createChatTemplate('a', tokens).hash).not.toBe(createChatTemplate('b', tokens).hash)
})
