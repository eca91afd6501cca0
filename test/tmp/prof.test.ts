import { Engine } from '/work/main/src/inference/engine.js'
import { openBase } from '/work/main/src/models/base-directory.js'
import { loadBase } from '/work/main/src/models/loaded-base.js'
import { openRuntime } from '/work/main/src/runtime/index.js'
import { readdirSync } from 'node:fs'
import { homedir } from 'node:os'
import { it } from 'vitest'
it('p', async () => {
  const dir = homedir()+'/.cache/espalier/bases/'
  const rt = await openRuntime({})
  const base = await loadBase(rt, openBase(dir + readdirSync(dir).filter(n=>!n.endsWith('.lock'))[0]!))
  const count = Number(process.env.SEQS ?? 1), ctx = Number(process.env.CTX ?? 96)
  const engine = await Engine.open({ base, drafts: null, maxSequences: 32, maxSequenceTokens: 8192, blocks: 600 })
  const go = async (n: number) => {
    const t: number[] = []
    await Promise.all(engine.submitMany(Array.from({length: count}, (_, i) => ({ promptIds: Array.from({length: ctx}, (_, j) => (j * 37 + i * 101 + n) % 40000), sampling: { maxNewTokens: 64 } }))).map(async (s, i) => { let last = 0; for await (const _ of s) { const now = performance.now(); if (i === 0) t.push(now - last); last = now } }))
    return t.slice(8).sort((a,b)=>a-b)[28]
  }
  console.log(await go(1), await go(2), await go(3))
  const ex = (engine as any).executor
  for (const role of ['decode', 'prefill']) { console.log(role); let tot = 0; for (const r of ex.programs[role].profile()) { tot += r.milliseconds; console.log(r.op.padEnd(24), r.calls, (r.milliseconds).toFixed(1), (r.milliseconds / r.calls * 1000).toFixed(1) + ' us') } console.log(tot) }
  await engine.close(); base.close(); await rt.close()
}, 120000)
