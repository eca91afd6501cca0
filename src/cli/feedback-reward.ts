// AI feedback from the words of a command: a rule in a module, or a judge behind an endpoint.
import { existsSync, readFileSync } from 'node:fs'
import { basename, extname, resolve } from 'node:path'
import { UsageError } from './command.js'

async function loadRule(path: string): Promise<unknown> {
  if (!existsSync(path)) throw new UsageError(`${path}: no such module; a rule's default export scores a completion`)
  const { importModule } = await import('../recipe/index.js')
  return importModule(resolve(path), () => import('../index.js'))
}

/** Where answers are not by a person: the reward that gives them, as a recipe says it. */
export async function feedbackReward(options: {
  rule?: string | undefined
  judge?: string | undefined
  'judge-model'?: string | undefined
  'judge-key'?: string | undefined
  'judge-instruction'?: string | undefined
  'on-failure': 'stop' | 'skip'
}) {
  const onFailure = options['on-failure'] === 'skip' ? { score: null } : ('stop' as const)
  if (options.rule !== undefined) {
    const rule = await loadRule(options.rule)
    if (typeof rule !== 'function') {
      throw new UsageError(`${options.rule}: its default export must be a function of a completion that gives a number`)
    }
    const name = basename(options.rule, extname(options.rule))
      .replace(/\W/g, '_')
      .replace(/^(?![A-Za-z])/, 'rule_')
    return { name, function: rule as never, onFailure }
  }
  if (options.judge === undefined) return undefined
  const model = options['judge-model']
  if (model === undefined) throw new UsageError('--judge names an endpoint: name its model with --judge-model')
  const [key, instruction] = [options['judge-key'], options['judge-instruction']]
  return {
    judge: {
      endpoint: options.judge,
      model,
      ...(key === undefined ? {} : { apiKeyVariable: key }),
      ...(instruction === undefined ? {} : { instruction: readFileSync(instruction, 'utf8') }),
    },
    onFailure,
  }
}
