// SLIT (ACPI 6.3, 5.2.17): how far every node is from every other, relative to 10 for local memory.

import type { AcpiBoard } from "./board.ts";
import { Encoder, encodeTable } from "./encoder.ts";
import { encode, layout, u64 } from "./layout.ts";

export const SLIT_REVISION = 1;

export const SLIT = layout("System locality distances", [
  u64("localities", "number of nodes; a matrix of that many rows and columns of bytes follows"),
]);

export function buildSlit(board: AcpiBoard): Uint8Array {
  const body = new Encoder();
  encode(body, SLIT, { localities: board.distances.length });
  for (const row of board.distances) for (const distance of row) body.u8(distance);
  return encodeTable("SLIT", SLIT_REVISION, body.finish());
}
