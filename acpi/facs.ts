// FACS (ACPI 6.3, 5.2.10): the page firmware and OS share. There is no firmware here and no sleep
// state but S5, so all it offers is the global lock, which nobody else takes. It has no checksum.

import { Encoder } from "./encoder.ts";
import { ascii, encode, layout, reserved, u8, u32, u64 } from "./layout.ts";

export const FACS = layout("Firmware ACPI control structure", [
  ascii("signature", 4, 'must be "FACS"'),
  u32("length", "bytes of this structure"),
  u32("hardwareSignature", "changes when the hardware did: a hibernated OS then boots fresh"),
  u32("wakingVector", "real-mode address to resume from S3 at"),
  u32("globalLock", "bit 0 pending, bit 1 owned: lock between OS and firmware"),
  u32("flags", "what waking from S4 supports", {
    flags: [
      [0, "S4BIOS_F", "firmware saves and restores memory for S4"],
      [1, "64BIT_WAKE_SUPPORTED_F", "firmware can wake into 64-bit mode"],
    ],
  }),
  u64("xWakingVector", "protected or long mode address to resume from S3 at"),
  u8("version", "2 since ACPI 4.0"),
  reserved(3),
  u32("ospmFlags", "set by the OS", {
    flags: [[0, "64BIT_WAKE_F", "the OS wants to be woken in 64-bit mode"]],
  }),
  reserved(24),
]);

export const FACS_SIGNATURE = "FACS";

export function buildFacs(): Uint8Array {
  const out = new Encoder();
  encode(out, FACS, {
    signature: FACS_SIGNATURE,
    length: FACS.size,
    hardwareSignature: 0,
    wakingVector: 0,
    globalLock: 0,
    flags: 0,
    xWakingVector: 0n,
    version: 2,
    ospmFlags: 0,
  });
  return out.finish();
}
