// `run()` (stop 3): a recipe becomes a run directory, a stream of events and a result. Programs, the CLI and the demo
// all start here.
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { PreparedRun, PrepareOptions, ResolvedRecipe, RunContext } from './context.js'
import { EventStream, type Listener, type RunResult, type TrainingEvent } from './events.js'
import { openMetricsLog } from './metrics-log.js'
import { defaultBudgetMb, type PlanReport } from './plan.js'
import type { PreparedOnline, PrepareOnlineOptions } from './prepare-online.js'
import { hashRecipe, openRunDirectory, writeJson } from './run-directory.js'
import { stages } from './stages/index.js'
import type { StageDefinition } from './stages/stage.js'

export interface RunOptions {
  /** Default `runs/<name>-<time>` below the working directory. */
  runDir?: string
  /** Continue the run in `runDir` after its latest checkpoint. */
  resume?: boolean
  /** Pass over damaged checkpoints to an earlier one. */
  resumeFallback?: boolean
  /** Aborting finishes the running step, writes a checkpoint and ends the run as `interrupted`. */
  signal?: AbortSignal
  /** Called with every event as it happens. */
  listeners?: Listener[]
}

/** Events while it goes on, and what it came to. The run goes on whether or not anybody iterates. */
export interface Run extends AsyncIterable<TrainingEvent> {
  readonly runDir: string
  readonly result: Promise<RunResult>
}

type Open<Options, Prepared> = (recipe: ResolvedRecipe, options: Options, emit: RunContext['emit']) => Promise<Prepared>

/** How base, data and programs are opened. */
export interface Prepare {
  offline: Open<PrepareOptions, PreparedRun>
  online: Open<PrepareOnlineOptions, PreparedOnline>
}

function stageOf(recipe: ResolvedRecipe): StageDefinition {
  const stage = (stages as unknown as Record<string, StageDefinition>)[recipe.stage.type]
  if (!stage) throw new Error(`stage ${recipe.stage.type} is not known; there are ${Object.keys(stages).join(', ')}`)
  return stage
}

/** 2026-01-31T12-05-59: sorts by time and is a file name everywhere. */
const timeName = () => new Date().toISOString().slice(0, 19).replaceAll(':', '-')

function savedBudget(runDir: string): number | undefined {
  try {
    const { memoryBudgetMb } = JSON.parse(readFileSync(join(runDir, 'run.json'), 'utf8'))
    return typeof memoryBudgetMb === 'number' ? memoryBudgetMb : undefined
  } catch {
    return undefined // a new run, or one killed before it was prepared
  }
}

/** Starts a run with the given way of preparing base, data and program. */
export function startRun(recipe: ResolvedRecipe, prepare: Prepare, options: RunOptions = {}): Run {
  const stage = stageOf(recipe)
  const runDir = resolve(options.runDir ?? join('runs', `${recipe.name}-${timeName()}`))
  const started = performance.now()
  const stream = new EventStream()
  for (const listener of options.listeners ?? []) stream.listen(listener)

  /** Opens, and notes what the run is made of. */
  const open = async <
    Options extends PrepareOptions | PrepareOnlineOptions,
    Prepared extends PreparedRun | PreparedOnline,
  >(
    prepare: Open<Options, Prepared>,
    wanted: Options,
  ): Promise<Prepared> => {
    // What is kept and what is recomputed follows from the budget: a resumed run keeps that of its start
    const memoryBudgetMb = wanted.memoryBudgetMb ?? savedBudget(runDir) ?? defaultBudgetMb()
    const prepared = await prepare(recipe, { ...wanted, memoryBudgetMb }, (event) => stream.emit(event))
    const { base, device, isa, versions, hashes } = prepared
    writeJson(join(runDir, 'run.json'), {
      memoryBudgetMb,
      startedAt: new Date().toISOString(),
      recipeHash: hashRecipe(recipe),
      seed: wanted.seed,
      base,
      device,
      isa,
      versions,
      hashes,
    })
    return prepared
  }

  const work = async (): Promise<RunResult> => {
    const directory = openRunDirectory({ path: runDir, recipe, isResume: options.resume ?? false })
    const log = openMetricsLog(directory.metrics)
    stream.listen(log.listener)
    try {
      const outcome = await stage.run(
        {
          runDir,
          recipe,
          resume: options.resume ? { fallback: options.resumeFallback ?? false } : undefined,
          signal: options.signal,
          emit: (event) => stream.emit(event),
          prepare: (wanted) => open(prepare.offline, wanted),
          prepareOnline: (wanted) => open(prepare.online, wanted),
        },
        stage.schema.parse(recipe.stage),
      )
      const result: RunResult = {
        ...outcome,
        runDir,
        totalSeconds: (performance.now() - started) / 1000,
        peakRssMb: process.resourceUsage().maxRSS / 1024,
      }
      writeJson(directory.report, result)
      stream.emit({ type: 'runEnd', reason: result.reason, step: result.step, result })
      return result
    } catch (error) {
      stream.emit({ type: 'error', message: (error as Error).message })
      stream.emit({ type: 'runEnd', reason: 'failed', step: 0 })
      throw error
    } finally {
      log.close()
      directory.release()
    }
  }
  const result = work().finally(() => stream.close())
  // Whoever only iterates learns of a failure from the events
  result.catch(() => {})
  return { runDir, result, [Symbol.asyncIterator]: () => stream[Symbol.asyncIterator]() }
}

/** What a run of the recipe would do and cost. */
export function startPlan(
  recipe: ResolvedRecipe,
  prepare: Prepare,
  options: { signal?: AbortSignal; emit?: Listener } = {},
): Promise<PlanReport> {
  const stage = stageOf(recipe)
  const emit = options.emit ?? (() => {})
  return stage.plan(
    {
      runDir: undefined,
      recipe,
      resume: undefined,
      signal: options.signal,
      emit,
      prepare: (wanted) =>
        prepare.offline(recipe, { ...wanted, memoryBudgetMb: wanted.memoryBudgetMb ?? defaultBudgetMb() }, emit),
      prepareOnline: (wanted) =>
        prepare.online(recipe, { ...wanted, memoryBudgetMb: wanted.memoryBudgetMb ?? defaultBudgetMb() }, emit),
    },
    stage.schema.parse(recipe.stage),
  )
}

/** The report of a finished run. */
export function readReport(runDir: string): RunResult {
  return JSON.parse(readFileSync(join(runDir, 'report.json'), 'utf8'))
}
