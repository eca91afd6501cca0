// LD-DPO (arXiv 2409.06411): tokens beyond the length of the shorter completion count less, for policy and reference.

/** Weights of a completion's tokens: 1 up to the shorter length of its pair, `alpha` beyond. */
export function ldWeights(ownLength: number, otherLength: number, alpha: number): Float32Array {
  return new Float32Array(ownLength).fill(1).fill(alpha, Math.min(ownLength, otherLength))
}
