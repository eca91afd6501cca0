// Checks the documents against the tree: relative links and named files exist, `npm run` names are scripts.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const problems = []
for (const file of readdirSync(root).filter((name) => name.endsWith('.md'))) {
  const text = readFileSync(join(root, file), 'utf8')
  for (const [, target] of text.matchAll(/\]\((?!https?:)([^)#]+)\)/g))
    if (!existsSync(join(root, target))) problems.push(`${file}: ${target} is linked and does not exist`)
  for (const [, name] of text.matchAll(/npm run (?:--silent )?([a-z:]+)/g))
    if (!scripts[name]) problems.push(`${file}: npm run ${name} is no script of package.json`)
  for (const [, path] of text.matchAll(/`((?:src|test|kernels|scripts|recipes|datasets)\/[\w./-]+)`/g))
    if (!existsSync(join(root, path))) problems.push(`${file}: ${path} is named and does not exist`)
}
for (const problem of problems) console.error(problem)
process.exit(problems.length > 0 ? 1 : 0)
