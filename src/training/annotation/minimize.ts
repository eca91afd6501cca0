// Minimum of a smooth convex function by L-BFGS with backtracking (Nocedal and Wright, "Numerical Optimization", algorithm 7.5).

/** Value at `x`; writes the gradient. */
export type Objective = (x: Float64Array, gradient: Float64Array) => number

const MAX_ITERATIONS = 100
/** The search stops where the largest component of the gradient is below it. */
const TOLERANCE = 1e-3
const HISTORY = 8
const SUFFICIENT_DECREASE = 1e-4 // Nocedal and Wright, section 3.1

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

const addScaled = (a: Float64Array, scale: number, b: Float64Array): Float64Array<ArrayBuffer> =>
  Float64Array.from(a, (value, i) => value + scale * b[i]!)

interface Pair {
  readonly step: Float64Array
  readonly change: Float64Array // of the gradient
  readonly curvature: number
}

/** −H·g with H from the last steps (two-loop recursion). */
function direction(gradient: Float64Array, pairs: readonly Pair[]): Float64Array<ArrayBuffer> {
  let d = Float64Array.from(gradient, (g) => -g)
  const alphas = pairs.map(() => 0)
  for (let i = pairs.length - 1; i >= 0; i--) {
    const { step, change, curvature } = pairs[i]!
    alphas[i] = dot(step, d) / curvature
    d = addScaled(d, -alphas[i]!, change)
  }
  const last = pairs.at(-1)
  if (last) {
    const scale = last.curvature / dot(last.change, last.change)
    d = d.map((value) => value * scale)
  }
  for (const [i, { step, change, curvature }] of pairs.entries())
    d = addScaled(d, alphas[i]! - dot(change, d) / curvature, step)
  return d
}

/** The place of the minimum, from `start` on. @throws where the value is not finite */
export function minimize(start: Float64Array, objective: Objective): Float64Array {
  let x = Float64Array.from(start)
  let gradient = new Float64Array(x.length)
  let value = objective(x, gradient)
  if (!Number.isFinite(value)) throw new Error(`the objective is ${value} where the search starts`)
  const pairs: Pair[] = []
  for (let iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
    if (gradient.every((g) => Math.abs(g) <= TOLERANCE)) break
    const d = direction(gradient, pairs)
    const slope = dot(gradient, d)
    // Before there is any curvature a step of length 1 is taken.
    let rate = pairs.length > 0 ? 1 : 1 / Math.max(1, Math.sqrt(dot(gradient, gradient)))
    const nextGradient = new Float64Array(x.length)
    let next = addScaled(x, rate, d)
    let nextValue = objective(next, nextGradient)
    for (let halvings = 0; !(nextValue <= value + SUFFICIENT_DECREASE * rate * slope); halvings++) {
      if (halvings === 30) return x // no lower value to be had in this precision
      rate /= 2
      next = addScaled(x, rate, d)
      nextValue = objective(next, nextGradient)
    }
    const step = addScaled(next, -1, x)
    const change = addScaled(nextGradient, -1, gradient)
    const curvature = dot(step, change)
    if (curvature > 1e-12) {
      pairs.push({ step, change, curvature })
      if (pairs.length > HISTORY) pairs.shift()
    }
    ;[x, gradient, value] = [next, nextGradient, nextValue]
  }
  return x
}
