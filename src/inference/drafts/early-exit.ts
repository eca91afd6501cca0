// Drafts from the model itself with its last layers skipped (early exit, after LayerSkip, arXiv 2404.16710): the hidden
// state of a lower layer goes through the final norm and the head. The layers it runs read the keys and values that the
// whole model left in the cache, so nothing is stored twice; what a draft writes there, verification writes again.
import type { Batch } from '../batch.js'
import type { ComputedSource, Draft, DraftHost, DraftRequest, PartialDecoder } from './source.js'

/** Shares of the layers that are tried. */
const depths = [1 / 6, 1 / 3, 1 / 2]

function rowsOf(requests: readonly DraftRequest[], drafts: readonly number[][]): Batch {
  const batch: Batch = { ids: [], positions: [], sequences: [], slots: [], tables: [], draws: [] }
  for (const [i, { tokens, blocks, slot, sampling }] of requests.entries()) {
    const draft = drafts[i]!
    const position = tokens.length - 1 + draft.length
    batch.ids.push(draft.at(-1) ?? tokens.at(-1)!)
    batch.positions.push(position)
    batch.sequences.push(i)
    batch.slots.push(slot)
    batch.tables.push(blocks)
    // The same noise as the whole model's draw, so that the two agree as often as they can; penalties and masks are
    // left out of a guess.
    batch.draws.push({ row: i, position: position + 1, sampling, edits: [], allowed: null })
  }
  return batch
}

export function createEarlyExit(host: DraftHost): ComputedSource {
  const variants = [...new Set(depths.map((share) => Math.max(1, Math.round(share * host.numLayers))))]
  const decoders = new Map<number, Promise<PartialDecoder>>()
  const decoderOf = (layers: number): Promise<PartialDecoder> => {
    let decoder = decoders.get(layers)
    if (!decoder) {
      decoder = host.openDecoder(layers)
      decoders.set(layers, decoder)
    }
    return decoder
  }
  return {
    name: 'early-exit',
    kind: 'computed',
    variants,
    writesCache: true,
    async propose(requests, layers) {
      const decoder = await decoderOf(layers)
      const drafts = requests.map((): number[] => [])
      for (;;) {
        const active = requests.flatMap((request, i) => (drafts[i]!.length < request.max ? i : []))
        if (active.length === 0) break
        const { tokens } = await decoder.run(
          rowsOf(
            active.map((i) => requests[i]!),
            active.map((i) => drafts[i]!),
          ),
        )
        for (const [row, i] of active.entries()) drafts[i]!.push(tokens[row]!)
      }
      return drafts.map((ids): Draft | null => (ids.length > 0 ? { ids, evidence: layers } : null))
    },
    release() {},
    async close() {
      for (const decoder of decoders.values()) (await decoder.catch(() => null))?.close()
    },
  }
}
