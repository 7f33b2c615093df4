import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { BootFile } from "../base/boot-file.ts";
import { SsihvError } from "../base/errors.ts";
import { type BootPlan, loadBzImage, parseHeader } from "./bzimage.ts";
import { kernelFile } from "./fixtures/kernel.ts";
import { layoutMemory, type MemoryMap } from "./memory-map.ts";
import type { Load } from "./records.ts";

const MIB = 1n << 20n;
const RSDP = 0xe_0000n;

function memory(...mib: bigint[]): MemoryMap {
  return layoutMemory(mib.map((size, id) => ({ id, vcpus: 1, memoryBytes: size * MIB })));
}

const initrdFile = (size: number): BootFile => ({ path: "initrd", size, head: new Uint8Array(0) });

function boot(options: {
  kernel?: BootFile;
  initrd?: BootFile;
  cmdline?: string;
  memory?: MemoryMap;
}): BootPlan {
  return loadBzImage({
    kernel: options.kernel ?? kernelFile(),
    initrd: options.initrd,
    cmdline: options.cmdline ?? "console=ttyS0",
    memory: options.memory ?? memory(512n),
    rsdp: RSDP,
  });
}

function bytesAt(plan: BootPlan, gpa: bigint): Uint8Array {
  const load = plan.loads.find((item) => item.gpa === gpa);
  if (!load || !("bytes" in load)) throw new Error(`no bytes at ${gpa}`);
  return load.bytes;
}

const span = (load: Load): [bigint, bigint] => [
  load.gpa,
  load.gpa + BigInt("bytes" in load ? load.bytes.length : load.length),
];

describe("a Linux boot", () => {
  const plan = boot({ initrd: initrdFile(5_000_001), cmdline: "console=ttyS0 quiet" });
  const zeroPage = bytesAt(plan, plan.registers.rsi);
  const view = new DataView(zeroPage.buffer);

  test("enters startup_64 with the zero page in RSI", () => {
    expect(plan.kernelAt).toBe(0x100_0000n);
    expect(plan.registers.rip).toBe(0x100_0200n);
    expect(plan.registers.rflags).toBe(2n);
  });

  test("takes the protected-mode kernel from behind the setup sectors", () => {
    expect(plan.loads).toContainEqual({
      gpa: 0x100_0000n,
      file: "vmlinuz",
      offset: 40 * 512,
      length: 0x1_0000,
    });
  });

  test("puts the initrd page aligned at the top of RAM", () => {
    const at = 512n * MIB - 5_001_216n;
    expect(plan.initrdAt).toBe(at);
    expect(at % 4096n).toBe(0n);
    expect(view.getUint32(0x218, true)).toBe(Number(at));
    expect(view.getUint32(0x21c, true)).toBe(5_000_001);
    expect(plan.loads).toContainEqual({ gpa: at, file: "initrd", offset: 0, length: 5_000_001 });
  });

  test("fills the zero page: header copy, loader type, command line, RSDP", () => {
    expect(view.getUint32(0x202, true)).toBe(0x53726448);
    expect(view.getUint16(0x206, true)).toBe(0x020f);
    expect(view.getUint8(0x210)).toBe(0xff);
    expect(view.getUint8(0x211) & 1).toBe(1);
    expect(view.getBigUint64(0x70, true)).toBe(RSDP);
    expect(view.getUint8(0x1ef)).toBe(0); // the sentinel: nonzero would mean an untouched copy
    const line = bytesAt(plan, BigInt(view.getUint32(0x228, true)));
    expect(new TextDecoder().decode(line)).toBe("console=ttyS0 quiet\0");
  });

  test("tells the e820 map", () => {
    const entries = Array.from({ length: view.getUint8(0x1e8) }, (_, i) => [
      view.getBigUint64(0x2d0 + i * 20, true),
      view.getBigUint64(0x2d8 + i * 20, true),
      view.getUint32(0x2e0 + i * 20, true),
    ]);
    expect(entries).toEqual([
      [0n, 0x9fc00n, 1],
      [0x9fc00n, 0x60400n, 2],
      [0x10_0000n, 511n * MIB, 1],
      [0xfec0_0000n, 0x1000n, 2],
      [0xfee0_0000n, 0x1000n, 2],
    ]);
  });

  test("loads nothing twice to one place", () => {
    const spans = plan.loads.map(span).sort((a, b) => (a[0] < b[0] ? -1 : 1));
    spans.reduce((end, [from, to]) => {
      expect(from).toBeGreaterThanOrEqual(end);
      return to;
    }, 0n);
  });
});

describe("placement", () => {
  test("a relocatable kernel goes lower when its preferred address is too high", () => {
    const small = boot({ kernel: kernelFile({ initSize: 0x180_0000 }), memory: memory(32n) });
    expect(small.kernelAt).toBe(0x20_0000n);
    expect(() =>
      boot({
        kernel: kernelFile({ initSize: 0x180_0000, relocatable: 0 }),
        memory: memory(32n),
      }),
    ).toThrow(/needs 24 MiB at 16 MiB, node 0's low RAM ends at 32 MiB/);
  });

  test("kernel and initrd stay in node 0's RAM", () => {
    const plan = boot({ initrd: initrdFile(1 << 20), memory: memory(128n, 128n) });
    expect(plan.initrdAt).toBe(127n * MIB);
  });

  test("the initrd respects the kernel's limit and never overlaps its work space", () => {
    const low = boot({
      kernel: kernelFile({ initrdAddrMax: 0xfff_ffff }),
      initrd: initrdFile(4096),
    });
    expect(low.initrdAt).toBe(0x1000_0000n - 4096n);
    const full = 512 * 2 ** 20 - 0x100_0000 - 0x3f9_8000;
    expect(boot({ initrd: initrdFile(full) }).initrdAt).toBe(0x100_0000n + 0x3f9_8000n);
    expect(() => boot({ initrd: initrdFile(full + 1) })).toThrow(
      new RegExp(`initrd has ${full + 1} bytes, ${full} are free`),
    );
    expect(() => boot({ initrd: initrdFile(0) })).toThrow(/initrd initrd is empty/);
  });
});

describe("the command line", () => {
  test("may be as long as the kernel says, in bytes", () => {
    expect(() => boot({ cmdline: "x".repeat(2047) })).not.toThrow();
    expect(() => boot({ cmdline: "x".repeat(2048) })).toThrow(
      /has 2048 bytes, this kernel takes 2047/,
    );
    expect(() => boot({ cmdline: "é".repeat(1024) })).toThrow(/has 2048 bytes/);
    const huge = kernelFile({ cmdlineSize: 0xffff_ffff });
    expect(() => boot({ kernel: huge, cmdline: "x".repeat(70_000) })).toThrow(/takes 65535/);
  });

  test("is one line", () => {
    expect(() => boot({ cmdline: "a\nb" })).toThrow(/line end or NUL/);
    expect(() => boot({ cmdline: "a\0b" })).toThrow(/line end or NUL/);
  });
});

describe("what is not a usable kernel is named", () => {
  const head = (offset: number, ...bytes: number[]): BootFile => {
    const content = new Uint8Array(4096);
    content.set(bytes, offset);
    return { path: "vmlinuz", size: 4096, head: content };
  };
  const cases: [string, BootFile, RegExp][] = [
    ["ELF", head(0, 0x7f, 0x45, 0x4c, 0x46), /not a bzImage: it is an ELF file/],
    ["gzip", head(0, 0x1f, 0x8b), /gzip data/],
    ["zstd", head(0, 0x28, 0xb5, 0x2f, 0xfd), /zstd data/],
    ["arm64 with an EFI stub", head(0x38, 0x41, 0x52, 0x4d, 0x64), /an arm64 Linux image/],
    ["EFI", head(0, 0x4d, 0x5a), /an EFI application without a Linux boot header/],
    ["cpio", head(0, 0x30, 0x37, 0x30, 0x37, 0x30, 0x31), /a cpio archive/],
    ["zeros", head(0), /no known format/],
    ["empty", { path: "vmlinuz", size: 0, head: new Uint8Array(0) }, /is empty/],
    [
      "a few bytes",
      { path: "vmlinuz", size: 3, head: new Uint8Array([1, 2, 3]) },
      /no known format/,
    ],
    ["old", kernelFile({ version: 0x0206 }), /boot protocol 2\.06, 2\.12 is needed/],
    ["zImage", kernelFile({ loadflags: 0 }), /zImage/],
    ["32-bit", kernelFile({ xloadflags: 0 }), /32-bit kernel/],
    [
      "cut",
      kernelFile({ fileSize: 50_000 }),
      /cut short: its header tells 86016 bytes, it has 50000/,
    ],
    ["alignment 0", kernelFile({ alignment: 0 }), /damaged boot header/],
    ["alignment 3", kernelFile({ alignment: 3 }), /damaged boot header/],
    ["init_size 0", kernelFile({ initSize: 0 }), /damaged boot header/],
    ["short header", kernelFile({ jump: 4 }), /damaged boot header/],
    ["odd address", kernelFile({ prefAddress: 0x100_0001n }), /damaged boot header/],
  ];
  for (const [name, file, message] of cases) {
    test(name, () => {
      expect(() => parseHeader(file)).toThrow(message);
    });
  }

  test("addresses far out of range are no room, not a crash", () => {
    const far = kernelFile({ prefAddress: 0xffff_ffff_ffff_f000n, relocatable: 0 });
    expect(() => boot({ kernel: far })).toThrow(/give node 0 more|low RAM ends/);
    const fat = kernelFile({ initSize: 0xffff_ffff });
    expect(() => boot({ kernel: fat })).toThrow(/needs 4096 MiB/);
  });

  test("any bytes are answered with a plan or an SsihvError", () => {
    const field = fc.record({ at: fc.integer({ min: 0x1f1, max: 0x263 }), byte: fc.nat(255) });
    fc.assert(
      fc.property(fc.array(field, { maxLength: 6 }), fc.nat(100_000), (changes, size) => {
        const file = kernelFile();
        for (const { at, byte } of changes) file.head[at] = byte;
        try {
          const plan = boot({ kernel: { ...file, size: 40_000 + size } });
          for (const load of plan.loads) expect(span(load)[1]).toBeLessThanOrEqual(512n * MIB);
        } catch (error) {
          expect(error).toBeInstanceOf(SsihvError);
        }
      }),
    );
  });
});
