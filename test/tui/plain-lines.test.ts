import { expect, it } from 'vitest'
import { plainLines } from '../../src/tui/plain-lines.js'
import { failed, finished } from './events.js'

function linesOf(events: typeof finished, msPerEvent: number): string[] {
  const lines: string[] = []
  let now = 0
  const listener = plainLines(
    (line) => lines.push(line),
    () => now,
  )
  for (const event of events) {
    listener(event)
    now += msPerEvent
  }
  return lines
}

it('tells a run in lines', () => {
  expect(linesOf(finished, 450).join('\n')).toMatchInlineSnapshot(`
    "quickstart: 40 steps on SmolLM2-135M-Instruct Q4_1 (cpu avx2, 2 threads) in /runs/quickstart-1
    step 0: held-out loss 3.4000, eval/accuracy 0.5 (best)
    step 0: base on "Is this mail spam?": I am a helpful assistant.
    step 1/40  loss 3.1975  rate 1.95e-4  gradient 1.25  151 tokens/s  56 % of the ceiling  601 MB  left 4:33
    step 6/40  loss 1.9171  rate 1.70e-4  gradient 1.25  151 tokens/s  56 % of the ceiling  606 MB  left 3:58
    step 11/40  loss 1.3585  rate 1.45e-4  gradient 1.25  151 tokens/s  56 % of the ceiling  611 MB  left 3:23
    step 16/40  loss 0.9560  rate 1.20e-4  gradient 1.25  151 tokens/s  56 % of the ceiling  616 MB  left 2:48
    step 20: held-out loss 1.1000, eval/accuracy 0.7 (best)
    step 20: checkpoint /runs/quickstart-1/checkpoints/step-00000020
    step 20: adapter on "Is this mail spam?": Yes
    warning: 3 of 400 rows are longer than maxLength 256 and were cut (120 tokens fell away)
    step 21/40  loss 0.7173  rate 9.50e-5  gradient 1.25  151 tokens/s  56 % of the ceiling  621 MB  left 2:13
    step 26/40  loss 0.7163  rate 7.00e-5  gradient 1.25  151 tokens/s  56 % of the ceiling  626 MB  left 1:38
    step 31/40  loss 0.6123  rate 4.50e-5  gradient 1.25  151 tokens/s  56 % of the ceiling  631 MB  left 1:03
    step 36/40  loss 0.5333  rate 2.00e-5  gradient 1.25  151 tokens/s  56 % of the ceiling  636 MB  left 0:28
    step 40/40  loss 0.5702  rate 0.00e+0  gradient 1.25  150 tokens/s  56 % of the ceiling  640 MB  left 0:00
    step 40: held-out loss 0.8000, eval/accuracy 0.9 (best)
    ended: completed after step 40"
  `)
})

it('tells errors and how it ended, however fast', () => {
  const lines = linesOf(failed, 0)
  expect(lines.at(-2)).toMatch(/^error: step 26: the loss is NaN/)
  expect(lines.at(-1)).toBe('ended: failed after step 25')
  expect(lines.filter((line) => line.startsWith('step 1/')).length).toBe(1)
})
