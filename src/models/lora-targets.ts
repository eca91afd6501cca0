// Which linears an adapter wraps, with which rank and scaling: PEFT's matching rules
// (peft src/peft/tuners/tuners_utils.py, check_target_module_exists; src/peft/utils/other.py, get_pattern_key).
import { ALL_LINEAR, type LoraConfig } from './lora-config.js'

/** A linear that can be adapted. The output head is none of them. */
export interface LinearSize {
  path: string
  inFeatures: number
  outFeatures: number
}

export interface LoraTarget extends LinearSize {
  rank: number
  alpha: number
  /** alpha / rank, or alpha / √rank with rsLoRA. */
  scaling: number
}

/** A Python regular expression in JavaScript; the two differ in names of groups and in anchors. */
function compile(pattern: string, setting: string): RegExp {
  const translated = pattern
    .replaceAll('(?P<', '(?<')
    .replaceAll(/\(\?P=(\w+)\)/g, '\\k<$1>')
    .replaceAll('\\A', '^')
    .replaceAll('\\Z', '$')
  try {
    return new RegExp(`^(?:${translated})$`)
  } catch (error) {
    throw new Error(`${setting}: ${JSON.stringify(pattern)} is no regular expression: ${(error as Error).message}`)
  }
}

/** Whether a list of names or a regular expression takes a path. */
function matcher(setting: string, modules: string[] | string): (path: string) => boolean {
  if (Array.isArray(modules)) {
    return (path) => modules.some((name) => path === name || path.endsWith(`.${name}`))
  }
  const regex = compile(modules, setting)
  return (path) => regex.test(path)
}

/** The number of the layer that a path lies in, as PEFT finds it; null outside of the layers. */
function layerMatcher(patterns: string[] | null): (path: string) => number | null {
  const regexes =
    patterns && patterns.length > 0
      ? patterns.map((pattern) => new RegExp(`.*\\.${pattern}\\.(\\d+)\\.`))
      : [/.*\.[^.]*\.(\d+)\./]
  return (path) => {
    for (const regex of regexes) {
      const match = regex.exec(path)
      if (match) return Number(match[1])
    }
    return null
  }
}

/** The value of the first key that matches `^(.*\.)?(KEY)$`, else the general one. */
function patternValues(setting: string, patterns: Record<string, number>, general: number): (path: string) => number {
  const entries = Object.entries(patterns).map(
    ([key, value]) => [compile(`(.*\\.)?(${key})`, `${setting} key`), value] as const,
  )
  return (path) => entries.find(([regex]) => regex.test(path))?.[1] ?? general
}

const known = (linears: readonly LinearSize[]) =>
  [...new Set(linears.map(({ path }) => path.slice(path.lastIndexOf('.') + 1)))].join(', ')

/**
 * The linears that the settings name, in the order of the model.
 * @throws Error where nothing matches, or a named module matches nothing
 */
export function resolveTargets(lora: LoraConfig, linears: readonly LinearSize[]): LoraTarget[] {
  const { targetModules, excludeModules, layersToTransform } = lora
  const isAll = targetModules === ALL_LINEAR
  if (typeof targetModules === 'string' && !isAll && layersToTransform) {
    throw new Error('layersToTransform needs targetModules as a list of names, not as a regular expression')
  }
  const isTarget = isAll ? () => true : matcher('targetModules', targetModules)
  const isExcluded =
    excludeModules && excludeModules.length > 0 ? matcher('excludeModules', excludeModules) : () => false
  const layerOf = layerMatcher(lora.layersPattern)
  const inLayers = (path: string) => {
    const layer = layersToTransform ? layerOf(path) : null
    return !layersToTransform || (layer !== null && layersToTransform.includes(layer))
  }
  if (Array.isArray(targetModules)) {
    for (const name of targetModules) {
      if (!linears.some(({ path }) => path === name || path.endsWith(`.${name}`))) {
        throw new Error(
          `targetModules: ${JSON.stringify(name)} is no linear of this model (there are: ${known(linears)})`,
        )
      }
    }
  }
  const rankOf = patternValues('rankPattern', lora.rankPattern, lora.rank)
  const alphaOf = patternValues('alphaPattern', lora.alphaPattern, lora.alpha)
  const targets = linears
    .filter(({ path }) => isTarget(path) && !isExcluded(path) && inLayers(path))
    .map((linear) => {
      const rank = rankOf(linear.path)
      const alpha = alphaOf(linear.path)
      return { ...linear, rank, alpha, scaling: alpha / (lora.useRslora ? Math.sqrt(rank) : rank) }
    })
  if (targets.length === 0) {
    throw new Error(
      `targetModules ${JSON.stringify(targetModules)} matches no linear of this model (there are: ${known(linears)})`,
    )
  }
  return targets
}
