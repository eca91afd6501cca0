// The space of annotation's features: its components against the eigenvectors of the covariance, and what it must survive.
import { EVD, Matrix } from 'ml-matrix'
import { expect, it } from 'vitest'
import { CounterRandom } from '../../../src/data/index.js'
import { FeatureSpace } from '../../../src/training/annotation/feature-space.js'
import { dot } from '../../../src/training/annotation/vectors.js'

const WIDTH = 12

/** Mixtures of `rank` directions of falling strength, moved off the origin. */
function completions(count: number, rank: number, falloff = 0.6): Float32Array[] {
  const random = new CounterRandom(5, 'completions')
  const normals = (length: number) => Array.from({ length }, () => random.nextNormal())
  const directions = Array.from({ length: rank }, () => normals(WIDTH))
  return Array.from({ length: count }, () => {
    const strengths = normals(rank).map((x, k) => x * falloff ** k)
    return Float32Array.from(
      { length: WIDTH },
      (_, f) => 3 + directions.reduce((sum, d, k) => sum + strengths[k]! * d[f]!, 0),
    )
  })
}
const pairsOf = (features: readonly Float32Array[]) =>
  features.slice(1).map((vector, i) => [features[i]!, vector] as const)

/** Differences as they are before the projection: each feature divided by its deviation and by √F. */
function scaledDifferences(features: readonly Float32Array[]): number[][] {
  const columns = Array.from({ length: WIDTH }, (_, f) => features.map((vector) => vector[f]!))
  const scales = columns.map((column) => {
    const mean = column.reduce((a, b) => a + b) / column.length
    return 1 / Math.sqrt((column.reduce((a, x) => a + (x - mean) ** 2, 0) / column.length) * WIDTH)
  })
  return pairsOf(features).map(([a, b]) => scales.map((scale, f) => (a[f]! - b[f]!) * scale))
}

it('keeps lengths and angles where all directions are kept, and feature scale', async () => {
  const features = completions(300, WIDTH)
  const space = await FeatureSpace.fit(features)
  expect(space.numComponents).toBe(WIDTH)
  const [found, scaled] = [await space.differences(pairsOf(features)), scaledDifferences(features)]
  for (const [i, j] of [
    [0, 0],
    [1, 5],
    [17, 230],
  ] as const)
    expect(dot(found[i]!, found[j]!)).toBeCloseTo(dot(scaled[i]!, scaled[j]!), 5)
})

it('keeps the leading eigenvectors of the covariance', async () => {
  const features = completions(300, WIDTH, 0.3)
  const scaled = scaledDifferences(features)
  const seen: string[] = []
  const space = await FeatureSpace.fit(features, {
    maxComponents: 4,
    onProgress: (done, total) => seen.push(`${done}/${total}`),
  })
  expect(seen.at(-1)).toBe('3/3')
  const found = await space.differences(pairsOf(features))
  // Covariance of the scaled features from all their differences to the first; its leading four eigenvectors, exactly.
  const scaledFeatures = [new Array<number>(WIDTH).fill(0)]
  for (const difference of scaled) scaledFeatures.push(scaledFeatures.at(-1)!.map((x, f) => x - difference[f]!))
  const means = scaledFeatures[0]!.map(
    (_, f) => scaledFeatures.reduce((sum, row) => sum + row[f]!, 0) / scaledFeatures.length,
  )
  const covariance = new Matrix(scaledFeatures.map((row) => row.map((x, f) => x - means[f]!))).gram()
  const leading = new EVD(covariance, { assumeSymmetric: true }).eigenvectorMatrix.subMatrix(
    0,
    WIDTH - 1,
    WIDTH - 4,
    WIDTH - 1,
  )
  for (const i of [0, 50, 200]) {
    const exact = new Matrix([scaled[i]!]).mmul(leading).to1DArray()
    expect(dot(found[i]!, found[i]!) / dot(exact, exact)).toBeCloseTo(1, 2)
  }
})

it('has as many components as completions vary in, none where they are alike', async () => {
  expect((await FeatureSpace.fit(completions(300, 3))).numComponents).toBe(3)
  expect((await FeatureSpace.fit(completions(5, WIDTH))).numComponents).toBeLessThanOrEqual(5)
  const alike = await FeatureSpace.fit([Float32Array.of(1, 2), Float32Array.of(1, 2)])
  expect(alike.numComponents).toBe(0)
  expect(await alike.differences([[Float32Array.of(1, 2), Float32Array.of(3, 4)]])).toEqual([new Float32Array(0)])
  expect((await FeatureSpace.fit([])).numComponents).toBe(0)
})

it('is the same again, and stops when told', async () => {
  const features = completions(100, WIDTH)
  const again = async (seed: number) =>
    (await FeatureSpace.fit(features, { maxComponents: 4, seed })).differences(pairsOf(features))
  expect(await again(1)).toEqual(await again(1))
  const signal = AbortSignal.abort(new Error('enough'))
  await expect(FeatureSpace.fit(features, { signal })).rejects.toThrow('enough')
})
