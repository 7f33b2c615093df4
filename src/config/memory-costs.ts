// What a user says that the guest is to be told of its memory (ACPI HMAT), in place of what links
// and hosts are found to do: matrices over the guest's nodes, in files of every kind.

import { Type } from "@sinclair/typebox";

import { parseDurationNs } from "./duration.ts";
import { parseSize } from "./size.ts";
import { type Reader, show } from "./yaml-schema.ts";
import type { Path } from "./yaml-source.ts";

const Text = Type.String({ minLength: 1, maxLength: 4096 });

/** Between all nodes: a row for each node's CPUs, in it a value for each node's memory. */
export const Matrix = Type.Array(Type.Array(Text, { minItems: 1, maxItems: 8 }), {
  minItems: 1,
  maxItems: 8,
});

/** What a file should have had. */
export const MATRICES_EXPECTED = {
  memory_latency: 'rows of durations such as [["90ns", "40us"], ["40us", "90ns"]]',
  memory_bandwidth: 'rows of sizes a second such as [["20G", "1G"], ["1G", "20G"]]',
};

/** Matrices over the guest's nodes, [node of the CPU][node of the memory]. */
export interface MemoryCostsGiven {
  readonly latencyNs?: readonly (readonly number[])[] | undefined;
  readonly bandwidthMBps?: readonly (readonly number[])[] | undefined;
}

type Raw = { readonly [key in keyof typeof MATRICES_EXPECTED]?: string[][] };

const BYTES_PER_MEGABYTE = 1e6;

/** `count` rows of `count` values; undefined where the key is absent. */
function readMatrix(
  raw: Raw,
  section: Path,
  key: keyof Raw,
  count: number,
  reader: Reader,
): number[][] | undefined {
  const rows = raw[key];
  if (rows === undefined) return undefined;
  const whole = [...section, key];
  if (rows.length !== count || rows.some((row) => row.length !== count)) {
    reader.blame(whole, `${show(whole)}: ${count} rows of ${count} values, one for each node`);
  }
  const parse =
    key === "memory_latency"
      ? parseDurationNs
      : (text: string, what: string) => Number(parseSize(text, what)) / BYTES_PER_MEGABYTE;
  return rows.map((row, i) =>
    row.map((text, j) => {
      const path = [...whole, i, j];
      const value = reader.at(path, text, parse, 1);
      if (!(value > 0)) reader.blame(path, `${show(path)}: "${text}" is nothing`);
      return value;
    }),
  );
}

/** `section`: where in the file the keys are. */
export function readCosts(
  raw: Raw,
  section: Path,
  count: number,
  reader: Reader,
): { readonly memoryCosts?: MemoryCostsGiven } {
  const latencyNs = readMatrix(raw, section, "memory_latency", count, reader);
  const bandwidthMBps = readMatrix(raw, section, "memory_bandwidth", count, reader);
  if (latencyNs === undefined && bandwidthMBps === undefined) return {};
  return { memoryCosts: { latencyNs, bandwidthMBps } };
}
