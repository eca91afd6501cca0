// Schemas against JSON texts: what fits is allowed to its end, what does not is not.
import { describe, expect, it } from 'vitest'
import { createConstraint } from '../../src/inference/index.js'
import { toyTokenizer } from '../data/toy.js'

/** Whether a text may be written and then end. */
async function takes(schema: Record<string, unknown>, text: string): Promise<boolean> {
  const constraint = await createConstraint(toyTokenizer, { schema })
  try {
    for (const id of toyTokenizer.encode(text)) {
      if (!(constraint.allowed()![id >>> 5]! & (1 << (id & 31)))) return false
      constraint.accept(id)
    }
    const end = toyTokenizer.eosId!
    return Boolean(constraint.allowed()![end >>> 5]! & (1 << (end & 31)))
  } finally {
    constraint.free()
  }
}

const integers = { type: 'array', items: { type: 'integer' } }
const cases: [schema: Record<string, unknown>, good: string[], bad: string[]][] = [
  [{}, ['{"a": [1, null]}', '"x"', '3'], ['{a: 1}', '"']],
  [{ type: 'object' }, ['{}', '{"a": {"b": 1}}'], ['[]', '3']],
  [{ type: 'object', minProperties: 1 }, ['{"a": 1}'], ['{}']],
  [{ type: 'integer', minimum: 3, maximum: 20 }, ['3', '20'], ['2', '21', '3.5']],
  [{ type: 'integer', exclusiveMinimum: 3, exclusiveMaximum: 6 }, ['4', '5'], ['3', '6']],
  [{ type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 1 }, ['0.5', '0.25'], ['0', '1', '-0.5']],
  [{ ...integers, minItems: 2, maxItems: 3 }, ['[1, 2]', '[1, 2, 3]'], ['[1]', '[1, 2, 3, 4]', '["a", 1]']],
  [{ type: ['string', 'null'], maxLength: 2 }, ['"ab"', 'null', '"\\n\\""', '"é"'], ['"abc"', '"\n"', '"""']],
  [{ type: 'string', pattern: '^[^a]+$' }, ['"b"', '"\\\\"'], ['"a"', '"\\"']],
  [{ enum: ['red', 'a"b', 7] }, ['"red"', '"a\\"b"', '7'], ['"blue"', '"a"b"']],
  [
    { type: 'object', properties: { not: { type: 'integer' }, pattern: { type: 'boolean' } }, required: ['not'] },
    ['{"not": 1}', '{"not": 1, "pattern": true}'],
    ['{"pattern": true}', '{"not": 1, "other": 2}'],
  ],
  [
    {
      $ref: '#/$defs/tree',
      $defs: {
        tree: {
          type: 'object',
          properties: { left: { anyOf: [{ $ref: '#/$defs/tree' }, { type: 'null' }] } },
          required: ['left'],
        },
      },
    },
    ['{"left": null}', '{"left": {"left": null}}'],
    ['{"left": 1}', '{}'],
  ],
]

describe('a schema', () => {
  it.each(cases)('%j', async (schema, good, bad) => {
    for (const text of good) expect([text, await takes(schema, text)]).toEqual([text, true])
    for (const text of bad) expect([text, await takes(schema, text)]).toEqual([text, false])
  })

  it.each([
    [{ type: 'integer', multipleOf: 5 }, /multipleOf is not something/],
    [{ type: 'object', properties: { a: { ...integers, uniqueItems: true } } }, /properties\/a\/uniqueItems/],
    [{ not: { type: 'string' } }, /not is not something/],
    [{ allOf: [{ type: 'object' }, { type: 'object' }] }, /allOf/],
  ])('that cannot be kept to is refused: %j', async (schema, message) => {
    await expect(takes(schema, '')).rejects.toThrow(message)
  })
})
