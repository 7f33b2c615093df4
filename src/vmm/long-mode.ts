// A vCPU that starts in 64-bit mode: GDT, identity page tables and registers for a loader's entry
// point. Fixed places in low memory: GDT at 0x1000, stack below 0x8000, page tables at
// 0x9000-0xF000. The first 4 GiB are mapped with 2 MiB pages (every x86-64 CPU has them); what
// boots maps the rest.

import type { Load, Segment, VcpuRecord } from "./records.ts";

const GDT_AT = 0x1000n;
/** Top of the boot stack: a loader's entry may push before it has its own. */
export const BOOT_STACK = 0x8000n;
const PML4_AT = 0x9000n;
const PDPT_AT = 0xa000n;
const PD_AT = 0xb000n;
const PD_COUNT = 4; // one GiB each
const TABLE_BYTES = 4096n;
const ENTRIES = 512;

/** Page-table entry bits (SDM vol. 3A, 4.5). */
const PRESENT_WRITABLE = 0x3n;
const PAGE_SIZE_2M = 0x80n;

/** Selectors that Linux's boot protocol asks for: __BOOT_CS and __BOOT_DS. */
const CS = 0x10;
const DS = 0x18;
const TR = 0x20;
/**
 * Descriptors (SDM vol. 3A, 3.4.5): null, null, 64-bit code, flat data, a 16-byte TSS of no use.
 */
const GDT = [0n, 0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn, 0x0000_8b00_0000_0067n, 0n];

/** CR0: PE, ET, NE, PG. CR4: PAE. EFER: LME, LMA (SDM vol. 3A, 2.5 and 2.2.1). */
const CR0 = 0x8000_0031n;
const CR4 = 0x20n;
const EFER = 0x500n;
/** RFLAGS bit 1 is always one; interrupts off. */
const RFLAGS = 0x2n;

function words(values: readonly bigint[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  const view = new DataView(bytes.buffer);
  for (const [index, value] of values.entries()) view.setBigUint64(index * 8, value, true);
  return bytes;
}

export function bootTables(): Load[] {
  const pdpt = Array.from({ length: PD_COUNT }, (_, gib) => {
    return (PD_AT + BigInt(gib) * TABLE_BYTES) | PRESENT_WRITABLE;
  });
  const pages = Array.from({ length: PD_COUNT * ENTRIES }, (_, index) => {
    return (BigInt(index) << 21n) | PAGE_SIZE_2M | PRESENT_WRITABLE;
  });
  const table = (entries: readonly bigint[]): Uint8Array => {
    const bytes = new Uint8Array(Number(TABLE_BYTES));
    bytes.set(words(entries));
    return bytes;
  };
  return [
    { gpa: GDT_AT, bytes: words(GDT) },
    { gpa: PML4_AT, bytes: table([PDPT_AT | PRESENT_WRITABLE]) },
    { gpa: PDPT_AT, bytes: table(pdpt) },
    { gpa: PD_AT, bytes: words(pages) },
  ];
}

const FLAT: Omit<Segment, "selector" | "type" | "db" | "l"> = {
  base: 0n,
  limit: 0xffff_ffff,
  present: 1,
  dpl: 0,
  s: 1,
  g: 1,
  avl: 0,
  unusable: 0,
};

/** Types (SDM vol. 3A, 3.4.5.1 and 3.5): accessed code, accessed data, busy 64-bit TSS, LDT. */
const code: Segment = { ...FLAT, selector: CS, type: 0xb, db: 0, l: 1 };
const data: Segment = { ...FLAT, selector: DS, type: 0x3, db: 1, l: 0 };
const tss: Segment = { ...FLAT, selector: TR, type: 0xb, db: 0, l: 0, s: 0, g: 0, limit: 0x67 };
const ldt: Segment = {
  ...FLAT,
  selector: 0,
  type: 0x2,
  db: 0,
  l: 0,
  s: 0,
  g: 0,
  limit: 0xffff,
  unusable: 1,
};

/** Registers at a 64-bit entry point; everything not named is zero. */
export function longModeRegisters(at: { rip: bigint; rsi: bigint; rsp: bigint }): VcpuRecord {
  return {
    rax: 0n,
    rbx: 0n,
    rcx: 0n,
    rdx: 0n,
    rsi: at.rsi,
    rdi: 0n,
    rsp: at.rsp,
    rbp: 0n,
    r8: 0n,
    r9: 0n,
    r10: 0n,
    r11: 0n,
    r12: 0n,
    r13: 0n,
    r14: 0n,
    r15: 0n,
    rip: at.rip,
    rflags: RFLAGS,
    cs: { ...code },
    ds: { ...data },
    es: { ...data },
    fs: { ...data },
    gs: { ...data },
    ss: { ...data },
    tr: { ...tss },
    ldt: { ...ldt },
    gdt: { base: GDT_AT, limit: GDT.length * 8 - 1 },
    idt: { base: 0n, limit: 0 },
    cr0: CR0,
    cr2: 0n,
    cr3: PML4_AT,
    cr4: CR4,
    cr8: 0n,
    efer: EFER,
  };
}
