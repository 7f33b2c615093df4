// The header that every system description table begins with (ACPI 6.3, 5.2.6), as fields to
// explain. encoder.ts writes it.

import { ascii, layout, u8, u32 } from "./layout.ts";

export const HEADER = layout("System description table header", [
  ascii("signature", 4, "what table this is"),
  u32("length", "bytes of the whole table"),
  u8("revision", "version of this table's format"),
  u8("checksum", "makes all bytes of the table sum to zero"),
  ascii("oemId", 6, "who made the machine"),
  ascii("oemTableId", 8, "the maker's name for this table"),
  u32("oemRevision", "the maker's version"),
  ascii("creatorId", 4, "the tool that wrote the table"),
  u32("creatorRevision", "that tool's version"),
]);
