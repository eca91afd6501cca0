// Every tensor of the imported base against the reference values: the import changes no value.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { openWeights } from '../../src/models/base-directory.js'
import { referenceBase } from '../models/reference-base.js'
import { goldenDir } from './folder.js'

interface TensorCase {
  name: string
  shape: number[]
  sum: number
  sum_of_squares: number
  first: number[]
  last: number[]
}

const { tensors: cases } = JSON.parse(readFileSync(goldenDir('models/base/tensors.json'), 'utf8')) as {
  tensors: TensorCase[]
}
const config = JSON.parse(readFileSync(goldenDir('models/base/config.json'), 'utf8')) as Record<string, unknown>
const base = await referenceBase('golden tensors')

describe.skipIf(!base)('the imported base', () => {
  it('has the configuration of the reference', () => {
    for (const [key, value] of Object.entries(config)) expect(base!.rawConfig[key], key).toEqual(value)
  })

  it('holds exactly the reference tensors', () => {
    expect(Object.keys(base!.manifest.formats).sort()).toEqual(cases.map(({ name }) => name).sort())
    const weights = openWeights(base!)
    try {
      for (const { name, shape, sum, sum_of_squares, first, last } of cases) {
        expect(base!.manifest.formats[name]!.shape, name).toEqual(shape)
        const values = weights.rows(name)
        let total = 0
        let absolute = 0
        let squares = 0
        for (let i = 0; i < values.length; i++) {
          const value = values[i]!
          total += value
          absolute += Math.abs(value)
          squares += value * value
        }
        expect(Math.abs(total - sum), `${name} sum`).toBeLessThanOrEqual(1e-9 * absolute)
        expect(Math.abs(squares - sum_of_squares), `${name} squares`).toBeLessThanOrEqual(1e-9 * squares)
        expect([...values.subarray(0, first.length)], `${name} first`).toEqual(first)
        expect([...values.subarray(values.length - last.length)], `${name} last`).toEqual(last)
      }
    } finally {
      weights.close()
    }
  })

  it('gives weights that the sums alone would not catch: no matrix was requantized', () => {
    expect(base!.manifest.quantizationError).toEqual({})
  })
})
