import type OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import type { LanguageModel } from '../../src/inference/index.js'
import type { RunningServer } from '../../src/inference/server/index.js'
import { clientOf, expectIdle, importTinyChat, openTestModel, openTinyServer, start } from './server-harness.js'

let folder: string
let model: LanguageModel
let server: RunningServer
let client: OpenAI
let close: (() => Promise<void>) | undefined
beforeAll(async () => {
  ;({ folder, model, server, client, close } = await openTinyServer())
})
afterAll(() => close?.())
afterEach(() => expectIdle(model, server))

const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Answer.' }]
const chat = { model: 'tiny', messages, seed: 5, max_tokens: 300 }

describe('a JSON schema', () => {
  const answer = z.object({ colour: z.enum(['red', 'green']), isSure: z.boolean() })
  it('is kept to, whole and streamed', async () => {
    const request = { ...chat, response_format: zodResponseFormat(answer, 'answer') }
    const parsed = await client.chat.completions.parse(request)
    const [choice] = parsed.choices
    expect(choice!.finish_reason).toBe('stop')
    expect(answer.parse(choice!.message.parsed)).toEqual(JSON.parse(choice!.message.content!))
    let streamed = ''
    for await (const { choices } of await client.chat.completions.create({ ...request, stream: true }))
      streamed += choices[0]?.delta.content ?? ''
    expect(streamed).toBe(choices(parsed))
  })
  const choices = (completion: OpenAI.ChatCompletion) => completion.choices[0]!.message.content

  it('is kept to by every choice of its own', async () => {
    const { choices } = await client.chat.completions.create({
      ...chat,
      n: 3,
      response_format: zodResponseFormat(answer, 'answer'),
    })
    for (const { message } of choices) answer.parse(JSON.parse(message.content!))
  })

  it('that is none is refused', async () => {
    const schema = { type: 'no such type' }
    const response_format = { type: 'json_schema' as const, json_schema: { name: 'x', schema } }
    await expect(client.chat.completions.create({ ...chat, response_format })).rejects.toMatchObject({
      status: 400,
      param: 'response_format',
    })
  })

  it('json_object gives an object', async () => {
    // A random model ends no string by itself: quotation marks, braces and the end are made likely
    const likely = Object.fromEntries(['"', '}', '{'].map((text) => [model.tokenizer.encode(text)[0]!, 30]))
    const { choices } = await client.chat.completions.create({
      ...chat,
      logit_bias: likely,
      response_format: { type: 'json_object' },
    })
    expect(choices[0]!.finish_reason).toBe('stop')
    expect(JSON.parse(choices[0]!.message.content!)).toBeTypeOf('object')
  })
})

describe('tools', () => {
  const tool = (name: string, properties: object): OpenAI.ChatCompletionTool => ({
    type: 'function',
    function: {
      name,
      description: `does ${name}`,
      parameters: { type: 'object', properties, required: Object.keys(properties), additionalProperties: false },
    },
  })
  const tools = [tool('paint', { colour: { enum: ['red', 'green'] } }), tool('stop', { now: { type: 'boolean' } })]

  it('are called where they are required, and the result comes back in the prompt', async () => {
    const request = { ...chat, tools, tool_choice: 'required' as const }
    const first = await client.chat.completions.create(request)
    const [choice] = first.choices
    expect(choice).toMatchObject({ finish_reason: 'tool_calls', message: { content: null } })
    const [call] = choice!.message.tool_calls!
    expect(choice!.message.tool_calls).toHaveLength(1)
    expect(call!.id).toMatch(/^call_/)
    if (call!.type !== 'function') throw new Error('not a function')
    expect(['paint', 'stop']).toContain(call!.function.name)
    expect(Object.keys(JSON.parse(call!.function.arguments))).toHaveLength(1)
    const second = await client.chat.completions.create({
      ...chat,
      max_tokens: 4,
      tools,
      messages: [...messages, choice!.message, { role: 'tool', tool_call_id: call!.id, content: 'done' }],
    })
    const rendered = model.template!.render(
      [
        { role: 'user', content: 'Answer.' },
        {
          role: 'assistant',
          content: '',
          tool_calls: [
            {
              id: call!.id,
              type: 'function',
              function: { name: call!.function.name, arguments: JSON.parse(call!.function.arguments) },
            },
          ],
        },
        { role: 'tool', content: 'done', tool_call_id: call!.id },
      ],
      { addGenerationPrompt: true, tools },
    )
    expect(second.usage!.prompt_tokens).toBe(model.tokenizer.encode(rendered).length)
  })

  it('are called by name, streamed the same', async () => {
    const tool_choice = { type: 'function' as const, function: { name: 'stop' } }
    const request = { ...chat, tools, tool_choice }
    const whole = await client.chat.completions.create(request)
    const runner = client.chat.completions.stream(request)
    const streamed = await runner.finalChatCompletion()
    const [call] = streamed.choices[0]!.message.tool_calls!
    expect(streamed.choices[0]!.finish_reason).toBe('tool_calls')
    expect(call).toMatchObject({ type: 'function', function: { name: 'stop' } })
    if (call!.type !== 'function') throw new Error('not a function')
    expect(JSON.parse(call!.function.arguments)).toEqual({ now: expect.any(Boolean) })
    expect(whole.choices[0]!.message.tool_calls).toMatchObject([{ function: call!.function }])
  })

  it('may be left alone', async () => {
    const { choices } = await client.chat.completions.create({ ...chat, tools, max_tokens: 8 })
    expect(choices[0]!.message.tool_calls).toBeUndefined()
    const none = await client.chat.completions.create({ ...chat, tools, tool_choice: 'none', max_tokens: 8 })
    expect(none.usage!.prompt_tokens).toBe(
      (await client.chat.completions.create({ ...chat, max_tokens: 8 })).usage!.prompt_tokens,
    )
  })

  it.each([
    [{ tools: [tools[0], tools[0]] }, 'tools'],
    [{ tools, tool_choice: { type: 'function', function: { name: 'fly' } } }, 'tool_choice'],
    [{ tools, response_format: { type: 'json_object' } }, 'response_format'],
    [{ tools: [{ type: 'custom', custom: { name: 'x' } }] }, 'tools[0]'],
  ])('refuse %j', async (fields, param) => {
    await expect(client.chat.completions.create({ ...chat, ...fields } as never)).rejects.toMatchObject({
      status: 400,
      param: expect.stringContaining(param),
    })
  })
})

it.each([
  ['does not render tools', "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", 'tools'],
  ['is missing', null, 'model'],
])('a template that %s is said to', async (_, template, param) => {
  const other = await openTestModel(await importTinyChat(folder, template))
  const plain = await start(other)
  try {
    const tools = [{ type: 'function' as const, function: { name: 'x' } }]
    const error = await clientOf(plain)
      .chat.completions.create({ ...chat, tools })
      .catch((caught: unknown) => caught)
    expect(error).toMatchObject({ status: 400, param })
    expect((error as Error).message).toContain('chat template')
  } finally {
    await plain.drain()
    await other.close()
  }
})
