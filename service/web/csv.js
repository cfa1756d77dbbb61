/** Descriptions from a CSV of two columns, name and description, with or without that heading. */

/**
 * Rows of fields, by RFC 4180: quotes around fields, doubled inside them, line breaks allowed there. The first comma or
 * semicolon outside quotes says which of them is between fields: spreadsheets of many languages write semicolons.
 */
function rowsOf(csv) {
  const text = csv.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
  const rows = [[""]];
  let quoted = false, separators = ",;";
  for (let i = 0; i < text.length; i++) {
    const row = rows.at(-1);
    const character = text[i];
    if (quoted && character === '"' && text[i + 1] === '"') row[row.length - 1] += text[i++];
    else if (character === '"' && (quoted || row.at(-1) === "")) quoted = !quoted;
    else if (!quoted && separators.includes(character)) {
      separators = character;
      row.push("");
    } else if (!quoted && character === "\n") rows.push([""]);
    else row[row.length - 1] += character;
  }
  return rows;
}

/**
 * `{name, description}` of each row that is not blank; further columns are part of neither. Raises Error for a row
 * without a name, counted as a spreadsheet does.
 */
export function descriptionsOf(text, fileName) {
  const rows = rowsOf(text)
    .map((row, i) => ({ number: i + 1, fields: row.map((field) => field.trim()) }))
    .filter(({ fields }) => fields.some(Boolean));
  if (rows[0]?.fields[0].toLowerCase() === "name") rows.shift();
  const nameless = rows.find(({ fields }) => !fields[0]);
  if (nameless) throw new Error(`Row ${nameless.number} of ${fileName} has no name; give it one, or take the row out.`);
  return rows.map(({ fields: [name, description = ""] }) => ({ name, description }));
}
