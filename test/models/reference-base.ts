// The real base for tests: from the cache, downloaded only where ESPALIER_REQUIRE_BASE=1 (CI) says that it must be there.
import { afterAll, beforeAll } from 'vitest'
import { type OpenedBase, openBase } from '../../src/models/base-directory.js'
import { BaseUnavailableError, prepareBase, resolveBase } from '../../src/models/fetch.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'

const NAME = 'smollm2-135m-instruct'

async function orNull<T>(what: string, find: (offline: boolean) => Promise<T>): Promise<T | null> {
  const isRequired = process.env.ESPALIER_REQUIRE_BASE === '1'
  try {
    return await find(!isRequired)
  } catch (error) {
    if (isRequired || !(error instanceof BaseUnavailableError)) throw error
    console.warn(`SKIPPED: ${what} needs the base ${NAME}; set ESPALIER_REQUIRE_BASE=1 to download it`)
    return null
  }
}

/** Path of the reference GGUF file, or null with a loud line where it is absent and not required. */
export const referenceGguf = (what: string): Promise<string | null> =>
  orNull(what, async (offline) => {
    const base = await resolveBase(NAME, { offline })
    if (!base.isReference) throw new Error(`the reference file is needed, ${base.name} was found`)
    return base.path
  })

/** The imported reference base, or null. */
export const referenceBase = (what: string): Promise<OpenedBase | null> =>
  orNull(what, async (offline) => {
    const base = await prepareBase(NAME, { offline })
    if (!base.isReference) throw new Error(`the reference base is needed, ${base.name} was found`)
    return openBase(base.dir)
  })

/** Loads the reference base for the tests of a file and frees it after them; undefined where it is absent and not required. */
export function useReferenceBase(what: string): () => LoadedBase | undefined {
  let runtime: Runtime | undefined
  let base: LoadedBase | undefined
  beforeAll(async () => {
    const opened = await referenceBase(what)
    if (!opened) return
    runtime = await openRuntime()
    base = await loadBase(runtime, opened)
  }, 300_000)
  afterAll(async () => {
    base?.close()
    await runtime?.close()
  })
  return () => base
}
