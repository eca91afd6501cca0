// Qwen2: biases on q, k, v; a sliding window from layer `max_window_layers` on, where it is used (modeling_qwen2.py).
import { defineArchitecture } from './architecture.js'
import { layerWindow } from './config.js'
import { decoder, decoderLinears } from './layers.js'

export const qwen2 = defineArchitecture({
  modelType: 'qwen2',
  build: (ctx) => decoder(ctx, { hasQkvBias: true, window: (layer) => layerWindow(ctx.config, layer) }),
  linears: decoderLinears,
})
