/** The service's example tasks, and their images as files. */

/** All examples; an empty list where they cannot be had: nothing else depends on them. */
export async function examples() {
  try {
    return await (await fetch("examples")).json();
  } catch {
    return [];
  }
}

/** An example's image as a file. */
export async function imageFile(name) {
  const blob = await (await fetch(`examples/${name}`)).blob();
  return new File([blob], name, { type: blob.type });
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
