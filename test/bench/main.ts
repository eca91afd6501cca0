// `npm run bench -- NAME [options]`: the measurements behind every figure we publish. Each prints a table, or with
// --json one object on standard output; what it is doing goes to standard error.

type Bench = (argv: string[]) => Promise<object>

const benches: Record<string, { describe: string; load: () => Promise<Bench> }> = {
  train: {
    describe: 'training throughput, share of the ceiling, memory',
    load: async () => (await import('./train.js')).benchTrain,
  },
  align: {
    describe: 'recipes/align.ts whole: reward model, DPO, PPO, GRPO on held-out prompts',
    load: async () => (await import('./align.js')).benchAlign,
  },
  dpo: {
    describe: 'a step of DPO against a supervised step of the same tokens',
    load: async () => (await import('./dpo.js')).benchDpo,
  },
  ppo: {
    describe: 'an iteration of PPO: sampling, updates, the rest, memory',
    load: async () => (await import('./ppo.js')).benchPpo,
  },
  load: {
    describe: 'time from process start to a session that can run',
    load: async () => (await import('./load.js')).benchLoad,
  },
  decode: {
    describe: 'generation: one sequence, a batch, a prompt',
    load: async () => (await import('./decode.js')).benchDecode,
  },
  longContext: {
    describe: 'the 8-bit cache, and samples that share a prompt',
    load: async () => (await import('./long-context.js')).benchLongContext,
  },
  speculate: {
    describe: 'what drafts save, on grounded text and in open chat',
    load: async () => (await import('./speculate.js')).benchSpeculate,
  },
  data: {
    describe: 'data preparation: tokens a minute and core, memory',
    load: async () => (await import('./data.js')).benchData,
  },
  serve: { describe: 'the server under load', load: async () => (await import('./serve.js')).benchServe },
}

const [name = '', ...argv] = process.argv.slice(2)
const bench = benches[name]
if (!bench) {
  const lines = Object.entries(benches).map(([key, { describe }]) => `  ${key.padEnd(12)}${describe}`)
  process.stderr.write(`usage: npm run bench -- NAME [--json]\n\n${lines.join('\n')}\n`)
  process.exit(name === '' || name === '--help' ? 0 : 2)
}
const run = await bench.load()
const result = await run(argv)
if (argv.includes('--json')) process.stdout.write(`${JSON.stringify(result)}\n`)
else for (const [key, value] of Object.entries(result)) process.stdout.write(`${key.padEnd(24)}${format(value)}\n`)

function format(value: unknown): string {
  if (typeof value === 'number') return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)))
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}
