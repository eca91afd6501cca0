// What a frozen base knows about a completion, as one vector: the ground on which the cheap reward heads of annotation stand
// (linear heads over frozen features, as in Gleave and Irving, "Uncertainty estimation for language reward models", 2022).
// Taken from the lower half of the network: there a state still says what its own token is, while the last states say what
// comes next (Jawahar et al., "What does BERT learn about the structure of language?", 2019), and it costs less than half.
import { packBestFit } from '../../data/index.js'
import { sumOfRows } from '../../inference/embed.js'
import { InferenceSession, packSequences } from '../../inference/session.js'
import type { Precision } from '../../models/graphs.js'
import type { LoadedBase } from '../../models/loaded-base.js'

/** Token ids of a prompt with its completion. */
export interface FeatureDocument {
  readonly inputIds: ArrayLike<number>
  /** Where the completion begins; the tokens before it give context and are not pooled. */
  readonly completionStart: number
}

export interface FeatureOptions {
  /** Numbers of blocks after which states are read. Default: 1 and two fifths of all. */
  readonly depths?: readonly number[] | undefined
  /** Tokens of a pack; at least those of the longest document. Default 2,048: long enough for full speed. */
  readonly packTokens?: number | undefined
  readonly precision?: Precision | undefined
  readonly signal?: AbortSignal | undefined
  /** Documents done and in all; called after every pack. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

export const defaultDepths = (numHiddenLayers: number): number[] => [
  ...new Set([1, Math.max(1, Math.round(0.4 * numHiddenLayers))]),
]

/** The same base, cut after its first blocks; the final norm follows. */
function shallow(base: LoadedBase, depth: number): LoadedBase {
  if (!Number.isInteger(depth) || depth < 1 || depth > base.config.numHiddenLayers)
    throw new Error(`depth ${depth}: this base has ${base.config.numHiddenLayers} blocks`)
  const { runtime, architecture, formats, weightBytes } = base
  const config = { ...base.config, numHiddenLayers: depth }
  return { runtime, architecture, formats, weightBytes, config, leaf: (name) => base.leaf(name), close() {} }
}

/**
 * One vector [depths·D] per document: for every depth the mean of the hidden states of the completion's tokens.
 * A document's vector does not depend on the others.
 * @throws where a document has no completion token or is longer than the base takes
 */
export async function completionFeatures(
  base: LoadedBase,
  documents: readonly FeatureDocument[],
  options: FeatureOptions = {},
): Promise<Float32Array[]> {
  const { hiddenSize, numHiddenLayers } = base.config
  const { depths = defaultDepths(numHiddenLayers), packTokens = 2048, precision = 'fast', signal, onProgress } = options
  const features = documents.map(() => new Float32Array(depths.length * hiddenSize))
  const sessions: InferenceSession[] = []
  try {
    for (const depth of depths) sessions.push(await InferenceSession.open({ base: shallow(base, depth), precision }))
    const maxTokens = sessions[0]?.maxTokens ?? 0
    for (const [i, { inputIds, completionStart }] of documents.entries()) {
      if (completionStart >= inputIds.length) throw new Error(`document ${i + 1} has no completion token`)
      if (inputIds.length > maxTokens)
        throw new Error(`document ${i + 1} has ${inputIds.length} tokens; this base takes ${maxTokens}`)
    }
    const lengths = Int32Array.from(documents, ({ inputIds }) => inputIds.length)
    const longest = lengths.reduce((most, length) => Math.max(most, length), 0)
    const capacity = Math.max(longest, Math.min(packTokens, maxTokens))
    let done = 0
    for (const pack of packBestFit([...documents.keys()], lengths, capacity)) {
      const packed = packSequences(pack.map((i) => documents[i]!.inputIds))
      for (const [k, session] of sessions.entries()) {
        const hidden = await session.hidden(packed, signal) // [N, D]
        for (const [d, i] of pack.entries()) {
          const [from, to] = [packed.cuSeqlens[d]! + documents[i]!.completionStart, packed.cuSeqlens[d + 1]!]
          const sum = sumOfRows(hidden, from, to, hiddenSize)
          const mean = sum.map((x) => x / (to - from))
          features[i]!.set(mean, k * hiddenSize)
        }
      }
      done += pack.length
      onProgress?.(done, documents.length)
    }
    return features
  } finally {
    for (const session of sessions) session.close()
  }
}
