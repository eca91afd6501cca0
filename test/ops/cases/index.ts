// Every case, by op. A kernel without a case fails the suite.
import type { OpCase } from '../case.js'
import { pagedAttentionCases, sampleCases } from './generation.js'
import { embeddingCases, logProbCases } from './head.js'
import { attentionCases, convertCases, dropoutCases, normCases, rotaryCases, swiGluCases } from './layers.js'
import { adamWCases } from './optimizer.js'
import { groupCases, quantLinearCases, rowNormCases, servedLinearCases } from './quant-linear.js'

export const opCases: readonly OpCase[] = [
  ...quantLinearCases,
  ...servedLinearCases,
  ...groupCases,
  ...rowNormCases,
  ...normCases,
  ...attentionCases,
  ...rotaryCases,
  ...swiGluCases,
  ...convertCases,
  ...dropoutCases,
  ...logProbCases,
  ...embeddingCases,
  ...adamWCases,
  ...pagedAttentionCases,
  ...sampleCases,
]
