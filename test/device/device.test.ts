// The device path on whatever is here: lowered graphs through ONNX Runtime's CUDA provider where it loads, else WebGPU
// over a software Vulkan device. Correctness, not speed.
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openRuntime, type Provider, type Runtime } from '../../src/runtime/index.js'
import { tinyBase, trainTiny } from './tiny-base.js'

/** The software Vulkan device that Debian's chromium ships (design §11). */
const softwareDevice = '/usr/lib/chromium/vk_swiftshader_icd.json'

async function openDevice(): Promise<{ runtime: Runtime; provider: Provider } | null> {
  if (!process.env.VK_ICD_FILENAMES && existsSync(softwareDevice)) process.env.VK_ICD_FILENAMES = softwareDevice
  const reasons: string[] = []
  for (const provider of ['cuda', 'webgpu'] as const) {
    const runtime = await openRuntime({ provider })
    try {
      const base = tinyBase(runtime, 'f32')
      await trainTiny(base, 1)
      base.close()
      return { runtime, provider }
    } catch (error) {
      reasons.push(`${provider}: ${error instanceof Error ? error.message.split('\n')[0] : error}`)
      await runtime.close()
    }
  }
  console.warn(
    `SKIPPED: no device can be used here.\n  ${reasons.join('\n  ')}\n  A software one comes with Debian's chromium package.`,
  )
  if (process.env.ESPALIER_REQUIRE_DEVICE === '1') throw new Error(reasons.join('; '))
  return null
}

let device: Awaited<ReturnType<typeof openDevice>>
let cpu: Runtime
let folder: string
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-device-'))
  cpu = await openRuntime({ kernels: false })
  device = await openDevice()
  if (device) console.log(`device checks run on ${device.provider}`)
}, 300_000)
afterAll(async () => {
  await device?.runtime.close()
  await cpu?.close()
  rmSync(folder, { recursive: true, force: true })
})

describe('training a tiny model, lowered', () => {
  it.each(['f32', 'int4'] as const)(
    '%s base: the losses and the adapter of the CPU',
    async (format) => {
      if (!device) return
      const expected = await trainTiny(tinyBase(cpu, format))
      const actual = await trainTiny(tinyBase(device.runtime, format))
      expect(expected.losses.at(-1)!).toBeLessThan(expected.losses[0]!)
      actual.losses.forEach((loss, i) => {
        expect(Math.abs(loss - expected.losses[i]!)).toBeLessThan(2e-4)
      })
      // Adam's first steps have the size of the rate whatever the gradient's: compare by the norm of the update.
      let difference = 0
      let size = 0
      actual.params.forEach((x, i) => {
        difference += (x - expected.params[i]!) ** 2
        size += expected.params[i]! ** 2
      })
      expect(Math.sqrt(difference / size)).toBeLessThan(1e-2)
    },
    600_000,
  )
})
