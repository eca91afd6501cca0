// `espalier import SOURCE`: a GGUF file or a Hugging Face folder becomes a base directory with packed weights.
import { defineCommand, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'
import { integer, pairs, percent } from '../table.js'

export const importCommand = defineCommand({
  positionals: '<source>',
  summary: 'import a model into a base directory with packed weights',
  options: {
    source: {
      type: 'string',
      demandOption: true,
      describe: 'a .gguf file, a Hugging Face folder, hf:org/name, or a known name',
    },
    out: { type: 'string', describe: 'the base directory to write; default: in the cache' },
    format: shared.format,
    json: shared.json,
  },
  async run({ source, out, format, json }, { signal, print }) {
    const sdk = await import('../../index.js')
    const progress = progressPrinter()
    const onProgress = (at: import('../../index.js').FetchProgress) => progress.show(...describeFetch(at))
    let dir: string
    if (out === undefined) dir = (await sdk.prepareBase(source, { format, signal, onProgress })).dir
    else {
      const found = await sdk.resolveBase(source, { signal, onProgress })
      if (found.kind === 'base') throw new Error(`${source} is a base directory already`)
      const imported = await sdk.importBase({
        source: found.path,
        out,
        name: found.name,
        ...(format ? { format } : {}),
        signal,
        onProgress: ({ phase, done, total }) =>
          progress.show(
            ...describeFetch({
              phase: phase === 'hash' ? 'hash' : 'import',
              message: phase === 'hash' ? 'hashing' : 'writing weights',
              done,
              total,
            }),
          ),
      })
      dir = imported.out
    }
    progress.end()
    const base = sdk.openBase(dir)
    const { manifest } = base
    const errors = Object.entries(manifest.quantizationError).sort((a, b) => b[1] - a[1])
    if (json) {
      const { notes, quantizationError } = manifest
      print(
        JSON.stringify({
          dir,
          source: base.source,
          format: manifest.importFormat,
          modelType: base.config.modelType,
          byteLength: base.byteLength,
          quantizationError,
          notes,
        }),
      )
      return
    }
    const counts = new Map<string, number>()
    for (const { format: name, block } of base.formats.values()) {
      const kind = block > 1 ? `${name}/${block}` : name
      counts.set(kind, (counts.get(kind) ?? 0) + 1)
    }
    const formats = [...counts].map(([kind, count]) => `${count} ${kind}`)
    print(
      pairs([
        ['base', base.source.name],
        ['model', `${base.config.modelType}, ${base.config.numHiddenLayers} layers of ${base.config.hiddenSize}`],
        ['tensors', formats.join(', ')],
        ['weights', `${integer(base.byteLength / 1e6)} MB`],
        [
          'changed',
          errors.length > 0
            ? `${errors.length} tensors; largest relative error ${percent(errors[0]![1])} (${errors[0]![0]})`
            : 'no value of the source',
        ],
        ['sha256', base.source.sha256],
        ['directory', dir],
      ]),
    )
    for (const [name, error] of errors) print(`  ${percent(error).padStart(8)}  ${name}`)
    for (const note of manifest.notes) print(`note: ${note}`)
  },
})
