// Llama 2 and 3, SmolLM2 (transformers: models/llama/modeling_llama.py).
import { defineArchitecture } from './architecture.js'
import { decoder, decoderLinears } from './layers.js'

export const llama = defineArchitecture({
  modelType: 'llama',
  build: (ctx) =>
    decoder(ctx, {
      hasQkvBias: ctx.config.attentionBias,
      hasOutputBias: ctx.config.attentionBias,
      hasMlpBias: ctx.config.mlpBias,
    }),
  linears: decoderLinears,
})
