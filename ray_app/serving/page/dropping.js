/* What was dropped or pasted, as files: folders are opened. */

/** All files of a DataTransfer, those inside dropped folders too, in the order of their names. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()); // before the first await: the transfer is emptied then
  const plain = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found = await Promise.all(entries.filter(Boolean).map(inside));
  return found.flat();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const children = [];
  for (let some = await read(reader); some.length; some = await read(reader)) children.push(...some); // a reader gives a hundred at a time
  children.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const found = [];
  for (const child of children.filter(({ name }) => !name.startsWith("."))) found.push(...await inside(child));
  return found;
}

function read(reader) {
  return new Promise((resolve, reject) => reader.readEntries(resolve, reject));
}
