/** What users drop, choose or paste -> images with the folder each came in, and descriptions. */

import { descriptionsOf } from "./csv.js";
import { entriesOf } from "./zip.js";

const IMAGE = /\.(jpe?g|png|webp|gif|bmp|tiff?|heic|heif|avif)$/i;
const TYPES = { jpg: "image/jpeg", jpeg: "image/jpeg", png: "image/png", webp: "image/webp" };
const MAX_ZIPPED_BYTES = 50_000_000;
const SCALE_OVER_BYTES = 1_500_000, SCALED_SIDE = 1024, JPEG_QUALITY = 0.92;

/** `{file, path}` of everything dropped, folders included. Call it in the event: its items are gone later. */
export async function fromTransfer(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const found = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const lists = await Promise.all(
    found.map(({ entry, file }) => (entry?.isDirectory ? below(entry) : file ? [{ file, path: file.name }] : [])),
  );
  return lists.flat();
}

/** `{file, path}` of the files chosen in an input, which is then empty again. A folder's files come in any order. */
export function fromInput(input) {
  const found = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
  input.value = "";
  return input.webkitdirectory ? found.sort(byName(({ path }) => path)) : found;
}

/** As people sort names: 2 before 10. */
const byName = (nameOf) => (a, b) => nameOf(a).localeCompare(nameOf(b), "en", { numeric: true });

async function below(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const entries = [];
  for (;;) { // a call gives a hundred at most
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    entries.push(...some);
  }
  entries.sort(byName(({ name }) => name));
  return (await Promise.all(entries.map(below))).flat();
}

/**
 * `{images: [{file, folder}], descriptions: [{name, description}], nLeftOut}`: ZIPs opened, CSVs read. Of folders and
 * ZIPs only images are taken; a file given by itself is taken as an image, whatever it is: the service judges it.
 */
export async function sorted(files) {
  const found = { images: [], descriptions: [], nLeftOut: 0 };
  for (const { file, path } of files) {
    if (/\.zip$/i.test(path)) await addZip(found, file);
    else await add(found, path, async () => file);
  }
  return found;
}

async function addZip(found, blob) {
  for (const { path, read } of await entriesOf(blob)) {
    await add(found, path, async () => {
      const name = path.split("/").at(-1);
      const type = TYPES[name.split(".").at(-1).toLowerCase()] ?? "";
      return new File([await read(MAX_ZIPPED_BYTES)], name, { type });
    }, true);
  }
}

async function add(found, path, open, isZipped = false) {
  const parts = path.split("/");
  const isHidden = parts.some((part) => part.startsWith(".") || part === "__MACOSX");
  if (/\.csv$/i.test(path) && !isHidden) {
    const file = await open();
    found.descriptions.push(...descriptionsOf(await file.text(), file.name));
  } else if (isHidden || ((parts.length > 1 || isZipped) && !IMAGE.test(path))) {
    found.nLeftOut += 1;
  } else {
    found.images.push({ file: await scaled(await open()), folder: parts.at(-2) ?? "" });
  }
}

/** A large photograph scaled down before it is sent: no network here sees more. Anything else as it is. */
async function scaled(file) {
  if (file.size < SCALE_OVER_BYTES) return file;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, SCALED_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
    const pen = canvas.getContext("2d");
    if (!isTrue(pen)) return file;
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
    return new File([blob], file.name, { type: "image/jpeg" });
  } catch {
    return file; // the service says what is wrong with it
  }
}

/** False where the browser gives a canvas's pixels back altered, as some do against fingerprinting. */
function isTrue(pen) {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  const side = Math.min(16, pen.canvas.width, pen.canvas.height);
  return pen.getImageData(0, 0, side, side).data.every((value) => value === 255);
}

/** The files' contents in base64. */
export const encoded = (files) => Promise.all(files.map(base64));

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read any more; choose it again.`));
    reader.readAsDataURL(file);
  });
}
