// POST /v1/load_lora_adapter and /v1/unload_lora_adapter, vLLM's routes; only from the folder that the server was given.
import { realpathSync } from 'node:fs'
import { isAbsolute, join, relative, resolve, sep } from 'node:path'
import { z } from 'zod'
import { FormatError } from '../../../models/format-error.js'
import { peftFiles } from '../../../models/peft.js'
import { ApiError, badRequest } from '../errors.js'
import { parseBody } from '../schemas.js'
import type { Route } from './route.js'

const name = z
  .string()
  .max(128)
  .regex(/^\w[\w.-]*(\/\w[\w.-]*)*$/, 'must be made of letters, digits, _ . - and single slashes')
const loadSchema = z.strictObject({ lora_name: name, lora_path: z.string().min(1).max(4096) })
const unloadSchema = z.strictObject({ lora_name: name, lora_int_id: z.int().nullish() })

const isInside = (folder: string, path: string) => {
  const way = relative(folder, path)
  return way !== '' && way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way)
}

/**
 * The real path of an adapter inside a folder; neither it nor its files may lead out of there, symbolic links followed.
 * @throws ApiError 400, the same whether a path outside exists or not
 */
export function confinedAdapter(folder: string, path: string): string {
  const refuse = () =>
    badRequest('lora_path must name an adapter in the folder that this server loads adapters from', 'lora_path')
  const wanted = resolve(folder, path)
  if (path.includes('\0') || !isInside(folder, wanted)) throw refuse()
  try {
    const root = realpathSync(folder)
    const real = realpathSync(wanted)
    const files = Object.values(peftFiles).map((file) => realpathSync(join(real, file)))
    if ([real, ...files].every((found) => isInside(root, found))) return real
  } catch {}
  throw refuse()
}

export const adapters: Route = (app, context) => {
  const { adapterFolder, model } = context
  if (adapterFolder === null) return
  const loading = new Set<string>()

  app.post('/v1/load_lora_adapter', async (request, reply) => {
    const { lora_name: id, lora_path: path } = parseBody(loadSchema, request.body)
    if (id === context.name || loading.has(id) || model.engine.adapters().includes(id))
      throw badRequest(
        `there is a model ${JSON.stringify(id)} already; unload it first or choose another name`,
        'lora_name',
      )
    const folder = confinedAdapter(adapterFolder, path)
    loading.add(id)
    try {
      await model.loadAdapter(id, folder)
    } catch (error) {
      const message = (error as Error).message.replaceAll(folder, path)
      if (error instanceof FormatError) throw badRequest(message, 'lora_path', 'invalid_adapter')
      // No place for it, or a rank above what fits; anything else is the server's own failure
      if ((error as object).constructor === Error) throw new ApiError(409, message, { code: 'adapter_not_loaded' })
      throw error
    } finally {
      loading.delete(id)
    }
    request.log.info({ adapter: id }, 'adapter loaded')
    return reply.type('text/plain').send(`Success: LoRA adapter '${id}' added successfully.`)
  })

  app.post('/v1/unload_lora_adapter', async (request, reply) => {
    const { lora_name: id } = parseBody(unloadSchema, request.body)
    if (!model.engine.adapters().includes(id))
      throw new ApiError(404, `there is no adapter ${JSON.stringify(id)}`, {
        param: 'lora_name',
        code: 'model_not_found',
      })
    try {
      model.unloadAdapter(id)
    } catch (error) {
      throw new ApiError(409, (error as Error).message, { param: 'lora_name', code: 'adapter_in_use' })
    }
    request.log.info({ adapter: id }, 'adapter unloaded')
    return reply.type('text/plain').send(`Success: LoRA adapter '${id}' removed successfully.`)
  })
}
