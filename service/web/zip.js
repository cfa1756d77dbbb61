/** Files of a ZIP archive, read in the browser: the directory at its end, then each entry through DecompressionStream. */

const END = 0x06054b50, ENTRY = 0x02014b50;
const END_BYTES = 22, ENTRY_BYTES = 46, LOCAL_BYTES = 30, MAX_COMMENT_BYTES = 65_535;
const STORED = 0, DEFLATED = 8, ENCRYPTED = 1;
const MAX_ENTRIES = 20_000;

/** An archive that cannot be read; the message says why and what to do. */
export class UnreadableZip extends Error {}

/** `{path, read}` of each file; `read(maxBytes)` gives its bytes, and raises UnreadableZip where there are more. */
export async function entriesOf(blob) {
  const tail = await view(blob, Math.max(0, blob.size - END_BYTES - MAX_COMMENT_BYTES), blob.size);
  const end = lastIndexOf(tail, END);
  if (end < 0) throw new UnreadableZip(`${blob.name} is not a whole ZIP archive; make it again.`);
  const nEntries = tail.getUint16(end + 10, true);
  const start = tail.getUint32(end + 16, true);
  if (nEntries === 0xffff || nEntries > MAX_ENTRIES || start === 0xffffffff) {
    throw new UnreadableZip(`${blob.name} is too large to be read here; use a folder, or several ZIPs.`);
  }
  const directory = await view(blob, start, start + tail.getUint32(end + 12, true));
  return [...listed(blob, directory, nEntries)].filter(({ path }) => !path.endsWith("/"));
}

function* listed(blob, directory, nEntries) {
  let at = 0;
  for (let i = 0; i < nEntries; i++) {
    if (at + ENTRY_BYTES > directory.byteLength || directory.getUint32(at, true) !== ENTRY) {
      throw new UnreadableZip(`${blob.name} is damaged; make it again.`);
    }
    const nameBytes = directory.getUint16(at + 28, true);
    const name = new Uint8Array(directory.buffer, directory.byteOffset + at + ENTRY_BYTES, nameBytes);
    const entry = {
      path: new TextDecoder().decode(name),
      flags: directory.getUint16(at + 8, true),
      method: directory.getUint16(at + 10, true),
      nBytes: directory.getUint32(at + 20, true),
      offset: directory.getUint32(at + 42, true),
    };
    yield { path: entry.path, read: (maxBytes) => contentOf(blob, entry, maxBytes) };
    at += ENTRY_BYTES + nameBytes + directory.getUint16(at + 30, true) + directory.getUint16(at + 32, true);
  }
}

async function contentOf(blob, entry, maxBytes) {
  if (entry.flags & ENCRYPTED) throw new UnreadableZip(`${entry.path} is encrypted; make the ZIP without a password.`);
  const local = await view(blob, entry.offset, entry.offset + LOCAL_BYTES);
  const start = entry.offset + LOCAL_BYTES + local.getUint16(26, true) + local.getUint16(28, true);
  const packed = blob.slice(start, start + entry.nBytes);
  if (entry.method === STORED) return packed;
  if (entry.method !== DEFLATED) throw new UnreadableZip(`${entry.path} is packed in a way not read here; use Deflate.`);
  return inflated(packed, entry.path, maxBytes);
}

/** Unpacked bytes; what is said of their number is not believed, they are counted. */
async function inflated(packed, path, maxBytes) {
  const chunks = [];
  let nBytes = 0;
  try {
    const reader = packed.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      nBytes += read.value.length;
      if (nBytes > maxBytes) break;
      chunks.push(read.value);
    }
  } catch {
    throw new UnreadableZip(`${path} is damaged; make the ZIP again.`);
  }
  if (nBytes > maxBytes) throw new UnreadableZip(`${path} is too large; scale it down first.`);
  return new Blob(chunks);
}

const view = async (blob, start, end) => new DataView(await blob.slice(start, end).arrayBuffer());

function lastIndexOf(data, signature) {
  for (let at = data.byteLength - END_BYTES; at >= 0; at--) {
    if (data.getUint32(at, true) === signature) return at;
  }
  return -1;
}
