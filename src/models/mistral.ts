// Mistral: every layer attends within a sliding window where the config gives one (modeling_mistral.py).
import { defineArchitecture } from './architecture.js'
import { decoder, decoderLinears } from './layers.js'

export const mistral = defineArchitecture({
  modelType: 'mistral',
  build: (ctx) => decoder(ctx, { window: () => ctx.config.slidingWindow ?? 0 }),
  linears: decoderLinears,
})
