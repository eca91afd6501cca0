// The door to @mlc-ai/web-xgrammar (Apache-2.0, WebAssembly in one file). The package says "type": "module" but ships UMD,
// which Node neither imports nor requires, so its text is run here as CommonJS (its one `import()`, of a module of Node,
// included). Its binding aborts on a grammar that it
// does not understand and says why on the console, which is kept for the message.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'

interface NativeVector {
  size(): number
  get(index: number): number
  delete(): void
}
export interface NativeMatcher {
  AcceptToken(id: number, verbose: boolean): boolean
  Rollback(count: number): void
  GetNextTokenBitmask(vocabSize: number): NativeVector
  delete(): void
}
type NativeMatcherClass = new (
  grammar: unknown,
  stopTokens: undefined,
  endsWithoutStopToken: boolean,
  maxRollback: number,
) => NativeMatcher
interface CompiledGrammar {
  handle: unknown
}
interface Compiler {
  compileJSONSchema(
    schema: string,
    anyWhitespace: boolean,
    indent?: number,
    separators?: [string, string],
    strictMode?: boolean,
    maxWhitespace?: number,
  ): Promise<CompiledGrammar>
  compileStructuralTag(tag: object): Promise<CompiledGrammar>
}
interface Library {
  TokenizerInfo: {
    createTokenizerInfo(
      vocabulary: Uint8Array[],
      kind: 'raw',
      prependSpace: boolean,
      vocabSize: number,
      stopTokens: number[],
    ): Promise<object>
  }
  GrammarCompiler: { createGrammarCompiler(info: object): Promise<Compiler> }
  GrammarMatcher: {
    createGrammarMatcher(grammar: CompiledGrammar): Promise<{ handle: NativeMatcher; dispose(): void }>
  }
}

const heard: string[] = []
let library: Library | undefined

function load(): Library {
  if (library) return library
  const path = createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar')
  const module = { exports: {} }
  const listen = (...words: unknown[]) => void heard.push(words.join(' '))
  const quiet = { ...console, log: listen, warn: listen, error: listen }
  const source = readFileSync(path, 'utf8').replace(/\bimport\((['"]module['"])\)/, 'Promise.resolve(require($1))')
  const run = new Function('exports', 'require', 'module', '__filename', '__dirname', 'console', source)
  run(module.exports, createRequire(path), module, path, dirname(path), quiet)
  library = module.exports as Library
  return library
}

/** What a text has to match. Schemas are JSON Schema. */
export type Grammar = { readonly schema: object } | { readonly regex: string }

export interface NativeGrammar {
  /** A matcher at the beginning. */
  create(): NativeMatcher
}

export interface NativeCompiler {
  compile(grammar: Grammar): Promise<NativeGrammar>
}

/** A compiler for tokens given as bytes; a token without bytes is never allowed. */
export async function createNativeCompiler(
  vocabulary: readonly Uint8Array[],
  stopTokens: readonly number[],
): Promise<NativeCompiler> {
  const { TokenizerInfo, GrammarCompiler, GrammarMatcher } = load()
  const info = await TokenizerInfo.createTokenizerInfo([...vocabulary], 'raw', false, vocabulary.length, [
    ...stopTokens,
  ])
  const compiler = await GrammarCompiler.createGrammarCompiler(info)
  return {
    async compile(grammar) {
      heard.length = 0
      try {
        const compiled =
          'regex' in grammar
            ? await compiler.compileStructuralTag({
                type: 'structural_tag',
                format: { type: 'regex', pattern: grammar.regex },
              })
            : await compiler.compileJSONSchema(
                JSON.stringify(grammar.schema),
                true,
                undefined,
                undefined,
                true,
                MAX_WHITESPACE,
              )
        const first = await GrammarMatcher.createGrammarMatcher(compiled)
        const Matcher = first.handle.constructor as NativeMatcherClass
        first.dispose()
        return { create: () => new Matcher(compiled.handle, undefined, false, -1) }
      } catch (error) {
        const said = heard.find((line) => line.startsWith('[FATAL]'))?.replace(/^.*?\.(?:cc|h):\d+: /s, '')
        throw new Error(said ?? (error as Error).message, { cause: error })
      }
    },
  }
}

/** Blanks between two parts of JSON, at most: a model that may write blanks for ever sometimes does. */
const MAX_WHITESPACE = 8
