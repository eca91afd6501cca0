// Binary classifier optimization over pairs (BCO, arXiv 2404.04656), with no running mean: its shift δ is 0.
import { z } from 'zod'
import { add, logSigmoid, neg } from '../../../compiler/ops/elementwise.js'
import { rewards } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const bcoPair = definePreferenceLoss({
  summary: 'BCO: a classifier of chosen against rejected, of logit β log-ratio',
  options: z.strictObject({}),
  needsReference: true,
  // −ls(βu) − ls(−βv)
  build(pairs, { beta }) {
    const { chosen, rejected } = rewards(pairs, beta)
    return neg(add(logSigmoid(chosen), logSigmoid(neg(rejected))))
  },
})
