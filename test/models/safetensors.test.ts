// Writing safetensors files: alignment without gaps, pieces, and nothing visible before the end.
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openSafetensors } from '../../src/models/safetensors.js'
import { createSafetensors, FILLER_PREFIX, writeSafetensors } from '../../src/models/safetensors-writer.js'

const dir = mkdtempSync(join(tmpdir(), 'espalier-safetensors-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

describe('a written file', () => {
  it('has aligned tensors and no gaps', () => {
    const path = join(dir, 'aligned.safetensors')
    const specs = [
      { name: 'a', dtype: 'F32', shape: [1] },
      { name: 'b', dtype: 'U8', shape: [3, 7] },
      { name: 'c', dtype: 'F16', shape: [32] },
      { name: 'd', dtype: 'I8', shape: [] },
    ]
    const writer = createSafetensors(path, specs, { metadata: { format: 'pt' }, alignment: 64 })
    writer.write('d', new Uint8Array([9]))
    writer.write('b', new Uint8Array(11).fill(2), 10)
    expect(existsSync(path)).toBe(false)
    writer.write('b', new Uint8Array(10).fill(1), 0)
    writer.write('a', new Uint8Array(4).fill(7))
    writer.write('c', new Uint8Array(64).fill(3))
    writer.finish()
    const file = openSafetensors(path)
    for (const { name } of specs) expect(file.tensors.get(name)!.byteOffset % 64, name).toBe(0)
    expect([...file.read(file.tensors.get('b')!)]).toEqual([...Array(10).fill(1), ...Array(11).fill(2)])
    expect([...file.read(file.tensors.get('b')!, 9, 11)]).toEqual([1, 2])
    expect([...file.tensors.keys()].filter((name) => name.startsWith(FILLER_PREFIX)).length).toBe(2)
    expect({ ...file.metadata }).toEqual({ format: 'pt' })
    file.close()
  })

  it('is not there when bytes are missing or the writer gives up', () => {
    const path = join(dir, 'missing.safetensors')
    const writer = createSafetensors(path, [{ name: 'a', dtype: 'F32', shape: [4] }])
    writer.write('a', new Uint8Array(12))
    expect(() => writer.write('a', new Uint8Array(8), 12)).toThrow(/a: bytes 12 to 20 of 16/)
    expect(() => writer.write('z', new Uint8Array(1))).toThrow(/not in the header/)
    expect(() => writer.finish()).toThrow(/4 bytes were not written/)
    createSafetensors(path, []).abort()
    expect(existsSync(path)).toBe(false)
    expect(readdirSync(dir).filter((name) => name.includes('partial'))).toEqual([])
  })

  it('follows the order of the reference implementation', () => {
    const path = join(dir, 'order.safetensors')
    const tensor = (name: string, dtype: string, bytes: number) => ({
      name,
      dtype,
      shape: [1],
      bytes: new Uint8Array(bytes),
    })
    writeSafetensors(path, [tensor('b', 'F32', 4), tensor('z', 'F64', 8), tensor('c', 'U8', 1), tensor('a', 'F32', 4)])
    const file = openSafetensors(path)
    expect([...file.tensors.keys()]).toEqual(['z', 'a', 'b', 'c'])
    expect(statSync(path).size % 8).toBe(1)
    file.close()
  })
})
