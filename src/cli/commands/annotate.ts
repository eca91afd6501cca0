// `espalier annotate RECIPE`: which of two answers is better, by a person, a rule or a judge; and what choosing the pairs is worth.
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { AnnotationSession, ResolvedRecipe, TrainingEvent } from '../../index.js'
import type { AnnotateBackend } from '../../tui/annotate-state.js'
import { canDraw } from '../../tui/can-draw.js'
import { type CommandContext, defineCommand, shared, UsageError } from '../command.js'
import { feedbackReward } from '../feedback-reward.js'
import { packageFolder } from '../package-folder.js'
import { describeFetch, type ProgressPrinter, progressPrinter } from '../progress.js'
import { describeSimulation } from '../simulation-table.js'
import { integer, percent } from '../table.js'

type Sdk = typeof import('../../index.js')

const exampleRecipe = () => join(packageFolder(), 'recipes', 'reward.ts')

/** Events of a session to progress and warnings. */
function eventPrinter(progress: ProgressPrinter, say: CommandContext['say']) {
  return (event: TrainingEvent) => {
    if (event.type === 'warning') say(`warning: ${event.message}`)
    if (event.type !== 'progress') return
    const { task, done, total, unit } = event
    if (unit === 'bytes')
      progress.show(...describeFetch({ phase: 'download', message: task, done, total: total ?? null }))
    else progress.show(task, total ? `${integer(done)} of ${integer(total)} ${unit}` : '')
  }
}

/** A session as the screen takes it. */
function backendOf(
  sdk: Sdk,
  session: AnnotationSession,
  news: { line: string | undefined; listeners: Set<() => void> },
): AnnotateBackend {
  const { annotator, log } = session
  return {
    name: session.recipe,
    log: log.path,
    current() {
      const pair = annotator.current
      if (!pair) return undefined
      const { prompt, first, second } = pair
      return { prompt: sdk.readableText(prompt), first: sdk.readableText(first), second: sdk.readableText(second) }
    },
    status: () => annotator.status,
    notice: () => news.line,
    answer: (label) => annotator.answer(label),
    undo: () => annotator.undo()?.label,
    onChange(listener) {
      news.listeners.add(listener)
      return () => void news.listeners.delete(listener)
    },
  }
}

export const annotate = defineCommand({
  positionals: '[recipe]',
  summary: 'say which of two answers is better, with as few labels as will do',
  options: {
    recipe: {
      type: 'string',
      describe: 'a recipe whose data are pairs, scored answers, or prompts to sample answers to',
    },
    stage: shared.stage,
    set: shared.set,
    log: { type: 'string', describe: 'append-only log of answers; default annotations/<recipe>.jsonl' },
    order: {
      choices: ['active', 'random'] as const,
      default: 'active' as const,
      describe: 'active: next the pair on which an ensemble of reward heads disagrees most',
    },
    pool: { type: 'number', describe: 'use so many pairs at most; default 4096, of prompts alone 128' },
    adapter: { type: 'string', describe: 'a PEFT folder that samples answers to prompts; default: the base' },
    'max-new-tokens': { type: 'number', describe: 'of a sampled answer; default 128' },
    rule: { type: 'string', describe: 'AI feedback: a module whose default export scores a completion' },
    judge: { type: 'string', describe: 'AI feedback: an OpenAI-compatible endpoint, up to /v1' },
    'judge-model': { type: 'string', describe: 'the model of the judge' },
    'judge-key': { type: 'string', describe: 'environment variable that holds the key of the judge' },
    'judge-instruction': { type: 'string', describe: 'a file with {{prompt}} and {{completion}} in it' },
    'on-failure': {
      choices: ['stop', 'skip'] as const,
      default: 'stop' as const,
      describe: 'where a rule or judge fails on an answer: stop, or skip the pair',
    },
    labels: { type: 'number', describe: 'most answers that a rule or judge gives; default all' },
    export: { type: 'string', describe: 'write the answers of the log as {prompt, chosen, rejected} rows, and end' },
    'export-unpaired': { type: 'string', describe: 'the same as {prompt, completion, label} rows' },
    simulate: {
      type: 'boolean',
      default: false,
      describe: 'labels that active and random choice need, over pairs with known answers',
    },
    seeds: { type: 'number', default: 5, describe: 'runs of the simulation' },
    json: shared.json,
  },
  epilogue:
    'Keys: 1 and 2 (or left and right) prefer a side, t tie, b both bad, s skip, u undo, q quit; up and down scroll. Every answer is on disk before the next pair is shown; calling again goes on. Without a terminal every line of standard input is one key. --simulate without a recipe takes recipes/reward.ts, whose answers are a rule.',
  async run(options, context) {
    const { signal, print, say } = context
    const sdk = await import('../../index.js')
    if (options.rule !== undefined && options.judge !== undefined) throw new UsageError('--rule or --judge, not both')
    if (options.recipe === undefined && !options.simulate) throw new UsageError('name a recipe')
    const recipe: ResolvedRecipe = await sdk.loadRecipe(options.recipe ?? exampleRecipe(), {
      set: options.set,
      stage: options.stage,
    })
    const progress = progressPrinter()
    const emit = eventPrinter(progress, say)
    if (options.simulate) {
      const { seeds, pool: maxPairs } = options
      const result = await sdk.simulateAnnotation(recipe, { seeds, maxPairs, signal, emit })
      progress.end()
      print(options.json ? JSON.stringify(result) : describeSimulation(result))
      return
    }
    const log = options.log ?? join('annotations', `${recipe.name}.jsonl`)
    const exports = [
      [options.export, 'preference'],
      [options['export-unpaired'], 'unpaired-preference'],
    ] as const
    if (exports.some(([path]) => path !== undefined)) {
      const answers = sdk.readAnnotations(log)
      const written = exports.flatMap(([path, type]) =>
        path === undefined ? [] : sdk.exportAnnotations(answers, path, type),
      )
      if (options.json) print(JSON.stringify({ log, answers: answers.length, written }))
      for (const { path, rows, leftOut } of options.json ? [] : written) {
        print(`${path}: ${integer(rows)} rows; ${integer(leftOut)} of ${integer(answers.length)} answers make none`)
      }
      return
    }

    const reward = await feedbackReward(options)
    const news = { line: undefined as string | undefined, listeners: new Set<() => void>() }
    const tell = () => {
      for (const listener of news.listeners) listener()
    }
    let isOnScreen = false
    const session = await sdk.annotate(recipe, {
      log,
      order: options.order,
      maxPairs: options.pool,
      adapter: options.adapter,
      maxNewTokens: options['max-new-tokens'],
      signal,
      onChange: tell,
      emit(event) {
        if (!isOnScreen) return emit(event)
        if (event.type === 'warning') news.line = event.message
        if (event.type === 'progress') {
          const { task, done, total = done } = event
          news.line = done < total ? `${task} ${percent(done / total)}` : undefined
        }
        tell()
      },
    })
    try {
      if (reward) {
        const added = await session.labelByReward({
          reward,
          labels: options.labels,
          signal,
          onProgress: (done, total) => progress.show('labelling', `${integer(done)} of ${integer(total)} pairs`),
        })
        progress.end()
        report(session, added, options.json, context)
        return
      }
      progress.end()
      isOnScreen = true
      const before = session.annotator.status.answered
      const backend = backendOf(sdk, session, news)
      if (process.stdin.isTTY && canDraw(process.stdout)) {
        const { openAnnotateScreen } = await import('../../tui/annotate.js')
        await openAnnotateScreen(backend, { stdin: process.stdin, stdout: process.stdout, signal })
      } else {
        const { annotateInLines } = await import('../../tui/annotate-lines.js')
        const lines = createInterface({ input: process.stdin, crlfDelay: Number.POSITIVE_INFINITY })
        const write = (text: string) => void process.stdout.write(text)
        await annotateInLines(backend, { lines, write: options.json ? () => {} : write, say, signal })
        lines.close()
      }
      isOnScreen = false
      signal.throwIfAborted()
      report(session, session.annotator.status.answered - before, options.json, context)
    } finally {
      progress.end()
      await session.close()
    }
  },
})

function report(
  { annotator, log }: AnnotationSession,
  added: number,
  isJson: boolean,
  { print, say }: CommandContext,
): void {
  const { answered, left, counts, agreement } = annotator.status
  if (isJson) print(JSON.stringify({ log: log.path, added, answered, left, counts, agreement }))
  else
    say(
      `${integer(added)} new answers, ${integer(answered)} in ${log.path}, ${integer(left)} pairs left; --export FILE writes them as rows`,
    )
}
