/* Turn a drop or paste into files. Folders are read. */

/** All files of a DataTransfer, including files inside dropped folders, in the order of their names. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()); // read before the first await, which empties the transfer
  const plain = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found = await Promise.all(entries.filter(Boolean).map(inside));
  return found.flat();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const children = [];
  for (let some = await read(reader); some.length; some = await read(reader)) children.push(...some); // a reader returns up to a hundred entries at a time
  children.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const found = [];
  for (const child of children.filter(({ name }) => !name.startsWith("."))) found.push(...await inside(child));
  return found;
}

function read(reader) {
  return new Promise((resolve, reject) => reader.readEntries(resolve, reject));
}
