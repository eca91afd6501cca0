// A run of a stage that samples, which kills itself as `kill -9` does: while it samples, while a reward is asked, or while the
// policy is updated. Goes on after that where there is no such moment.
import { readFileSync } from 'node:fs'
import { run, type TrainableRecipe, type TrainingEvent } from '../../src/training/index.js'
import { type KillOptions, letters } from './tiny-runs.js'

const job: KillOptions & { recipe: TrainableRecipe } = JSON.parse(readFileSync(process.argv[2]!, 'utf8'))
const { runDir, moment, step } = job
const kill = () => process.kill(process.pid, 'SIGKILL')
let isSampled = false
let scored = 0
const reward = (completion: Parameters<typeof letters>[0]) => {
  if (isSampled) scored++
  if (moment === 'scoring' && scored === 5) kill()
  // All are scored: what follows in this step is the update
  if (moment === 'update' && scored === 16) setTimeout(kill, 5)
  return letters(completion)
}
const { stage } = job.recipe
const [spec] = stage.rewards as object[]
const recipe = { ...job.recipe, stage: { ...stage, rewards: [{ ...spec, function: reward }] } }
const listener = (event: TrainingEvent) => {
  if (event.type === 'step') process.stdout.write(`${event.step}\n`)
  if (event.type !== 'progress' || event.task !== `step ${step}, sampling`) return
  if (moment === 'rollout' && event.done >= 5) kill()
  isSampled ||= event.done === event.total
}
await run(recipe, { runDir, resume: moment === undefined, listeners: [listener] }).result
