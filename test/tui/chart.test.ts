import { expect, it } from 'vitest'
import { bar, drawChart, sparkline } from '../../src/tui/chart.js'

it('draws a line and marks into a range', () => {
  const line = Array.from({ length: 20 }, (_, x) => ({ x, y: 4 - x / 5 }))
  expect(
    drawChart({ width: 28, height: 4, line, marks: [{ x: 10, y: 3.5 }], maxX: 20 }).join('\n'),
  ).toMatchInlineSnapshot(`
    " 4.000 │⠑⠢⠤⢄⡀     ●         
           │    ⠈⠑⠢⠤⢄⡀          
           │         ⠈⠑⠒⠤⣀      
    0.2000 │              ⠉⠒⠒⠤⣀ "
  `)
})

it('draws nothing from nothing, and a flat line from one value', () => {
  expect(drawChart({ width: 20, height: 3, line: [], maxX: 10 })).toEqual(Array(3).fill(' '.repeat(20)))
  expect(drawChart({ width: 20, height: 3, line: [{ x: 0, y: 1 }], maxX: 10 }).join('')).toMatch(/[\u2801-\u28ff]/)
  expect(
    drawChart({ width: 20, height: 3, line: [{ x: 0, y: Number.NaN }], maxX: 10 })
      .join('')
      .trim(),
  ).toBe('')
})

it('keeps a sparkline within its width', () => {
  for (const count of [1, 7, 40, 1000]) {
    const line = sparkline(
      Array.from({ length: count }, (_, i) => Math.sin(i)),
      24,
    )
    expect(line.length).toBeLessThanOrEqual(24)
    expect(line.length).toBeGreaterThanOrEqual(Math.min(24, count))
  }
  expect(sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8)).toBe('▁▂▃▄▅▆▇█')
})

it('draws bars', () => {
  expect(bar(0.5, 12)).toBe('[█████░░░░░]')
  expect(bar(7, 6)).toBe('[████]')
})
