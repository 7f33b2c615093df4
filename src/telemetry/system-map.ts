// Symbols of a guest kernel for addresses in reports, from a System.map or a copy of
// /proc/kallsyms. Both list virtual addresses; a report has guest-physical ones. The kernel image
// is mapped as one piece, so one known pair (the symbol _text and where the image was loaded)
// turns one into the other; with address randomisation (no nokaslr) the pair is wrong, hence the
// map must be of the running boot.

import { readFileSync } from "node:fs";
import { SsihvError } from "../base/errors.ts";

/** Symbols sorted by address. */
export interface SymbolMap {
  readonly addresses: readonly bigint[];
  readonly names: readonly string[];
}

const LINE = /^([0-9a-f]{8,16}) [A-Za-z] (\S+)/;

/** Parses a System.map; throws `config_invalid` when it has no _text. */
export function parseSystemMap(text: string, file: string): SymbolMap {
  const found: { address: bigint; name: string }[] = [];
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match === null) continue;
    found.push({ address: BigInt(`0x${match[1]}`), name: match[2] ?? "" });
  }
  if (!found.some(({ name }) => name === "_text")) {
    throw new SsihvError("config_invalid", `${file} has no symbol _text`, {
      hint: "give the kernel's System.map, or a copy of the guest's /proc/kallsyms read as root",
    });
  }
  found.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
  return { addresses: found.map((s) => s.address), names: found.map((s) => s.name) };
}

/** Reads and parses one; throws `config_invalid` when it cannot be read. */
export function readSystemMap(file: string): SymbolMap {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new SsihvError("config_invalid", `--system-map: ${file} cannot be read`, {
      hint: "give the kernel's System.map, or a copy of the guest's /proc/kallsyms",
      cause,
    });
  }
  return parseSystemMap(text, file);
}

/**
 * The symbol at or before a guest-physical address, as name+0xoffset; undefined outside the image.
 * `textGpa`: where the symbol _text lies in guest-physical memory.
 */
export function symbolAt(map: SymbolMap, gpa: bigint, textGpa: bigint): string | undefined {
  const text = map.addresses[map.names.indexOf("_text")] ?? 0n;
  const end = map.names.indexOf("_end");
  const address = gpa - textGpa + text;
  if (address < text || (end >= 0 && address >= (map.addresses[end] ?? 0n))) return undefined;
  let low = 0;
  let high = map.addresses.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((map.addresses[middle] ?? 0n) <= address) low = middle;
    else high = middle - 1;
  }
  const offset = address - (map.addresses[low] ?? 0n);
  return `${map.names[low]}+0x${offset.toString(16)}`;
}
