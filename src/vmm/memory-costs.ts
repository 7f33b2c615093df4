// What the guest is told of its memory's latency and bandwidth (ACPI HMAT): what the engines
// measured as they linked, in the guest's time, or what the configuration says instead.

import type { MemoryCosts } from "../../acpi/board.ts";
import type { MemoryCostsGiven } from "../config/memory-costs.ts";

/** abi.zig LinkCost; zeros: not measured. */
export interface LinkCost {
  readonly latency_ns: bigint;
  readonly bytes_per_second: bigint;
}

const BYTES_PER_MEGABYTE = 1e6;

/**
 * Undefined where neither says something of every pair of the `nodes` nodes. A clock that runs
 * `dilation` times slower sees memory that many times faster.
 */
export function guestCosts(
  measured: readonly (readonly LinkCost[])[],
  nodes: number,
  dilation: number,
  given: MemoryCostsGiven = {},
): MemoryCosts | undefined {
  const all = Array.from({ length: nodes }, (_, node) => node);
  const matrix = (value: (cost: LinkCost) => number) =>
    all.map((from) =>
      all.map((to) => {
        const cost = measured[from]?.[to];
        return cost === undefined ? 0 : value(cost);
      }),
    );
  const latencyNs = given.latencyNs ?? matrix((cost) => Number(cost.latency_ns) / dilation);
  const bandwidthMBps =
    given.bandwidthMBps ??
    matrix((cost) => (Number(cost.bytes_per_second) / BYTES_PER_MEGABYTE) * dilation);
  const isKnown = [...latencyNs.flat(), ...bandwidthMBps.flat()].every((value) => value > 0);
  return isKnown ? { latencyNs, bandwidthMBps } : undefined;
}

/** 1050, not 1.05e+3: of a loaded host a cache line may take that long. */
function threeDigits(value: number): string {
  return value < 999.5 ? value.toPrecision(3) : String(Math.round(value));
}

/** "node 0 to node 1: a page in 43 us, 1.2 GB/s", a line per pair, and each node's own memory. */
export function costLines({ latencyNs, bandwidthMBps }: MemoryCosts): string[] {
  return latencyNs.flatMap((row, from) =>
    row.flatMap((ns, to) => {
      if (to < from) return [];
      const speed = `${threeDigits((bandwidthMBps[from]?.[to] ?? 0) / 1000)} GB/s`;
      if (to === from) return [`node ${from}: a cache line in ${threeDigits(ns)} ns, ${speed}`];
      return [`node ${from} to node ${to}: a page in ${threeDigits(ns / 1000)} us, ${speed}`];
    }),
  );
}
