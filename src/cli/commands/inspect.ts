// `espalier inspect TARGET`: the compiled graphs of a recipe, or what is in a base or an adapter.
import { existsSync, statSync } from 'node:fs'
import { extname, join } from 'node:path'
import { defineCommand, shared } from '../command.js'
import { integer, pairs } from '../table.js'

type Sdk = typeof import('../../index.js')

async function inspectGraph(
  sdk: Sdk,
  path: string,
  options: {
    set: string[]
    stage: string | undefined
    graph: import('../../index.js').GraphName
    lowered: boolean
    signal: AbortSignal
  },
) {
  const recipe = await sdk.loadRecipe(path, { set: options.set, stage: options.stage })
  const found = await sdk.inspect(recipe, { graph: options.graph, kernels: !options.lowered, signal: options.signal })
  const runs = found.models.map((_, index) =>
    found.steps.filter(({ model }) => model === index).map(({ name }) => name),
  )
  const text = found.models.map((model, i) => `# segment ${i}, run as: ${runs[i]!.join(', ')}\n${model.trimEnd()}`)
  const total = pairs([
    ['base', found.base],
    ['graph', `${found.graph}, at most ${integer(found.tokens)} tokens`],
    ['segments', `${found.models.length} distinct, ${found.steps.length} steps`],
    ['workspace', `${found.workspaceMb.toFixed(1)} MB`],
    ['work', `${found.gflop.toFixed(1)} GFLOP`],
  ])
  return { json: found, text: [...text, total].join('\n\n') }
}

function inspectAdapter(sdk: Sdk, dir: string) {
  const { lora, baseModel, taskType } = sdk.readPeftConfig(dir)
  const json = { kind: 'adapter', dir, baseModel, taskType, ...lora }
  const show = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value))
  return { json, text: pairs(Object.entries(json).map(([key, value]) => [key, show(value)])) }
}

async function inspectBase(sdk: Sdk, spec: string, signal: AbortSignal) {
  const { dir, name, origin } = await sdk.prepareBase(spec, { signal })
  const base = sdk.openBase(dir)
  const tensors = [...base.formats].map(([tensor, stored]) => ({ tensor, ...stored }))
  const json = {
    kind: 'base',
    name,
    origin,
    dir,
    sha256: base.source.sha256,
    byteLength: base.byteLength,
    config: base.config,
    tensors,
    quantizationError: base.manifest.quantizationError,
  }
  const lines = tensors.map(
    ({ tensor, format, block, shape }) =>
      `  ${tensor.padEnd(48)} ${format}${block > 1 ? `/${block}` : ''} [${shape.join(', ')}]`,
  )
  const config = Object.entries(base.config).map(([key, value]) => [key, JSON.stringify(value)] as const)
  const text = [
    pairs([
      ['base', name],
      ['directory', dir],
      ['sha256', base.source.sha256],
      ['weights', `${integer(base.byteLength / 1e6)} MB`],
    ]),
    pairs(config, '  '),
    lines.join('\n'),
  ]
  return { json, text: text.join('\n\n') }
}

export const inspect = defineCommand({
  positionals: '<target>',
  summary: 'print the compiled graphs of a recipe, or what is in a base or adapter',
  options: {
    target: { type: 'string', demandOption: true, describe: 'a recipe, a PEFT folder, or a base (path or name)' },
    graph: {
      choices: ['train', 'update', 'score'] as const,
      default: 'train' as const,
      describe: 'which graph of the recipe',
    },
    lowered: { type: 'boolean', default: false, describe: 'standard operators instead of ours' },
    set: shared.set,
    stage: shared.stage,
    json: shared.json,
  },
  async run({ target, graph, lowered, set, stage, json }, { signal, print }) {
    const sdk = await import('../../index.js')
    const isFile = existsSync(target) && statSync(target).isFile()
    const found =
      isFile && /^\.(c|m)?(t|j)s$|^\.json$/.test(extname(target))
        ? await inspectGraph(sdk, target, { set, stage, graph, lowered, signal })
        : existsSync(join(target, sdk.peftFiles.config))
          ? inspectAdapter(sdk, target)
          : await inspectBase(sdk, target, signal)
    print(json ? JSON.stringify(found.json) : found.text)
  },
})
