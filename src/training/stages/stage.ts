// What a stage is (stop 8): a strict schema for its part of the recipe, and functions over the shared loops.
import type { z } from 'zod'
import type { RunContext, StageOutcome } from '../context.js'
import type { Objective } from '../objective.js'
import type { PlanReport } from '../plan.js'

export interface StageDefinition<Schema extends z.ZodType = z.ZodType> {
  readonly summary: string
  /** Strict; `type` names the stage. */
  readonly schema: Schema
  /** Sequences of one item of a micro-batch: two of pairs. Default 1. */
  readonly sequencesPerItem?: number
  /** What a step of it minimises; of a stage that trains several models, the policy's. */
  objective(options: z.output<Schema>): Objective
  run(context: RunContext, options: z.output<Schema>): Promise<StageOutcome>
  /** What a run would do and cost, without training: steps, memory, time. */
  plan(context: RunContext, options: z.output<Schema>): Promise<PlanReport>
}

export function defineStage<Schema extends z.ZodType>(definition: StageDefinition<Schema>): StageDefinition<Schema> {
  return definition
}
