// Makes a compiled graph runnable: buffers for its inputs, outputs and workspace, everything bound once (stop 11).
import { byteLengthOf, type Compiled, type StepValue } from '../compiler/compile.js'
import type { Binding, DeviceBuffer, Program, RunOptions, Runtime } from './types.js'

/** A place in memory that the caller provides for a leaf. */
export interface LeafMemory {
  readonly buffer: DeviceBuffer
  readonly byteOffset: number
}

export interface BindOptions {
  /** Memory for leaves by name (weights, parameters, state); leaves without one get their own. */
  leaf(name: string): LeafMemory | null
  /** At least `compiled.workspaceBytes`; programs that never run at once may share one. */
  readonly workspace?: DeviceBuffer
  /** Whether the nodes are short, so that models of our operators only run without ONNX Runtime between them. */
  readonly hasShortNodes?: boolean
}

/** A program with named inputs and outputs. */
export class BoundProgram {
  private readonly program: Program
  private readonly owned: DeviceBuffer[]
  private readonly memory: ReadonlyMap<string, DeviceBuffer>
  /** Bytes of the buffers made for this program. */
  readonly ownedBytes: number
  readonly stepNames: readonly string[]

  constructor(program: Program, compiled: Compiled, memory: ReadonlyMap<string, DeviceBuffer>, owned: DeviceBuffer[]) {
    this.program = program
    this.memory = memory
    this.owned = owned
    this.ownedBytes = owned.reduce((n, b) => n + b.byteLength, 0)
    this.stepNames = compiled.steps.map((s) => s.name)
  }

  has(name: string): boolean {
    return this.memory.has(name)
  }

  /** The buffer of an input or output that the program owns. */
  memoryOf(name: string): DeviceBuffer {
    const buffer = this.memory.get(name)
    if (!buffer) throw new Error(`the program has no input or output ${name} of its own`)
    return buffer
  }

  private bytes(name: string): Uint8Array {
    return this.memoryOf(name).bytes
  }

  /** Live memory of an input or output that the program owns, at its largest size. */
  f32(name: string): Float32Array {
    const b = this.bytes(name)
    return new Float32Array(b.buffer as ArrayBuffer, b.byteOffset, b.byteLength >> 2)
  }

  i32(name: string): Int32Array {
    const b = this.bytes(name)
    return new Int32Array(b.buffer as ArrayBuffer, b.byteOffset, b.byteLength >> 2)
  }

  i64(name: string): BigInt64Array {
    const b = this.bytes(name)
    return new BigInt64Array(b.buffer as ArrayBuffer, b.byteOffset, b.byteLength >> 3)
  }

  run(options: RunOptions): ReturnType<Program['run']> {
    return this.program.run(options)
  }

  profile(): ReturnType<Program['profile']> {
    return this.program.profile()
  }

  close(): void {
    this.program.close()
    for (const buffer of this.owned) buffer.free()
  }
}

/** Creates the sessions and binds every step. @throws where a leaf's memory is too small */
export async function bindProgram(runtime: Runtime, compiled: Compiled, options: BindOptions): Promise<BoundProgram> {
  const owned: DeviceBuffer[] = []
  const own = (bytes: number) => {
    const buffer = runtime.allocate(Math.max(64, bytes))
    owned.push(buffer)
    return buffer
  }
  const named = new Map<string, DeviceBuffer>()
  const leaves = new Map<string, LeafMemory>()
  for (const leaf of compiled.leaves) {
    const given = options.leaf(leaf.name)
    if (given) leaves.set(leaf.name, given)
    else {
      const buffer = own(byteLengthOf(leaf, compiled.dims))
      named.set(leaf.name, buffer)
      leaves.set(leaf.name, { buffer, byteOffset: 0 })
    }
  }
  for (const output of compiled.outputs) named.set(output.name, own(byteLengthOf(output, compiled.dims)))
  if (options.workspace && options.workspace.byteLength < compiled.workspaceBytes)
    throw new Error(`workspace: ${options.workspace.byteLength} bytes given, ${compiled.workspaceBytes} needed`)
  const workspace = options.workspace ?? (compiled.workspaceBytes > 0 ? own(compiled.workspaceBytes) : null)

  const binding = ({ place, dtype, shape }: StepValue): Binding => {
    if (place.kind === 'leaf') return { ...leaves.get(place.name)!, dtype, shape }
    if (place.kind === 'output') return { buffer: named.get(place.name)!, byteOffset: 0, dtype, shape }
    return { buffer: workspace!, byteOffset: place.byteOffset, dtype, shape }
  }
  const bindAll = (values: Readonly<Record<string, StepValue>>) =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [name, binding(value)]))
  const program = await runtime.createProgram({
    models: compiled.models.map(({ bytes, nodes }) => ({ bytes, nodes: options.hasShortNodes ? nodes : null })),
    dims: Object.keys(compiled.dims),
    steps: compiled.steps.map((s) => ({
      model: s.model,
      name: s.name,
      inputs: bindAll(s.inputs),
      outputs: bindAll(s.outputs),
    })),
  })
  return new BoundProgram(program, compiled, named, owned)
}
