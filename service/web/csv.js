/** Descriptions from a CSV of two columns, name and description, with or without that heading. */

/** Rows of fields, by RFC 4180: quotes around fields, doubled inside them, line breaks allowed there. */
export function rowsOf(text) {
  const rows = [[""]];
  let quoted = false;
  for (let i = text.charCodeAt(0) === 0xfeff ? 1 : 0; i < text.length; i++) {
    const row = rows.at(-1);
    const character = text[i];
    if (quoted && character === '"' && text[i + 1] === '"') row[row.length - 1] += text[i++];
    else if (character === '"' && (quoted || row.at(-1) === "")) quoted = !quoted;
    else if (!quoted && character === ",") row.push("");
    else if (!quoted && (character === "\n" || character === "\r")) rows.push([""]);
    else row[row.length - 1] += character;
  }
  return rows.filter((row) => row.some((field) => field.trim()));
}

/** `{name, description}` of each row; further columns are part of neither. */
export function descriptionsOf(text) {
  const rows = rowsOf(text);
  const isHeading = rows[0]?.[0].trim().toLowerCase() === "name";
  return rows.slice(isHeading ? 1 : 0).map(([name, description = ""]) => ({
    name: name.trim(),
    description: description.trim(),
  }));
}
