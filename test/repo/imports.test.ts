// Who may import whom (ARCHITECTURE.md): scans the import lines of every source, type imports included.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
const src = join(root, 'src')

/** Room → rooms it may import. `sdk` is src/index.ts. */
const mayImport: Record<string, readonly string[]> = {
  compiler: [],
  runtime: ['compiler'],
  models: ['compiler', 'runtime'],
  data: [],
  inference: ['compiler', 'runtime', 'models', 'data'],
  training: ['compiler', 'runtime', 'models', 'data', 'inference'],
  recipe: ['training', 'inference', 'models', 'data'],
  sdk: ['compiler', 'runtime', 'models', 'data', 'inference', 'training', 'recipe'],
  tui: ['sdk'],
  cli: ['sdk', 'recipe', 'tui'],
}

/** Packages that only one place may import: a file, or a room with a slash at its end. */
const doors: Record<string, string> = {
  'onnx-buf': 'src/compiler/',
  'apache-arrow': 'src/data/arrow.ts',
  'onnxruntime-node': 'src/runtime/',
  yargs: 'src/cli/',
  ink: 'src/tui/',
  react: 'src/tui/',
  fastify: 'src/inference/server/',
  'prom-client': 'src/inference/server/',
}

interface Import {
  file: string
  line: number
  specifier: string
  isType: boolean
}

function sources(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.tsx?$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
}

function importsOf(file: string): Import[] {
  const text = readFileSync(file, 'utf8')
  const pattern =
    /(?:^|\n)\s*(import|export)\s+(type\s+)?(?:[^'"`;]*?\sfrom\s+)?['"]([^'"]+)['"]|import\(\s*['"]([^'"]+)['"]\s*\)/g
  return [...text.matchAll(pattern)].map((match) => ({
    file: relative(root, file),
    line: text.slice(0, match.index).split('\n').length,
    specifier: match[3] ?? match[4]!,
    isType: match[2] !== undefined,
  }))
}

const roomOf = (path: string): string => {
  const inside = relative(src, path).split('/')
  return inside.length === 1 ? 'sdk' : inside[0]!
}

const all = sources(src).flatMap((file) => importsOf(file).map((found) => ({ ...found, from: file })))
const at = ({ file, line, specifier }: Import) => `${file}:${line} imports ${specifier}`

describe('imports', () => {
  it('finds them', () => {
    expect(all.length).toBeGreaterThan(300)
  })

  it('follow the table of rooms', () => {
    const wrong = all.filter(({ from, specifier }) => {
      if (!specifier.startsWith('.')) return false
      const room = roomOf(from)
      const target = roomOf(resolve(dirname(from), specifier))
      return target !== room && !mayImport[room]?.includes(target)
    })
    expect(wrong.map(at)).toEqual([])
  })

  it('reach the SDK from the screen for types only', () => {
    const wrong = all.filter(
      ({ from, specifier, isType }) =>
        roomOf(from) === 'tui' &&
        specifier.startsWith('.') &&
        roomOf(resolve(dirname(from), specifier)) === 'sdk' &&
        !isType,
    )
    expect(wrong.map(at)).toEqual([])
  })

  it('go through one door to each foreign thing', () => {
    const wrong = all.filter(({ file, specifier }) => {
      const name = specifier
        .split('/')
        .slice(0, specifier.startsWith('@') ? 2 : 1)
        .join('/')
      const door = doors[name]
      return door !== undefined && !(door.endsWith('/') ? file.startsWith(door) : file === door)
    })
    expect(wrong.map(at)).toEqual([])
    for (const name of ['onnx-buf', 'apache-arrow', 'onnxruntime-node']) {
      const files = new Set(all.filter(({ specifier }) => specifier.split('/')[0] === name).map(({ file }) => file))
      expect([...files], name).toHaveLength(1)
    }
  })

  it('of recipes and datasets name the package and each other only', () => {
    const files = ['recipes', 'datasets'].flatMap((folder) => sources(join(root, folder)))
    const wrong = files.flatMap(importsOf).filter(({ specifier }) => {
      const isOwn =
        specifier === 'espalier' || specifier.startsWith('node:') || /^\.\.?\/(datasets\/)?[\w-]+\.js$/.test(specifier)
      return !isOwn && !specifier.startsWith('@stdlib/')
    })
    expect(wrong.map(at)).toEqual([])
  })
})

it('every source file opens with a comment that says what is in it', () => {
  const files = ['src', 'recipes', 'datasets'].flatMap((folder) => sources(join(root, folder)))
  const silent = files.filter((file) => !/^(#!.*\n)?\/\/ \S/.test(readFileSync(file, 'utf8')))
  expect(silent.map((file) => relative(root, file))).toEqual([])
})

it('no file is longer than 800 lines', () => {
  const long = ['src', 'test', 'recipes', 'datasets']
    .flatMap((folder) => sources(join(root, folder)))
    .filter((file) => readFileSync(file, 'utf8').split('\n').length > 800)
  expect(long.map((file) => relative(root, file))).toEqual([])
})
