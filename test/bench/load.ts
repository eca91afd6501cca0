// `bench -- load`: seconds from the start of a process to a session of the base that can run, files in the page cache.
import { fileURLToPath } from 'node:url'
import { childInput, median, reportToParent, runChild, sendReady } from './process-tree.js'

const runs = 5

interface LoadTask {
  base: string
}

const file = fileURLToPath(import.meta.url)

/** → `seconds`, the median of a few processes after one that fills the page cache. */
export async function benchLoad(argv: string[]): Promise<Record<string, unknown>> {
  void argv
  const { benchBase } = await import('./base.js')
  const base = await benchBase()
  const seconds: number[] = []
  let loss = 0
  for (let i = 0; i <= runs; i++) {
    const { readySeconds, result } = await runChild<{ loss: number }>(file, { base } satisfies LoadTask)
    loss = result.loss
    if (i > 0) seconds.push(readySeconds!)
  }
  return { seconds: median(seconds), all: seconds, firstLoss: loss }
}

const task = childInput<LoadTask>()
if (task && process.argv[1] === file) {
  await reportToParent(async () => {
    const { openBenchScorer } = await import('./base.js')
    const scorer = await openBenchScorer(task.base)
    // The first call compiles; a session that has answered can run
    const loss = await scorer.score(Int32Array.of(504, 3575, 282, 4649, 314))
    sendReady()
    scorer.close()
    return { loss }
  })
}
