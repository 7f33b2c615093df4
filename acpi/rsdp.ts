// RSDP (ACPI 6.3, 5.2.5.3): the one structure a guest must find by itself or by boot_params; it
// points at the XSDT. Revision 2, no RSDT: every 64-bit guest reads the XSDT.

import { checksum, Encoder, OEM_ID } from "./encoder.ts";
import { ascii, encode, layout, reserved, u8, u32, u64 } from "./layout.ts";

/** The first 20 bytes, all that ACPI 1.0 had, carry their own checksum. */
export const RSDP_V1_BYTES = 20;
export const RSDP_SIGNATURE = "RSD PTR ";
const CHECKSUM_OFFSET = 8;
const EXTENDED_CHECKSUM_OFFSET = 32;

const V1_FIELDS = [
  ascii("signature", 8, 'must be "RSD PTR "'),
  u8("checksum", "makes the first 20 bytes sum to zero"),
  ascii("oemId", 6, "who made the machine"),
  u8("revision", "0 is ACPI 1.0, 2 is everything since"),
  u32("rsdtAddress", "physical address of the RSDT, 0: none"),
] as const;

export const RSDP_V1 = layout("RSDP of ACPI 1.0", [...V1_FIELDS]);

export const RSDP = layout("Root system description pointer", [
  ...V1_FIELDS,
  u32("length", "bytes of this structure"),
  u64("xsdtAddress", "physical address of the XSDT"),
  u8("extendedChecksum", "makes all bytes sum to zero"),
  reserved(3),
]);

export function buildRsdp(xsdt: bigint): Uint8Array {
  const out = new Encoder();
  encode(out, RSDP, {
    signature: RSDP_SIGNATURE,
    checksum: 0,
    oemId: OEM_ID,
    revision: 2,
    rsdtAddress: 0,
    length: RSDP.size,
    xsdtAddress: xsdt,
    extendedChecksum: 0,
  });
  const bytes = out.finish();
  bytes[CHECKSUM_OFFSET] = checksum(bytes.subarray(0, RSDP_V1_BYTES));
  bytes[EXTENDED_CHECKSUM_OFFSET] = checksum(bytes);
  return bytes;
}
