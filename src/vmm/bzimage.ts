// Linux x86 boot protocol (Documentation/arch/x86/boot.rst), version 2.12 and up, by the 64-bit
// entry: where kernel, initrd, command line and zero page go, and the boot vCPU's registers.
// Nothing big is copied here: kernel and initrd become file ranges. Every field of the header is
// the file's claim and is checked before use; what the guest needs below 1 MiB lies at fixed
// addresses.

import type { BootFile } from "../base/boot-file.ts";
import { SsihvError } from "../base/errors.ts";
import { BOOT_STACK, bootTables, longModeRegisters } from "./long-mode.ts";
import type { E820Kind, MemoryMap } from "./memory-map.ts";
import type { Load, VcpuRecord } from "./records.ts";

/**
 * Offsets in the file's first sectors and in the zero page alike (boot.rst, "The real-mode
 * header").
 */
const HDR = {
  setupSects: 0x1f1,
  syssize: 0x1f4,
  vidMode: 0x1fa,
  bootFlag: 0x1fe,
  jump: 0x201,
  magic: 0x202,
  version: 0x206,
  typeOfLoader: 0x210,
  loadflags: 0x211,
  code32Start: 0x214,
  ramdiskImage: 0x218,
  ramdiskSize: 0x21c,
  cmdLinePtr: 0x228,
  initrdAddrMax: 0x22c,
  kernelAlignment: 0x230,
  relocatable: 0x234,
  minAlignment: 0x235,
  xloadflags: 0x236,
  cmdlineSize: 0x238,
  prefAddress: 0x258,
  initSize: 0x260,
} as const;

/** Offsets of the zero page outside the header (boot.rst, zero-page.rst). */
const ZERO_PAGE = {
  acpiRsdpAddr: 0x070,
  e820Entries: 0x1e8,
  e820Table: 0x2d0,
  e820EntryBytes: 20,
  e820Max: 128,
  bytes: 4096,
} as const;

const HDRS_MAGIC = 0x53726448; // "HdrS"
const VERSION_MIN = 0x020c;
const LOADED_HIGH = 1;
const XLF_KERNEL_64 = 1;
const LOADER_UNDEFINED = 0xff;
const VIDEO_NORMAL = 0xffff;
/** startup_64 lies this far into the protected-mode kernel (boot.rst, 64-bit boot protocol). */
const ENTRY_64 = 0x200n;

/**
 * Fixed places below 640 KiB; tables and stack are long-mode.ts's, at 0x1000-0x8000 and
 * 0x9000-0xf000.
 */
const ZERO_PAGE_AT = 0x1_0000n;
const CMDLINE_AT = 0x2_0000n;
/** Longest command line that fits between CMDLINE_AT and the EBDA; Linux takes 2047 today. */
const CMDLINE_ROOM = 0x1_0000;
const KERNEL_AT_MIN = 0x10_0000n;
const PAGE = 4096n;

const E820_TYPE: Record<E820Kind, number> = { ram: 1, reserved: 2, acpi: 3, nvs: 4 };

export interface KernelHeader {
  setupBytes: number;
  kernelBytes: number;
  version: number;
  relocatable: boolean;
  alignment: bigint;
  minAlignment: bigint;
  prefAddress: bigint;
  initSize: bigint;
  cmdlineMax: number;
  initrdAddrMax: bigint;
  /** The header's own bytes, 0x1f1 up to its end. */
  raw: Uint8Array;
}

export interface BootRequest {
  kernel: BootFile;
  initrd?: BootFile | undefined;
  cmdline: string;
  memory: MemoryMap;
  rsdp: bigint;
}

export interface BootPlan {
  loads: Load[];
  registers: VcpuRecord;
  kernelAt: bigint;
  initrdAt: bigint | undefined;
}

function refuse(kernel: BootFile, what: string, hint: string): never {
  throw new SsihvError("kernel_invalid", `kernel ${kernel.path} ${what}`, { hint });
}

/** First bytes that tell other formats people hand to a loader, [offset, bytes, name, hint]. */
const BZIMAGE_HINT = "give the bzImage: /boot/vmlinuz-* or arch/x86/boot/bzImage of a build";
const FORMATS: readonly (readonly [number, readonly number[], string, string])[] = [
  [0, [0x7f, 0x45, 0x4c, 0x46], "an ELF file (a vmlinux?)", BZIMAGE_HINT],
  [0x38, [0x41, 0x52, 0x4d, 0x64], "an arm64 Linux image", "give a kernel built for x86-64"],
  [0x38, [0x52, 0x53, 0x43, 0x05], "a RISC-V Linux image", "give a kernel built for x86-64"],
  [0, [0x4d, 0x5a], "an EFI application without a Linux boot header", BZIMAGE_HINT],
  [0, [0x1f, 0x8b], "gzip data", `unpack it first, or ${BZIMAGE_HINT}`],
  [0, [0xfd, 0x37, 0x7a, 0x58, 0x5a], "xz data", `unpack it first, or ${BZIMAGE_HINT}`],
  [0, [0x28, 0xb5, 0x2f, 0xfd], "zstd data", `unpack it first, or ${BZIMAGE_HINT}`],
  [0, [0x42, 0x5a, 0x68], "bzip2 data", `unpack it first, or ${BZIMAGE_HINT}`],
  [0, [0x27, 0x05, 0x19, 0x56], "a U-Boot image", BZIMAGE_HINT],
  [0, [0x30, 0x37, 0x30, 0x37, 0x30], "a cpio archive (the initrd?)", "swap kernel and initrd"],
  [0, [0x21, 0x3c, 0x61, 0x72, 0x63, 0x68, 0x3e], "a Debian package or archive", "unpack it"],
  [0, [0x23, 0x21], "a script", BZIMAGE_HINT],
];

function nameFormat(head: Uint8Array): { name: string; hint: string } {
  for (const [offset, bytes, name, hint] of FORMATS) {
    if (bytes.every((byte, i) => head[offset + i] === byte)) return { name, hint };
  }
  return { name: "of no known format", hint: BZIMAGE_HINT };
}

const isPowerOfTwo = (value: bigint): boolean => value > 0n && (value & (value - 1n)) === 0n;

/** Reads and checks the header of a bzImage; refuses everything else by what it is. */
export function parseHeader(kernel: BootFile): KernelHeader {
  const { head } = kernel;
  if (kernel.size === 0) refuse(kernel, "is empty", BZIMAGE_HINT);
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const u32 = (at: number): number => view.getUint32(at, true);
  const fits = head.length >= HDR.initSize + 4;
  const magic =
    fits && u32(HDR.magic) === HDRS_MAGIC && view.getUint16(HDR.bootFlag, true) === 0xaa55;
  if (!magic) {
    const { name, hint } = nameFormat(head);
    refuse(kernel, `is not a bzImage: it is ${name}`, hint);
  }
  const version = view.getUint16(HDR.version, true);
  if (version < VERSION_MIN) {
    const text = `${version >>> 8}.${String(version & 0xff).padStart(2, "0")}`;
    refuse(kernel, `speaks boot protocol ${text}, 2.12 is needed`, "use Linux 3.8 or newer");
  }
  if ((view.getUint8(HDR.loadflags) & LOADED_HIGH) === 0) {
    refuse(kernel, "is a zImage that loads below 1 MiB", BZIMAGE_HINT);
  }
  if ((view.getUint16(HDR.xloadflags, true) & XLF_KERNEL_64) === 0) {
    refuse(kernel, "is a 32-bit kernel: it has no 64-bit entry", "use an x86-64 (amd64) kernel");
  }
  const sectors = view.getUint8(HDR.setupSects) || 4; // 0 means 4 (boot.rst)
  const setupBytes = (sectors + 1) * 512;
  const kernelBytes = u32(HDR.syssize) * 16;
  // syssize counts 16-byte units, rounded up: the file may be up to 15 bytes shorter.
  if (kernelBytes === 0 || kernel.size + 15 < setupBytes + kernelBytes) {
    refuse(
      kernel,
      `is cut short: its header tells ${setupBytes + kernelBytes} bytes, it has ${kernel.size}`,
      "copy or download it again",
    );
  }
  const headerEnd = Math.min(HDR.magic + view.getUint8(HDR.jump), head.length);
  const header: KernelHeader = {
    setupBytes,
    kernelBytes: Math.min(kernelBytes, kernel.size - setupBytes),
    version,
    relocatable: view.getUint8(HDR.relocatable) !== 0,
    alignment: BigInt(u32(HDR.kernelAlignment)),
    minAlignment: 1n << BigInt(view.getUint8(HDR.minAlignment) & 63),
    prefAddress: view.getBigUint64(HDR.prefAddress, true),
    initSize: BigInt(u32(HDR.initSize)),
    cmdlineMax: u32(HDR.cmdlineSize),
    initrdAddrMax: BigInt(u32(HDR.initrdAddrMax)),
    raw: head.slice(HDR.setupSects, headerEnd),
  };
  const broken =
    headerEnd < HDR.initSize + 4 ||
    header.initSize < BigInt(header.kernelBytes) ||
    (header.relocatable && !isPowerOfTwo(header.alignment)) ||
    header.prefAddress % PAGE !== 0n;
  if (broken) refuse(kernel, "has a damaged boot header", "copy or download it again");
  return header;
}

const alignUp = (value: bigint, to: bigint): bigint => ((value + to - 1n) / to) * to;

/** Where the kernel goes: its preferred address, else (relocatable) the lowest aligned place. */
function placeKernel(kernel: BootFile, header: KernelHeader, memory: MemoryMap): bigint {
  const fits = (at: bigint): boolean =>
    at >= KERNEL_AT_MIN && at + header.initSize <= memory.bootEnd;
  if (fits(header.prefAddress)) return header.prefAddress;
  if (header.relocatable) {
    for (const align of [header.alignment, header.minAlignment]) {
      const at = alignUp(KERNEL_AT_MIN, align);
      if (align >= PAGE && align <= header.alignment && fits(at)) return at;
    }
  }
  const mib = (bytes: bigint): string => `${(bytes + 0xf_ffffn) >> 20n} MiB`;
  throw new SsihvError(
    "memory_insufficient",
    `kernel ${kernel.path} needs ${mib(header.initSize)} at ${mib(header.prefAddress)}, ` +
      `node 0's low RAM ends at ${mib(memory.bootEnd)}`,
    { hint: "give node 0 more memory" },
  );
}

/** As high as header and RAM allow, page aligned, above the kernel's own work space. */
function placeInitrd(
  initrd: BootFile,
  header: KernelHeader,
  memory: MemoryMap,
  kernelAt: bigint,
): bigint {
  if (initrd.size === 0) {
    throw new SsihvError("initrd_invalid", `initrd ${initrd.path} is empty`, {
      hint: "leave --initrd out or give a cpio archive",
    });
  }
  const ceiling = header.initrdAddrMax + 1n;
  const top = ceiling < memory.bootEnd ? ceiling : memory.bootEnd;
  const at = ((top - BigInt(initrd.size)) / PAGE) * PAGE;
  const kernelEnd = kernelAt + header.initSize;
  if (top < BigInt(initrd.size) || at < kernelEnd) {
    const room = top > kernelEnd ? top - kernelEnd : 0n;
    throw new SsihvError(
      "initrd_invalid",
      `initrd ${initrd.path} has ${initrd.size} bytes, ${room} are free between kernel and ` +
        (ceiling < memory.bootEnd ? "the kernel's initrd limit" : "the end of node 0's low RAM"),
      { hint: "use a smaller initrd or give node 0 more memory" },
    );
  }
  return at;
}

function encodeCmdline(cmdline: string, header: KernelHeader): Uint8Array {
  const bytes = new TextEncoder().encode(cmdline);
  const room = Math.min(header.cmdlineMax, CMDLINE_ROOM - 1);
  if (bytes.length > room) {
    throw new SsihvError(
      "kernel_invalid",
      `the kernel command line has ${bytes.length} bytes, this kernel takes ${room}`,
      { hint: "shorten --cmdline" },
    );
  }
  if (/[\0\r\n]/.test(cmdline)) {
    throw new SsihvError("kernel_invalid", "the kernel command line has a line end or NUL in it", {
      hint: "give it as one line",
    });
  }
  const out = new Uint8Array(bytes.length + 1); // NUL terminated
  out.set(bytes);
  return out;
}

function zeroPage(
  header: KernelHeader,
  request: BootRequest,
  kernelAt: bigint,
  initrdAt: bigint | undefined,
): Uint8Array {
  const page = new Uint8Array(ZERO_PAGE.bytes);
  const view = new DataView(page.buffer);
  page.set(header.raw, HDR.setupSects);
  view.setUint8(HDR.typeOfLoader, LOADER_UNDEFINED);
  view.setUint16(HDR.vidMode, VIDEO_NORMAL, true);
  view.setUint32(HDR.code32Start, Number(kernelAt), true);
  view.setUint32(HDR.cmdLinePtr, Number(CMDLINE_AT), true);
  view.setUint32(HDR.ramdiskImage, Number(initrdAt ?? 0n), true);
  view.setUint32(HDR.ramdiskSize, request.initrd?.size ?? 0, true);
  view.setBigUint64(ZERO_PAGE.acpiRsdpAddr, request.rsdp, true);
  const { e820 } = request.memory;
  if (e820.length > ZERO_PAGE.e820Max)
    throw new Error("more e820 entries than the zero page holds");
  view.setUint8(ZERO_PAGE.e820Entries, e820.length);
  e820.forEach((entry, index) => {
    const at = ZERO_PAGE.e820Table + index * ZERO_PAGE.e820EntryBytes;
    view.setBigUint64(at, entry.base, true);
    view.setBigUint64(at + 8, entry.size, true);
    view.setUint32(at + 16, E820_TYPE[entry.kind], true);
  });
  return page;
}

/** Everything that a direct Linux boot puts into memory, and the boot vCPU's start state. */
export function loadBzImage(request: BootRequest): BootPlan {
  const { kernel, initrd, memory } = request;
  const header = parseHeader(kernel);
  const kernelAt = placeKernel(kernel, header, memory);
  const initrdAt = initrd && placeInitrd(initrd, header, memory, kernelAt);
  const loads: Load[] = [
    ...bootTables(),
    { gpa: ZERO_PAGE_AT, bytes: zeroPage(header, request, kernelAt, initrdAt) },
    { gpa: CMDLINE_AT, bytes: encodeCmdline(request.cmdline, header) },
    { gpa: kernelAt, file: kernel.path, offset: header.setupBytes, length: header.kernelBytes },
  ];
  if (initrd && initrdAt !== undefined) {
    loads.push({ gpa: initrdAt, file: initrd.path, offset: 0, length: initrd.size });
  }
  // 64-bit boot protocol: RSI holds the zero page, interrupts are off, segments are flat.
  const registers = longModeRegisters({
    rip: kernelAt + ENTRY_64,
    rsi: ZERO_PAGE_AT,
    rsp: BOOT_STACK,
  });
  return { loads, registers, kernelAt, initrdAt };
}
