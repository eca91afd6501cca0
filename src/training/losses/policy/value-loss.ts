// The loss of a value model (PPO): squared error to the returns, of the value or of its clipped move, whichever is larger.
import type { Value } from '../../../compiler/graph.js'
import { add, max, scale, square, sub } from '../../../compiler/ops/elementwise.js'
import { clip } from './surrogate.js'

// ½ max((v − R)², (v_old + clip(v − v_old, ± c) − R)²) of each token [M]
export function valueLoss(values: Value, oldValues: Value, returns: Value, clipRange: number): Value {
  const clipped = add(oldValues, clip(sub(values, oldValues), -clipRange, clipRange))
  return scale(max(square(sub(values, returns)), square(sub(clipped, returns))), 0.5)
}
