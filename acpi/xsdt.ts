// XSDT (ACPI 6.3, 5.2.8): the addresses of all tables but FACS and DSDT, which the FADT points at.

import { Encoder, encodeTable } from "./encoder.ts";

export const XSDT_REVISION = 1;
/** Bytes of one entry. */
export const XSDT_ENTRY_BYTES = 8;

export function buildXsdt(tables: readonly bigint[]): Uint8Array {
  const body = new Encoder();
  for (const address of tables) body.u64(address);
  return encodeTable("XSDT", XSDT_REVISION, body.finish());
}
