// Tests run from the TypeScript sources, with the native addon from build/. Recipes and datasets import `espalier`,
// which is src/index.ts here. Two worker processes: most tests are short, and those that train use two threads.
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  resolve: { alias: [{ find: /^espalier$/, replacement: fileURLToPath(new URL('src/index.ts', import.meta.url)) }] },
  test: {
    environment: 'node',
    include: ['test/**/*.test.ts', 'test/**/*.test.tsx'],
    exclude: ['**/node_modules/**', 'dist/**', 'build/**', 'test/golden/values/**'],
    pool: 'forks', // the addon and ONNX Runtime's environment are singletons of a process
    maxWorkers: 2,
    testTimeout: 120_000,
    hookTimeout: 300_000,
    teardownTimeout: 30_000,
    // Ink draws nothing where CI is set
    env: { NO_COLOR: '1', FORCE_COLOR: '0', CI: 'false', CONTINUOUS_INTEGRATION: 'false' },
  },
})
