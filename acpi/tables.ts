// All ACPI tables of a board, laid out in guest memory one after another.
// A new table is one file like slit.ts and one line in `pointed` below; nothing else knows the
// list.

import { type AcpiBoard, checkBoard, TABLES_ALIGNMENT } from "./board.ts";
import { buildDsdt } from "./dsdt.ts";
import { buildFacs } from "./facs.ts";
import { buildFadt } from "./fadt.ts";
import { buildHmat } from "./hmat.ts";
import { buildMadt } from "./madt.ts";
import { buildRsdp, RSDP } from "./rsdp.ts";
import { buildSlit } from "./slit.ts";
import { buildSrat } from "./srat.ts";
import { buildXsdt } from "./xsdt.ts";

export interface AcpiBlob {
  gpa: bigint;
  /** The table's signature; "RSDP" for the pointer. */
  name: string;
  bytes: Uint8Array;
}

export interface AcpiTables {
  /** Guest-physical address of the RSDP: the board's base. */
  rsdp: bigint;
  /** In address order, each aligned to 64 bytes, none overlapping. */
  blobs: AcpiBlob[];
}

/** Throws SsihvError "acpi_invalid" for a board that cannot exist. */
export function buildTables(board: AcpiBoard): AcpiTables {
  checkBoard(board);
  const blobs: AcpiBlob[] = [];
  let next = board.base + BigInt(RSDP.size);
  const place = (name: string, bytes: Uint8Array): bigint => {
    // Only the FACS needs 64; the same for all keeps every table in as few cache lines as it takes.
    const gpa = (next + TABLES_ALIGNMENT - 1n) & -TABLES_ALIGNMENT;
    blobs.push({ gpa, name, bytes });
    next = gpa + BigInt(bytes.length);
    return gpa;
  };
  const facs = place("FACS", buildFacs());
  const dsdt = place("DSDT", buildDsdt(board));
  const pointed = [
    place("FACP", buildFadt(facs, dsdt, board.hardware)),
    place("APIC", buildMadt(board)),
    place("SRAT", buildSrat(board)),
    place("SLIT", buildSlit(board)),
    ...(board.costs === undefined ? [] : [place("HMAT", buildHmat(board, board.costs))]),
  ];
  const xsdt = place("XSDT", buildXsdt(pointed));
  blobs.unshift({ gpa: board.base, name: "RSDP", bytes: buildRsdp(xsdt) });
  return { rsdp: board.base, blobs };
}
