// `espalier init [dir]`: a commented recipe to start from, rows it can train on, and a tsconfig so that types resolve.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { defineCommand } from '../command.js'
import { packageFolder } from '../package-folder.js'

/** Files by their name in the new folder; the package ships them in starter/. */
const files = ['recipe.ts', 'train.jsonl', 'held-out.jsonl'] as const

export const init = defineCommand({
  positionals: '[dir]',
  summary: 'write a recipe to start from',
  options: {
    dir: { type: 'string', default: '.', describe: 'where; made where it does not exist' },
    force: { type: 'boolean', default: false, describe: 'replace files that are there' },
  },
  async run({ dir, force }, { print }) {
    const root = packageFolder()
    const contents = new Map<string, string>(
      files.map((name) => [name, readFileSync(join(root, 'recipes', 'starter', name), 'utf8')]),
    )
    contents.set('tsconfig.json', tsconfig(root))
    const present = [...contents.keys()].filter((name) => existsSync(join(dir, name)))
    if (present.length > 0 && !force) {
      throw new Error(`${dir} has ${present.join(', ')} already: choose another folder, or replace with --force`)
    }
    mkdirSync(dir, { recursive: true })
    for (const [name, text] of contents) writeFileSync(join(dir, name), text)
    const at = relative('.', join(dir, 'recipe.ts'))
    print(`wrote ${[...contents.keys()].map((name) => relative('.', join(dir, name))).join(', ')}

  espalier plan ${at}    what it would do and cost
  espalier run ${at}     train`)
  },
})

function tsconfig(root: string): string {
  const types = join(root, 'dist', 'src', 'index.d.ts')
  const config = {
    compilerOptions: {
      target: 'es2023',
      module: 'nodenext',
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      allowImportingTsExtensions: true,
      paths: { espalier: [types] },
    },
    include: ['*.ts'],
  }
  return `${JSON.stringify(config, null, 2)}\n`
}
