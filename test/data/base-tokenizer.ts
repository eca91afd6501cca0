// The real base's tokenizer for tests, from the base directory that the importer has made of its GGUF file.
import { loadTokenizer, type Tokenizer } from '../../src/data/tokenizer.js'
import { BaseUnavailableError, prepareBase } from '../../src/models/fetch.js'

/** The tokenizer; undefined where the base is not in the cache, unless ESPALIER_REQUIRE_BASE=1 says that it must be. */
export async function baseTokenizer(): Promise<Tokenizer | undefined> {
  const isRequired = process.env.ESPALIER_REQUIRE_BASE === '1'
  try {
    return await loadTokenizer((await prepareBase('smollm2-135m-instruct', { offline: !isRequired })).dir)
  } catch (error) {
    if (isRequired || !(error instanceof BaseUnavailableError)) throw error
    console.warn(`SKIPPED: ${error.message}`)
    return undefined
  }
}
