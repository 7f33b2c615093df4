// The VM as its ACPI tables tell it: CPUs and RAM by node, and the distances between nodes.
// The run command and `ssihv acpi` both come here, so what is dumped is what a guest gets.

import type { AcpiBoard, AcpiVirtio, MemoryCosts } from "../../acpi/board.ts";
import { BOARD } from "./board.ts";
import { type MemoryMap, numaRanges } from "./memory-map.ts";
import type { VcpuPlace } from "./topology.ts";

/** SLIT values without a measurement: one step is twice as far as local memory. */
const LOCAL = 10;
const REMOTE = 20;

/** The balloon, where the VM has one. */
const BALLOON: AcpiVirtio = {
  base: BOARD.virtioBase,
  size: BOARD.virtioBytes,
  gsi: BOARD.virtioGsi,
};

/** `distances` may be partial: distances[from][to]. */
export function acpiBoard(
  memory: MemoryMap,
  vcpus: readonly VcpuPlace[],
  nodes: number,
  distances: readonly (readonly number[])[] = [],
  costs?: MemoryCosts,
  balloon = false,
): AcpiBoard {
  const all = Array.from({ length: nodes }, (_, node) => node);
  return {
    base: memory.acpiBase,
    cpus: vcpus.map(({ apicId, uid, node }) => ({ apicId, uid, node })),
    memory: numaRanges(memory),
    distances: all.map((from) =>
      all.map((to) => distances[from]?.[to] ?? (from === to ? LOCAL : REMOTE)),
    ),
    costs,
    ...(balloon && { virtio: [BALLOON] }),
  };
}
