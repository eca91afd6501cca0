// Arithmetic of vectors that annotation's heads and their space share.

/** Inner product, in float64. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [s0, s1, s2, s3] = [0, 0, 0, 0]
  let i = 0
  for (; i + 3 < a.length; i += 4) {
    s0 += a[i]! * b[i]!
    s1 += a[i + 1]! * b[i + 1]!
    s2 += a[i + 2]! * b[i + 2]!
    s3 += a[i + 3]! * b[i + 3]!
  }
  for (; i < a.length; i++) s0 += a[i]! * b[i]!
  return s0 + s1 + (s2 + s3)
}

/** sum += scale · vector. */
export function addScaled(sum: Float64Array, scale: number, vector: ArrayLike<number>): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += scale * vector[i]!
}
