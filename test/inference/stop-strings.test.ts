import { describe, expect, it } from 'vitest'
import { createStopMatcher } from '../../src/inference/stop-strings.js'
import { seeded } from '../training/toy-program.js'

describe('stop strings', () => {
  it('hold back what may become one and give it when it does not', () => {
    const matcher = createStopMatcher(['END', '\n\n'])
    expect(matcher.push('one E')).toBe('one ')
    expect(matcher.push('N')).toBe('')
    expect(matcher.push('ds\n')).toBe('ENds')
    expect(matcher.push('two')).toBe('\ntwo')
    expect(matcher.push('E')).toBe('')
    expect(matcher.end()).toBe('E')
    expect(matcher.isFound).toBe(false)
  })

  it('are found at the first place, whatever the pieces', () => {
    const random = seeded(5)
    const stops = ['abab', 'bb', 'ca']
    for (let round = 0; round < 300; round++) {
      const text = Array.from({ length: 30 }, () => 'abc'[Math.floor(random() * 3)]).join('')
      const places = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0)
      // The stop string that is complete first ends the text; before that nothing of it was given.
      const matcher = createStopMatcher(stops)
      let given = ''
      let taken = 0
      while (taken < text.length && !matcher.isFound) {
        const size = 1 + Math.floor(random() * 3)
        given += matcher.push(text.slice(taken, taken + size))
        taken += size
      }
      if (!matcher.isFound) given += matcher.end()
      expect(matcher.isFound).toBe(places.length > 0)
      if (places.length === 0) expect(given).toBe(text)
      else {
        expect(text.startsWith(given)).toBe(true)
        expect(places).toContain(given.length)
        expect(stops.some((stop) => given.includes(stop))).toBe(false)
      }
    }
  })

  it('refuse an empty one', () => {
    expect(() => createStopMatcher([''])).toThrow(/empty stop string/)
  })
})
