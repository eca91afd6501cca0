// The oracle of the engine's tests: exact and slow, without a cache (see uncached-engine.ts).
export {
  UncachedEngine as PlainEngine,
  type UncachedEngineOptions as PlainEngineOptions,
} from '../../src/inference/uncached-engine.js'
