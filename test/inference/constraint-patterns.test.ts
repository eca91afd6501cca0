import { describe, expect, it } from 'vitest'
import { lengthInJson, patternInJson, patternInText } from '../../src/inference/constraint-patterns.js'

const values = ['', 'a', '"', '\\', 'a"b', 'a\\b', '\n', 'a\tb', 'é', '🌳', 'x y', '-', ']', '7', '\u0001', '/']

describe('patterns of JSON text', () => {
  it.each(['[a-z]+', '.*', '[^"]*', '["\\\\]+', '\\S+', '[ -~]{1,3}', '\\s', 'a"b|\\\\', '[^a]', '\\n', '[\\]/-]'])(
    '/%s/ matches the text of the values that match it',
    (pattern) => {
      const inJson = new RegExp(`^(?:${patternInJson(pattern)})$`, 'u')
      for (const value of values) {
        const text = JSON.stringify(value).slice(1, -1)
        if (text.includes('\\u'))
          expect(text).not.toMatch(inJson) // written differently: left out
        else expect([value, inJson.test(text)]).toEqual([value, new RegExp(`^(?:${pattern})$`, 'u').test(value)])
      }
      // and nothing that JSON cannot hold
      for (const text of ['"', '\\', '\n', 'a"', '\\x']) expect(text).not.toMatch(inJson)
    },
  )

  it('leaves what needs no change as it is', () => {
    expect(patternInJson('^[a-f0-9]{8}-\\d+(?:x|y)?$')).toBe('^[a-f0-9]{8}-\\d+(?:x|y)?$')
  })
})

it('classes that take part of what is beyond ASCII are refused', () => {
  expect(() => patternInText('[\\u4e00-\\u9fff]+')).toThrow(/beyond ASCII: name at most 512/)
  expect(() => patternInText('\\p{L}')).toThrow(/\\p\{L\}/)
  expect(patternInText('[a-zäöü]')).toBe('(?:[\\x61-\\x7a]|ä|ö|ü)')
})

it('lengths count characters of the value, not of its text', () => {
  const expression = new RegExp(lengthInJson(0, 3), 'u')
  for (const text of ['', 'abc', '\\n\\"x', 'é', '🌳']) expect(text).toMatch(expression)
  for (const text of ['abcd', '"', '\\', '\n']) expect(text).not.toMatch(expression)
})
