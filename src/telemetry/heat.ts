// Where in a guest's memory the remote faults are: counts by block as the engines keep them
// (zig/memory/heat.zig). Blocks number the RAM ranges laid end to end, the holes between left out,
// so what block a number is follows from the ranges alone.

/** RAM from `gpa` on whose home is `node`. */
export interface RamPart {
  readonly gpa: number;
  readonly bytes: number;
  readonly node: number;
}

/** One node's counts since its engine started, modulo 2^32; blocks behind the last are at zero. */
export interface NodeHeat {
  readonly blockBytes: number;
  readonly faults: readonly number[];
}

export interface HeatBlock {
  readonly block: number;
  readonly gpa: number;
  readonly bytes: number;
  /** Of its first page: a block above 2 MiB may have pages of two homes. */
  readonly home: number;
}

export interface HotBlock extends HeatBlock {
  readonly faults: number;
}

const MODULUS = 2 ** 32;

export function blockCount(ranges: readonly RamPart[], blockBytes: number): number {
  const bytes = ranges.reduce((sum, range) => sum + range.bytes, 0);
  return blockBytes === 0 ? 0 : Math.ceil(bytes / blockBytes);
}

/** Undefined: there is no such block. */
export function blockAt(
  ranges: readonly RamPart[],
  blockBytes: number,
  block: number,
): HeatBlock | undefined {
  let offset = block * blockBytes;
  const left = ranges.reduce((sum, range) => sum + range.bytes, 0) - offset;
  for (const { gpa, bytes, node } of ranges) {
    if (offset < bytes) {
      return { block, gpa: gpa + offset, bytes: Math.min(blockBytes, left), home: node };
    }
    offset -= bytes;
  }
  return undefined;
}

/** What was counted between two looks; an engine that was started anew began again at zero. */
export function heatBetween(before: NodeHeat | undefined, after: NodeHeat): number[] {
  const same = before !== undefined && before.blockBytes === after.blockBytes;
  const was = (i: number) => (same ? (before.faults[i] ?? 0) : 0);
  const isNew = after.faults.some((count, i) => count < was(i) && was(i) - count < MODULUS / 2);
  if (isNew) return [...after.faults];
  return after.faults.map((count, i) => (count - was(i) + MODULUS) % MODULUS);
}

/** Counts of several nodes, block by block. */
export function sumHeat(lists: readonly (readonly number[])[]): number[] {
  const length = lists.reduce((most, list) => Math.max(most, list.length), 0);
  return Array.from({ length }, (_, i) => lists.reduce((sum, list) => sum + (list[i] ?? 0), 0));
}

/** The blocks with the most faults, most first; those without any are left out. */
export function hottest(
  ranges: readonly RamPart[],
  blockBytes: number,
  counts: readonly number[],
  limit: number,
): HotBlock[] {
  return counts
    .map((faults, block) => ({ faults, block }))
    .filter(({ faults }) => faults > 0)
    .sort((a, b) => b.faults - a.faults || a.block - b.block)
    .slice(0, limit)
    .flatMap(({ faults, block }) => {
      const found = blockAt(ranges, blockBytes, block);
      return found === undefined ? [] : [{ ...found, faults }];
    });
}
