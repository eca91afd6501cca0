// What runs a compiled step (stop 11 of the path of a run): device buffers, and programs of ONNX Runtime sessions bound
// to them. Two implementations: the addon (addon.ts) and stock onnxruntime-node (stock.ts), opened by index.ts.

import type { EmittedNode } from '../compiler/emit.js'
import type { DType } from '../compiler/graph.js'

export { bytesOf as bytesPerElement } from '../compiler/graph.js'
export type { DType }

/** Instruction sets that the kernels are compiled for, best first. */
export type Isa = 'avx512bf16' | 'avx512' | 'avx2' | 'portable'
export type Provider = 'cpu' | 'cuda' | 'webgpu'

export interface RuntimeOptions {
  /** Threads of the process-wide pool: the first runtime of a process decides. Default: `ESPALIER_THREADS`, else the CPUs available. */
  threads?: number
  /** Default: `ESPALIER_ISA`, else the best that the processor has. */
  isa?: Isa
  /** `cpu` uses our kernels where they are built; the others run lowered graphs through onnxruntime-node. */
  provider?: Provider
  /** False: lowered graphs through onnxruntime-node although the addon is there. */
  kernels?: boolean
  /** False: an unusable addon is an error instead of the slower stock path. Default true. */
  allowFallback?: boolean
}

export interface RuntimeInfo {
  /** Whether the `espalier` operators exist; without them only lowered graphs run. */
  readonly kernels: boolean
  readonly provider: Provider
  /** The instruction set in use; null on the stock path. */
  readonly isa: Isa | null
  /** The instruction sets that are built and that this processor has, best first. */
  readonly isas: readonly Isa[]
  readonly threads: number
  readonly ortVersion: string
  /** Why the addon is not used, and what to do about it. */
  readonly reason?: string
}

/** A matrix in a file: rows of units of 2 or 4 bytes that stay together. */
export interface StripedRange {
  readonly byteOffset: number
  readonly byteLength: number
  readonly rows: number
  readonly unitBytes: number
}

export interface DeviceBuffer {
  readonly id: number
  readonly byteLength: number
  /** A loaded file. */
  readonly readOnly: boolean
  /** The live memory, 64-byte aligned. Throws for a read-only buffer: use `read`. Detached by `free`. */
  readonly bytes: Uint8Array
  /** A copy of a range. */
  read(byteOffset: number, byteLength: number): Uint8Array
  /** Releases the memory now (after the run in progress, if one uses it). Programs bound to it fail from then on. */
  free(): void
}

/** Which memory a tensor of a step is. A string in `shape` is a symbolic dimension that each run fixes. */
export interface Binding {
  readonly buffer: DeviceBuffer
  readonly byteOffset: number
  readonly dtype: DType
  readonly shape: readonly (number | string)[]
}

export interface ProgramStep {
  /** Index into `models`. */
  readonly model: number
  /** For errors and profiles, e.g. `block.3 backward`. */
  readonly name: string
  /** Every input of the model. An output may be bound to the memory of an input (declared mutation). */
  readonly inputs: Readonly<Record<string, Binding>>
  /** The outputs to compute; the others of the model are skipped. */
  readonly outputs: Readonly<Record<string, Binding>>
}

export interface ProgramModel {
  /** ONNX; becomes one session that any number of steps share. */
  readonly bytes: Uint8Array
  /**
   * All nodes of a model that has none but our operators: they then run one after another without ONNX Runtime between
   * them, which pays where they take microseconds. Null or absent: ONNX Runtime runs the model.
   */
  readonly nodes?: readonly EmittedNode[] | null
}

export interface ProgramDefinition {
  readonly models: readonly ProgramModel[]
  /** Names of the symbolic dimensions. */
  readonly dims: readonly string[]
  readonly steps: readonly ProgramStep[]
}

export interface RunOptions {
  /** Values of the symbolic dimensions that the steps of this run use. */
  readonly dims?: Readonly<Record<string, number>>
  /** First step, inclusive. Default 0. */
  readonly from?: number
  /** Last step, exclusive. Default all. */
  readonly to?: number
  /** Aborting rejects the run with the signal's reason; buffers then hold a mixture of old and new values. */
  readonly signal?: AbortSignal
}

export interface RunResult {
  /** Milliseconds of each step of `[from, to)`. */
  readonly stepMs: Float64Array
}

/** Time inside one operator, summed over its nodes and runs. */
export interface OpProfile {
  readonly op: string
  readonly calls: number
  readonly milliseconds: number
}

export interface Program {
  /** Runs the steps in order, off the event loop. Runs of one program queue. */
  run(options?: RunOptions): Promise<RunResult>
  /** Our operators' times since creation, longest first. Empty unless `ESPALIER_PROFILE=1` when the process started. */
  profile(): OpProfile[]
  /** Releases the sessions, after the run in progress. Buffers stay. */
  close(): void
}

/** Memory of ONNX Runtime's intermediate tensors and of kernel scratch, in bytes; zeros on the stock path. */
export interface MemoryStatistics {
  readonly live: number
  readonly peakLive: number
  /** Address space touched so far: what the intermediates may hold resident. */
  readonly highWater: number
  readonly scratch: number
}

export interface Runtime {
  readonly info: RuntimeInfo
  /** Zeroed memory. */
  allocate(byteLength: number): DeviceBuffer
  /**
   * The bytes of a file, read-only. Where there are kernels, `striped` matrices are laid out as they want them
   * (kernels/stripes.h); elsewhere everything is as in the file.
   */
  loadFile(path: string, striped?: readonly StripedRange[]): Promise<DeviceBuffer>
  createProgram(definition: ProgramDefinition): Promise<Program>
  /** Best rate of a register-only loop of the widest multiply-add instruction of the processor, on all threads, off the event loop. */
  measureCeiling(milliseconds: number): Promise<{ kind: 'fp32' | 'bf16'; gflops: number }>
  /** GB/s of a streaming read on all threads. */
  measureReadBandwidth(): Promise<number>
  memory(): MemoryStatistics
  /** Gives unused memory of intermediates and scratch back to the system. */
  trim(): void
  /** Frees everything that belongs to this runtime. The thread pool stays for the process. */
  close(): Promise<void>
}
