// npm run ops -- test|grad|perf|support [-o OP] [--json]
import { parseArgs } from 'node:util'
import { openRuntime } from '../../src/runtime/index.js'
import { opCases } from './cases/index.js'
import { type Comparison, checkGradients, compareCase } from './harness.js'
import { measureCases } from './perf.js'
import { supportTable } from './support.js'

const usage = `usage: npm run ops -- test|grad|perf|support [-o OP] [--json]

  test     every kernel against its float64 lowering, strict and fast
  grad     every lowering's gradient against central differences
  perf     time and share of the machine's ceiling
  support  op × provider table`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { op: { type: 'string', short: 'o' }, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
})
const [command] = positionals
if (values.help || !command || !['test', 'grad', 'perf', 'support'].includes(command)) {
  console.error(usage)
  process.exit(values.help ? 0 : 2)
}
const chosen = opCases.filter((c) => !values.op || c.op === values.op)
if (chosen.length === 0) {
  console.error(`no case for ${values.op}; ops: ${[...new Set(opCases.map((c) => c.op))].join(', ')}`)
  process.exit(2)
}

function report(label: string, rows: Comparison[]): boolean {
  const bad = rows.filter((r) => !(r.error <= r.limit))
  const worst = rows.reduce((m, r) => Math.max(m, r.error / r.limit), 0)
  console.log(`${bad.length ? 'FAIL' : 'ok  '} ${label} (${(worst * 100).toFixed(0)} % of the tolerance)`)
  for (const r of bad) console.log(`       ${r.value}: ${r.error.toExponential(2)} > ${r.limit}`)
  return bad.length === 0
}

let failed = 0
if (command === 'grad') {
  for (const c of chosen) if (c.wrt && !report(`${c.op}: ${c.name}`, await checkGradients(c))) failed++
} else {
  const runtime = await openRuntime({ allowFallback: command === 'support' })
  if (command === 'test') {
    for (const c of chosen)
      for (const mode of ['strict', 'fast'] as const)
        try {
          if (!report(`${c.op}: ${c.name}, ${mode}`, await compareCase(runtime, c, mode))) failed++
        } catch (error) {
          failed++
          console.log(`FAIL ${c.op}: ${c.name}, ${mode}\n       ${error instanceof Error ? error.message : error}`)
        }
  } else if (command === 'perf') {
    const result = await measureCases(runtime, values.op)
    if (values.json) console.log(JSON.stringify(result))
    else for (const row of result.rows) console.log(row.text)
  } else {
    const table = await supportTable(chosen.map((c) => c))
    if (values.json) console.log(JSON.stringify(table))
    else console.table(table)
  }
  await runtime.close()
}
process.exit(failed ? 1 : 0)
