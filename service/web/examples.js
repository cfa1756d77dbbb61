/** The service's example tasks, and their images as files. */

import { call } from "./api.js";

/** All examples; an empty list where they cannot be had: nothing else depends on them. */
export async function examples() {
  try {
    return await (await call("GET", "examples")).json();
  } catch {
    return [];
  }
}

/** An example's image as a file; raises Problem where it cannot be had. */
async function imageFile(name) {
  const blob = await (await call("GET", `examples/${name}`)).blob();
  return new File([blob], name, { type: blob.type });
}

/** An example's classes, each with its images as `files`. */
export function withFiles(classes) {
  return Promise.all(classes.map(async (c) => ({ ...c, files: await Promise.all(c.images.map(imageFile)) })));
}

/** The example that has all these classes, or undefined. */
export function exampleWith(names, all) {
  return all.find(({ classes }) => names.every((name) => classes.some((c) => c.name === name)));
}

/** The example's unseen images of these classes, by turns, each with its class as the folder. */
export async function queriesOf(example, names) {
  const shown = example.classes.filter(({ name }) => names.includes(name));
  const asked = shown[0].queries.flatMap((_, i) => shown.map((c) => ({ folder: c.name, name: c.queries[i] })));
  return Promise.all(asked.map(async ({ folder, name }) => ({ folder, file: await imageFile(name) })));
}
