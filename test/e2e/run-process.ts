// The process of an end-to-end run: trains the recipe (JSON) of its first argument in the folder of its second, or
// resumes what is there. Writes one line when steps begin, so that whoever kills it knows when to start counting.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { run, type TrainableRecipe } from '../../src/training/index.js'

const [recipeFile, runDir] = process.argv.slice(2) as [string, string]
const recipe = JSON.parse(readFileSync(recipeFile, 'utf8')) as TrainableRecipe
const going = run(recipe, { runDir, resume: existsSync(join(runDir, 'recipe.json')) })
for await (const event of going) if (event.type === 'runStart') process.stdout.write('steps begin\n')
await going.result
