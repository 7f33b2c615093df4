// Sizes as people write them: "512M", "4G", "1.5GiB", "2048 KiB", "1073741824". Powers of two
// always: memory is sold in them. Decimal units (MB, GB) are read as binary too, as QEMU and Linux
// do.

import { SsihvError } from "../base/errors.ts";

const SHIFTS: Record<string, bigint> = { "": 0n, b: 0n, k: 10n, m: 20n, g: 30n, t: 40n };

/** Digits, perhaps a fraction, perhaps a unit: K, M, G, T with "B" or "iB" after it. */
const SIZE = /^(\d{1,16})(?:\.(\d{1,9}))?\s*([kmgt]?)(i?b)?$/i;

const HINT = "write a number with a unit: 512M, 4G or 1.5GiB";
/** Far above any address a guest can have; keeps hostile input out of arithmetic. */
const BYTES_MAX = 1n << 52n;

/** Bytes of `text`; `what` names it in errors ("--memory"). */
export function parseSize(text: string, what: string): bigint {
  const match = SIZE.exec(text.trim());
  const [, whole, fraction = "", unit = "", suffix = ""] = match ?? [];
  const shift = SHIFTS[unit.toLowerCase()];
  if (whole === undefined || shift === undefined || (unit === "" && /i/i.test(suffix))) {
    const shown = text.length > 40 ? `${text.slice(0, 40)}...` : text;
    throw new SsihvError("flag_invalid", `${what}: "${shown}" is not a size`, { hint: HINT });
  }
  const scale = 10n ** BigInt(fraction.length);
  const scaled = BigInt(`${whole}${fraction}`) << shift;
  if (scaled % scale !== 0n) {
    throw new SsihvError("flag_invalid", `${what}: "${text}" is not a whole number of bytes`, {
      hint: HINT,
    });
  }
  const bytes = scaled / scale;
  if (bytes === 0n || bytes > BYTES_MAX) {
    const why = bytes === 0n ? "is nothing" : "is more than any host addresses";
    throw new SsihvError("flag_invalid", `${what}: "${text}" ${why}`, { hint: HINT });
  }
  return bytes;
}

/** Nothing is a size here, too: "0", with or without a unit. */
export function parseSizeOrNone(text: string, what: string): bigint {
  return /^0+\s*[kmgt]?(i?b)?$/i.test(text.trim()) ? 0n : parseSize(text, what);
}

/** Shortest exact form: "512M", "1536M", "4G"; plain bytes when no unit divides. */
export function formatSize(bytes: bigint): string {
  for (const [unit, shift] of [
    ["T", 40n],
    ["G", 30n],
    ["M", 20n],
    ["K", 10n],
  ] as const) {
    if (bytes !== 0n && bytes % (1n << shift) === 0n) return `${bytes >> shift}${unit}`;
  }
  return `${bytes}`;
}
