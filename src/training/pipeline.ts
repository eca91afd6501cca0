// Several stages as one run (stop 3): each in its own folder of the run directory, from the named results of earlier ones.
// Running it again skips stages that are finished and whose inputs are the same, and continues one that was interrupted.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { peftFiles } from '../models/peft.js'
import { EventStream, type RunResult, type TrainingEvent } from './events.js'
import { sourcesOf, type TrainableRecipe } from './prepare.js'
import { type Prepare, type RunOptions, readReport, startRun } from './run.js'
import { hashRecipe, lockFolder, writeJson } from './run-directory.js'
import { packageVersion } from './version.js'

export interface PipelineStage {
  readonly name: string
  /** @param adapterOf folder of the adapter that an earlier stage left */
  recipe(adapterOf: (stage: string) => string): TrainableRecipe
}

export interface PipelineResult {
  runDir: string
  reason: RunResult['reason']
  /** Of every stage that has run, now or before. */
  stages: Record<string, RunResult & { isSkipped: boolean }>
  totalSeconds: number
}

export interface PipelineRun extends AsyncIterable<TrainingEvent> {
  readonly runDir: string
  readonly result: Promise<PipelineResult>
}

/** What the stages of a run directory were made from. */
type Made = Record<string, { inputs: string }>

const madeFile = 'stages.json'

function readMade(runDir: string): Made {
  try {
    return JSON.parse(readFileSync(join(runDir, madeFile), 'utf8')) as Made
  } catch {
    return {}
  }
}

/** Paths of PEFT folders among the settings of a stage. */
function adaptersIn(value: unknown): string[] {
  if (typeof value === 'string') return existsSync(join(value, peftFiles.config)) ? [value] : []
  if (typeof value !== 'object' || value === null) return []
  return Object.values(value).flatMap(adaptersIn)
}

/** Hash of all that a stage's result depends on: settings, rows, the adapters that it starts from, this release. */
async function hashInputs(recipe: TrainableRecipe, signal: AbortSignal | undefined): Promise<string> {
  const { seed = 0 } = recipe.stage as { seed?: number }
  const hash = createHash('sha256').update(packageVersion()).update(hashRecipe(recipe))
  const sources = sourcesOf(recipe.data, seed, () => {}, signal)
  hash.update((await sources.train.hash()).sha256)
  for (const folder of adaptersIn(recipe.stage))
    for (const file of Object.values(peftFiles)) hash.update(readFileSync(join(folder, file)))
  return hash.digest('hex')
}

const isFinished = (folder: string) => {
  if (!existsSync(join(folder, 'report.json'))) return false
  const { reason, adapter } = readReport(folder)
  return (reason === 'completed' || reason === 'earlyStopping') && adapter !== undefined && existsSync(adapter)
}

/** Runs the stages in their order; an abort ends the running one with a checkpoint. */
export function startPipeline(
  name: string,
  stages: readonly PipelineStage[],
  prepare: Prepare,
  options: Omit<RunOptions, 'resume'> = {},
): PipelineRun {
  const runDir = resolve(options.runDir ?? join('runs', name))
  const started = performance.now()
  const stream = new EventStream()
  for (const listener of options.listeners ?? []) stream.listen(listener)
  const adapterOf = (stage: string) => join(runDir, stage, 'adapter')

  const runStage = async (stage: PipelineStage, index: number) => {
    const folder = join(runDir, stage.name)
    const recipe = stage.recipe(adapterOf)
    const at = { stage: stage.name, index, total: stages.length }
    stream.emit({ type: 'stageStart', ...at })
    const inputs = await hashInputs(recipe, options.signal)
    const made = readMade(runDir)
    const isSame = made[stage.name]?.inputs === inputs
    if (isSame && isFinished(folder)) {
      stream.emit({ type: 'stageEnd', ...at, isSkipped: true })
      return { ...readReport(folder), isSkipped: true }
    }
    const canResume = isSame && existsSync(join(folder, 'recipe.json'))
    if (existsSync(folder) && !canResume) {
      const aside = `${folder}.before-${Date.now().toString(36)}`
      renameSync(folder, aside)
      stream.emit({
        type: 'warning',
        message: `stage ${stage.name}: its inputs have changed, it runs anew; what it had made is in ${aside}`,
      })
    }
    writeJson(join(runDir, madeFile), { ...made, [stage.name]: { inputs } })
    const { signal, resumeFallback } = options
    const going = startRun(recipe, prepare, { runDir: folder, resume: canResume, resumeFallback, signal })
    for await (const event of going) if (event.type !== 'runEnd') stream.emit(event)
    const result = await going.result
    stream.emit({ type: 'stageEnd', ...at, isSkipped: false })
    return { ...result, isSkipped: false }
  }

  const work = async (): Promise<PipelineResult> => {
    mkdirSync(runDir, { recursive: true })
    const release = lockFolder(runDir)
    const done: PipelineResult['stages'] = {}
    let reason: RunResult['reason'] = 'completed'
    try {
      for (const [index, stage] of stages.entries()) {
        done[stage.name] = await runStage(stage, index)
        if (done[stage.name]!.reason === 'interrupted') {
          reason = 'interrupted'
          break
        }
      }
      const result = { runDir, reason, stages: done, totalSeconds: (performance.now() - started) / 1000 }
      writeJson(join(runDir, 'report.json'), result)
      stream.emit({ type: 'runEnd', reason, step: Object.values(done).at(-1)?.step ?? 0 })
      return result
    } catch (error) {
      stream.emit({ type: 'runEnd', reason: 'failed', step: 0 })
      throw error
    } finally {
      release()
    }
  }
  const result = work().finally(() => stream.close())
  // Whoever only iterates learns of a failure from the events
  result.catch(() => {})
  return { runDir, result, [Symbol.asyncIterator]: () => stream[Symbol.asyncIterator]() }
}
