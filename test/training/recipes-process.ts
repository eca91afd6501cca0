// Runs the recipes of a file one after the other. The number of threads is that of a process: who compares two numbers
// starts two processes.
import { readFileSync } from 'node:fs'
import { run } from '../../src/training/index.js'

const jobs: { recipe: Parameters<typeof run>[0]; runDir: string }[] = JSON.parse(readFileSync(process.argv[2]!, 'utf8'))
for (const { recipe, runDir } of jobs) await run(recipe, { runDir }).result
