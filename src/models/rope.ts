// Inverse frequencies of the rotary embedding under the scalings of Hugging Face configs (modeling_rope_utils.py).
import type { ModelConfig } from './config.js'

export interface RotaryFrequencies {
  /** [headDim / 2] */
  readonly inverseFrequencies: number[]
  /** Factor on cos and sin. */
  readonly attentionFactor: number
}

/** @throws Error for a scaling type that is not supported */
export function rotaryFrequencies(config: ModelConfig): RotaryFrequencies {
  const base = Array.from({ length: config.headDim / 2 }, (_, i) => config.ropeTheta ** ((-2 * i) / config.headDim))
  const scaling = config.ropeScaling
  if (!scaling) return { inverseFrequencies: base, attentionFactor: 1 }
  switch (scaling.ropeType) {
    case 'linear':
      return { inverseFrequencies: base.map((f) => f / scaling.factor), attentionFactor: 1 }
    case 'llama3': {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings: length } = scaling
      const inverseFrequencies = base.map((frequency) => {
        const wavelength = (2 * Math.PI) / frequency
        if (wavelength < length / highFreqFactor) return frequency
        if (wavelength > length / lowFreqFactor) return frequency / factor
        const smooth = (length / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor)
        return ((1 - smooth) * frequency) / factor + smooth * frequency
      })
      return { inverseFrequencies, attentionFactor: 1 }
    }
  }
}
