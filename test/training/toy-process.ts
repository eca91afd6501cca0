// The process that the kill test ends: starts the toy run in the folder it is given, or resumes what is there.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { startRun } from '../../src/training/run.js'
import { toyPrepare, toyRecipe } from './toy-run.js'

const runDir = process.argv[2]!
const run = startRun(toyRecipe(), toyPrepare({ delayMs: 3 }), {
  runDir,
  resume: existsSync(join(runDir, 'recipe.json')),
})
console.log('started')
await run.result
