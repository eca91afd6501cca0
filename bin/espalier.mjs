#!/usr/bin/env node
// The command line. The program itself is compiled into dist/.
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const main = join(root, 'dist', 'src', 'cli', 'main.js')
if (existsSync(main)) {
  const { main: run } = await import(pathToFileURL(main).href)
  process.exitCode = await run(process.argv.slice(2))
} else {
  process.stderr.write(`espalier is not built yet. Run: npm run --prefix ${root} setup\n`)
  process.exitCode = 1
}
