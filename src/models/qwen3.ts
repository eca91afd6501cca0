// Qwen3: q and k are normalised per head before the rotation; no biases unless the config says so (modeling_qwen3.py).
import { defineArchitecture } from './architecture.js'
import { layerWindow } from './config.js'
import { decoder, decoderLinears } from './layers.js'

export const qwen3 = defineArchitecture({
  modelType: 'qwen3',
  build: (ctx) =>
    decoder(ctx, {
      hasQkNorm: true,
      hasQkvBias: ctx.config.attentionBias,
      hasOutputBias: ctx.config.attentionBias,
      window: (layer) => layerWindow(ctx.config, layer),
    }),
  linears: decoderLinears,
})
