import { describe, expect, test } from "bun:test";
import { OFF } from "./cpu-features.ts";
import { type HostCpu, intersect, signatureOf } from "./cpu-model.ts";
import { type CpuidRequest, cpuidFor, signatureEax } from "./cpuid-leaves.ts";
import { change, qemuMax, skylake, zen3, zen4 } from "./fixtures/cpuid.ts";
import type { CpuidEntry } from "./records.ts";

const REQUEST: CpuidRequest = {
  apicId: (1 << 6) | 2,
  cores: 3,
  vcpus: 5,
  dilation: 1,
  hypervisor: "vmware",
};

function leavesOf(host: HostCpu, request: Partial<CpuidRequest> = {}): CpuidEntry[] {
  return cpuidFor(intersect([host]), { ...REQUEST, ...request });
}

function get(leaves: CpuidEntry[], fn: number, index = 0): CpuidEntry {
  const found = leaves.find((entry) => entry.function === fn && entry.index === index);
  if (!found) throw new Error(`no leaf 0x${fn.toString(16)}.${index}`);
  return found;
}

describe("every host", () => {
  for (const host of [zen4(), zen3(), qemuMax(), skylake()]) {
    test(`${host.name}: leaves are unique, in order and whole 32-bit numbers`, () => {
      const leaves = leavesOf(host);
      const keys = leaves.map((entry) => `${entry.function}.${entry.index}`);
      expect(new Set(keys).size).toBe(keys.length);
      for (const entry of leaves) {
        for (const value of [entry.eax, entry.ebx, entry.ecx, entry.edx]) {
          expect(Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff).toBe(true);
        }
      }
      const basic = get(leaves, 0).eax;
      const top = Math.max(...leaves.map((e) => e.function).filter((fn) => fn < 0x4000_0000));
      expect(top).toBeLessThanOrEqual(basic);
    });

    test(`${host.name}: what is off is off in the leaves`, () => {
      const leaves = leavesOf(host);
      for (const absent of [5, 0xa, 0x12, 0x14, 0x19, 0x4000_0001, 0x8000_000a, 0x8000_001f]) {
        expect(leaves.some((entry) => entry.function === absent)).toBe(false);
      }
      for (const [key, bit, name] of OFF) {
        const [fn = "", ...rest] = key.split(".");
        const register = rest.pop() as "eax" | "ebx" | "ecx" | "edx";
        const entry = leaves.find((e) => {
          return e.function === parseInt(fn, 16) && e.index === parseInt(rest[0] ?? "0", 16);
        });
        const on = entry !== undefined && ((entry[register] >>> bit) & 1) === 1;
        expect({ name, on }).toEqual({ name, on: false });
      }
    });

    test(`${host.name}: APIC id and package agree in leaves 1 and 0xB`, () => {
      const leaves = leavesOf(host);
      const one = get(leaves, 1);
      expect(one.ebx >>> 24).toBe(66);
      expect((one.ebx >>> 16) & 0xff).toBe(64);
      expect((one.edx >>> 28) & 1).toBe(1);
      expect((one.ecx >>> 21) & 1).toBe(1);
      const core = get(leaves, 0xb, 1);
      expect(core).toMatchObject({ eax: 6, ebx: 3, ecx: 0x201, edx: 66 });
      expect(get(leaves, 0xb, 0)).toMatchObject({ eax: 0, ebx: 1, ecx: 0x100, edx: 66 });
      expect(get(leaves, 0xb, 2)).toMatchObject({ eax: 0, ebx: 0, ecx: 2, edx: 66 });
    });

    test(`${host.name}: the hypervisor tells the frequencies`, () => {
      const leaves = leavesOf(host, { dilation: 20 });
      expect(get(leaves, 0x4000_0000)).toMatchObject({
        eax: 0x4000_0010,
        ebx: 0x61774d56,
        ecx: 0x4d566572,
        edx: 0x65726177,
      });
      expect(get(leaves, 0x4000_0010)).toMatchObject({
        eax: host.tscKhz * 20,
        ebx: 1_000_000,
        ecx: 0,
      });
    });

    test(`${host.name}: XSAVE sizes cover every area`, () => {
      const leaves = leavesOf(host);
      const main = get(leaves, 0xd);
      for (let component = 2; component < 32; component++) {
        if (((main.eax >>> component) & 1) === 0) continue;
        const area = get(leaves, 0xd, component);
        expect(area.eax + area.ebx).toBeLessThanOrEqual(main.ecx);
        expect(area.ecx & 1).toBe(0);
      }
      expect(main.ecx).toBeGreaterThanOrEqual(576);
    });

    test(`${host.name}: 48-bit linear addresses`, () => {
      expect((get(leavesOf(host), 0x8000_0008).eax >>> 8) & 0xff).toBe(48);
    });
  }
});

describe("AMD", () => {
  const leaves = leavesOf(zen4());

  test("core counts, core and node ids are the VM's, not the host's", () => {
    expect(get(leaves, 0x8000_0008).ecx).toBe(0x6002);
    expect(get(leaves, 0x8000_001e)).toMatchObject({ eax: 66, ebx: 2, ecx: 1, edx: 0 });
    expect((get(leaves, 0x8000_0001).ecx >>> 1) & 1).toBe(1); // CMP_LEGACY
  });

  test("first and second level caches are per core, the third per package", () => {
    const sharing = [0, 1, 2, 3].map((i) => (get(leaves, 0x8000_001d, i).eax >>> 14) & 0xfff);
    expect(sharing).toEqual([0, 0, 0, 63]);
    expect(get(leaves, 0x8000_001d, 4).eax).toBe(0);
  });

  test("the vendor repeats leaf 1 in 0x80000001", () => {
    const repeated = 0x0183_f3ff;
    expect(get(leaves, 0x8000_0001).edx & repeated).toBe(get(leaves, 1).edx & repeated);
    expect(get(leaves, 0x8000_0001).eax).toBe(get(leaves, 1).eax);
  });

  test("a host without TOPOEXT has neither of its leaves", () => {
    const plain = leavesOf(change(zen4(), 0x8000_0001, 0, "ecx", (ecx) => ecx & ~(1 << 22)));
    expect(plain.some((e) => e.function === 0x8000_001d || e.function === 0x8000_001e)).toBe(false);
  });

  test("an emulated family 0xF is told a whole Zen 2, without branch confusion", () => {
    const told = leavesOf(qemuMax());
    expect(get(told, 1).eax).toBe(0x0083_0f10);
    expect(get(told, 0x8000_0000).eax).toBe(0x8000_001e);
    expect((get(told, 0x8000_0001).ecx >>> 22) & 1).toBe(1);
    expect((get(told, 0x8000_0008).ebx >>> 29) & 1).toBe(1);
    expect((get(told, 0x8000_001d, 3).eax >>> 14) & 0xfff).toBe(63);
    expect(get(told, 0x8000_001d, 4).eax).toBe(0);
    expect(get(told, 0x8000_001e)).toMatchObject({ eax: 66, ebx: 2, ecx: 1 });
  });
});

describe("Intel", () => {
  const leaves = leavesOf(skylake());

  test("leaf 4 shares the third level in the package and tells 64 core ids", () => {
    const eax = [0, 1, 2, 3].map((i) => get(leaves, 4, i).eax);
    expect(eax.map((value) => (value >>> 14) & 0xfff)).toEqual([0, 0, 0, 63]);
    expect(eax.map((value) => value >>> 26)).toEqual([63, 63, 63, 63]);
  });

  test("leaf 0x15 gives the same TSC frequency as the hypervisor", () => {
    const { eax, ebx, ecx } = get(leaves, 0x15);
    expect((BigInt(ecx) * BigInt(ebx)) / BigInt(eax)).toBe(2_100_000_000n);
    expect(ecx).toBe(1_000_000_000);
  });
});

describe("identities and signatures", () => {
  test("one vCPU on a node is no multiprocessor package", () => {
    const leaves = leavesOf(zen4(), { apicId: 0, cores: 1, vcpus: 1 });
    expect((get(leaves, 1).edx >>> 28) & 1).toBe(0);
    expect((get(leaves, 0x8000_0001).ecx >>> 1) & 1).toBe(0);
    expect(get(leaves, 0x8000_0008).ecx).toBe(0x6000);
  });

  test("Hv#1 grants what Linux asks for: hypercall, VP index, frequencies, invariant TSC", () => {
    const leaves = leavesOf(zen4(), { hypervisor: "hyperv" });
    const zero = get(leaves, 0x4000_0000);
    // The range Linux accepts, and "Microsoft Hv".
    expect(zero.eax).toBe(0x4000_0006);
    expect([zero.ebx, zero.ecx, zero.edx]).toEqual([0x7263694d, 0x666f736f, 0x76482074]);
    expect(get(leaves, 0x4000_0001).eax).toBe(0x31237648);
    const { eax, edx } = get(leaves, 0x4000_0003);
    expect(eax).toBe((1 << 5) | (1 << 6) | (1 << 11) | (1 << 15));
    expect(edx).toBe(1 << 8);
    expect(get(leaves, 0x4000_0005).eax).toBe(5);
  });

  test("leaf 1 EAX is the inverse of its reading", () => {
    for (const host of [zen4(), zen3(), skylake(), qemuMax()]) {
      const one = host.cpuid.find((entry) => entry.function === 1);
      expect(signatureEax(signatureOf(host))).toBe(one?.eax ?? -1);
    }
  });
});
