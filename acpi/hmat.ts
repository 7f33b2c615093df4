// HMAT (ACPI 6.3, 5.2.27): how long a CPU of one node waits for memory of another, and how much of
// it comes in a second. Numbers where the SLIT has only ratios; Linux shows those of a node's own
// CPUs under /sys/devices/system/node/node*/access0.
// Entries have 16 bits, in units that the table names: the finest unit is taken in which the
// largest value still fits.

import { type AcpiBoard, checkCosts, type MemoryCosts } from "./board.ts";
import { Encoder, encodeTable } from "./encoder.ts";
import { encode, type Flag, type Layout, layout, reserved, u8, u16, u32, u64 } from "./layout.ts";

/** ACPI 6.3: the unit of latencies is the picosecond. */
export const HMAT_REVISION = 2;

export const HMAT = layout("Heterogeneous memory attributes", [reserved(4)]);

/** Bytes before a structure's own fields: type (16 bits), reserved, length (32 bits). */
export const STRUCTURE_HEADER_BYTES = 8;
export const STRUCTURE_LENGTH_OFFSET = 4;

/** A structure of the HMAT; lists follow the fields of locality structures. */
export interface Structure<N extends string = string> extends Layout<N> {
  readonly type: number;
}

const ATTRIBUTE_FLAGS: readonly Flag[] = [
  [0, "INITIATOR_VALID", "the initiator's node is that of the memory's own CPUs"],
];

export const PROXIMITY: Structure<"flags" | "initiator" | "memory"> = {
  type: 0,
  ...layout("Memory proximity domain attributes", [
    u16("flags", "state", { flags: ATTRIBUTE_FLAGS }),
    reserved(2),
    u32("initiator", "node of the CPUs next to the memory"),
    u32("memory", "node of the memory"),
    reserved(4),
    reserved(8),
    reserved(8),
  ]),
};

const DATA_TYPES: readonly string[] = [
  "access latency, picoseconds",
  "read latency, picoseconds",
  "write latency, picoseconds",
  "access bandwidth, MB/s",
  "read bandwidth, MB/s",
  "write bandwidth, MB/s",
];
const ACCESS_LATENCY = 0;
const ACCESS_BANDWIDTH = 3;

export const LOCALITY: Structure<"flags" | "dataType" | "initiators" | "targets" | "unit"> = {
  type: 1,
  ...layout("System locality latency and bandwidth", [
    u8("flags", "memory hierarchy: 0 is memory itself"),
    u8("dataType", "what the matrix holds", {
      show: (value) => DATA_TYPES[Number(value)] ?? "unknown",
    }),
    reserved(2),
    u32("initiators", "number of nodes with CPUs; their numbers follow"),
    u32("targets", "number of nodes with memory; their numbers follow"),
    reserved(4),
    u64("unit", "an entry of the matrix is a multiple of this"),
  ]),
};

export const STRUCTURES = [PROXIMITY, LOCALITY] as const;

/** Nothing known, and unreachable. */
const ENTRY_MIN = 1;
const ENTRY_MAX = 0xfffe;

const PS_PER_NS = 1000;

function encodeStructure<N extends string>(
  out: Encoder,
  shape: Structure<N>,
  values: Readonly<Record<N, number | bigint>>,
  lists: Uint8Array = new Uint8Array(),
): void {
  const length = STRUCTURE_HEADER_BYTES + shape.size + lists.length;
  out.u16(shape.type).zeros(2).u32(length);
  encode(out, shape, values);
  out.bytes(lists);
}

/** `matrix[initiator][target]` for the nodes given, in the finest multiple of `step` that fits. */
function encodeLocality(
  out: Encoder,
  dataType: number,
  nodes: { readonly initiators: readonly number[]; readonly targets: readonly number[] },
  matrix: (initiator: number, target: number) => number,
  step: number,
): void {
  const { initiators, targets } = nodes;
  const values = initiators.map((from) => targets.map((to) => matrix(from, to)));
  const unit = step * Math.max(1, Math.ceil(Math.max(...values.flat()) / step / ENTRY_MAX));
  const lists = new Encoder();
  for (const node of [...initiators, ...targets]) lists.u32(node);
  for (const value of values.flat()) {
    lists.u16(Math.min(ENTRY_MAX, Math.max(ENTRY_MIN, Math.round(value / unit))));
  }
  const counts = { initiators: initiators.length, targets: targets.length };
  encodeStructure(
    out,
    LOCALITY,
    { flags: 0, dataType, unit: BigInt(unit), ...counts },
    lists.finish(),
  );
}

/** Throws SsihvError "acpi_invalid" for costs that do not fit the board. */
export function buildHmat(board: AcpiBoard, costs: MemoryCosts): Uint8Array {
  checkCosts(costs, board.distances.length);
  const initiators = [...new Set(board.cpus.map(({ node }) => node))].sort((a, b) => a - b);
  const targets = [...new Set(board.memory.map(({ node }) => node))].sort((a, b) => a - b);
  const body = new Encoder();
  encode(body, HMAT, {});
  for (const memory of targets) {
    const own = initiators.includes(memory);
    const values = { flags: own ? 1 : 0, initiator: own ? memory : 0, memory };
    encodeStructure(body, PROXIMITY, values);
  }
  const nodes = { initiators, targets };
  const latency = (from: number, to: number) => (costs.latencyNs[from]?.[to] ?? 0) * PS_PER_NS;
  encodeLocality(body, ACCESS_LATENCY, nodes, latency, PS_PER_NS);
  const bandwidth = (from: number, to: number) => costs.bandwidthMBps[from]?.[to] ?? 0;
  encodeLocality(body, ACCESS_BANDWIDTH, nodes, bandwidth, 1);
  return encodeTable("HMAT", HMAT_REVISION, body.finish());
}
