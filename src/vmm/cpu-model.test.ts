import { describe, expect, test } from "bun:test";
import { SsihvError } from "../base/errors.ts";
import { FEATURE_WORDS, featureNames, hasFeature, OFF } from "./cpu-features.ts";
import { checkHost, type HostCpu, intersect, tscTolerancePpm } from "./cpu-model.ts";
import { decodeModel, encodeModel, modelText } from "./cpu-model-json.ts";
import { change, qemuMax, skylake, zen3, zen4 } from "./fixtures/cpuid.ts";

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof SsihvError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return "accepted";
}

describe("one host", () => {
  test("a Zen 4 host gives its AVX-512 and keeps nested, PMU and paging extras back", () => {
    const model = intersect([zen4()]);
    const names = featureNames(model.words);
    for (const name of ["avx512f", "avx512_bf16", "pku", "xsaves", "topoext", "x2apic", "arat"]) {
      expect(names).toContain(name);
    }
    for (const name of ["tsc_deadline_timer", "svm", "la57", "tsc_adjust", "arch_capabilities"]) {
      expect(names).not.toContain(name);
    }
    expect(model.signature).toEqual({ family: 0x19, model: 0x11, stepping: 1 });
    expect(model.xsave.map((area) => area.component)).toEqual([0, 1, 2, 5, 6, 7, 9]);
    expect(model.brand).toBe("AMD EPYC 9354 32-Core Processor");
    expect(model.physicalBits).toBe(52);
  });

  test("a Skylake host loses TSX, MPX, PT and TSC deadline, MPX areas included", () => {
    const model = intersect([skylake()]);
    expect(model.xsave.map((area) => area.component)).toEqual([0, 1, 2, 5, 6, 7, 9]);
    expect(hasFeature(model.words, "avx512f")).toBe(true);
    expect(hasFeature(model.words, "spec_ctrl")).toBe(true);
    expect((model.words["1.ecx"] ?? 0) & (1 << 24)).toBe(0);
    expect((model.words["7.0.ebx"] ?? 0) & ((1 << 4) | (1 << 11) | (1 << 14))).toBe(0);
  });

  test("the emulated CPU's family 0xF becomes another, or Linux scans for an AGP aperture", () => {
    expect(intersect([qemuMax()]).signature).toEqual({ family: 0x17, model: 0x31, stepping: 0 });
  });

  test("a bit that is off stays off even when the CPU reports every bit", () => {
    let host: HostCpu = skylake();
    for (const word of FEATURE_WORDS) {
      host = change(host, word.leaf, word.index, word.register, () => 0xffff_ffff);
    }
    const { words } = intersect([host]);
    for (const [key, bit, name] of OFF) {
      expect({ name, on: (((words[key] ?? 0) >>> bit) & 1) === 1 }).toEqual({ name, on: false });
    }
  });

  test("a CPU without AVX state in XCR0 has no AVX of any kind", () => {
    const model = intersect([change(zen4(), 0xd, 0, "eax", () => 3)]);
    const names = featureNames(model.words);
    expect(names.filter((name) => /avx|fma|f16c|pku|vaes/.test(name))).toEqual([]);
    expect(names).toContain("aes");
  });

  test("a CPU too poor for 64-bit guests is refused by feature name", () => {
    const poor = change(
      zen4("old"),
      0x8000_0001,
      0,
      "edx",
      (edx) => edx & ~((1 << 20) | (1 << 29)),
    );
    expect(refusal(() => intersect([poor]))).toBe(
      'cpu_incompatible: host "old" lacks nx, lm, which the VM needs',
    );
  });

  test("a feature the user asks for is required", () => {
    expect(refusal(() => intersect([zen3("b")], { required: ["avx512f"] }))).toContain(
      'host "b" lacks avx512f',
    );
  });
});

describe("several hosts", () => {
  test("have what all have, and the order does not matter", () => {
    const model = intersect([zen4("a"), zen3("b")]);
    const names = featureNames(model.words);
    expect(names).toContain("avx2");
    expect(names.filter((name) => name.startsWith("avx512"))).toEqual([]);
    expect(model.physicalBits).toBe(48);
    expect(model.signature.model).toBe(0x01);
    expect(modelText(intersect([zen3("b"), zen4("a")]))).toBe(modelText(model));
  });

  test("an XSAVE area at different offsets is dropped together with its feature", () => {
    // PKRU lies at 0x980 on Zen 4 and at 0x340 on Zen 3.
    expect(hasFeature(intersect([zen3()]).words, "pku")).toBe(true);
    const model = intersect([zen4(), zen3()]);
    expect(hasFeature(model.words, "pku")).toBe(false);
    expect(model.xsave.map((area) => area.component)).toEqual([0, 1, 2]);
  });

  test("of two vendors or families are refused with both named", () => {
    expect(refusal(() => intersect([zen4("a"), skylake("b")]))).toMatch(
      /cpu_incompatible: host "a" is AuthenticAMD, host "b" is GenuineIntel/,
    );
    expect(refusal(() => intersect([zen4("a"), qemuMax("b")]))).toMatch(
      /host "a" is of CPU family 0x19, host "b" of family 0xf/,
    );
  });

  test("with TSC rates apart are refused", () => {
    const slow: HostCpu = { ...zen4("slow"), tscKhz: 2_000_000 };
    expect(refusal(() => intersect([zen4("a"), slow]))).toContain(
      'host "slow" has a TSC of 2000000',
    );
    const near: HostCpu = { ...zen4("near"), tscKhz: 3_250_100 };
    expect(intersect([zen4("a"), near]).tscKhz).toBe(3_250_100);
  });

  test("that are emulated calibrate one TSC apart: dilated VMs tolerate more", () => {
    const other: HostCpu = { ...qemuMax("b"), tscKhz: 2_600_000 };
    const hosts = [qemuMax("a"), other];
    expect(refusal(() => intersect(hosts))).toContain("ppm apart");
    expect(intersect(hosts, { tolerancePpm: tscTolerancePpm(20) }).tscKhz).toBe(2_600_000);
    expect(tscTolerancePpm(1)).toBe(250);
  });

  test("share the immunities of all and the weaknesses of any in IA32_ARCH_CAPABILITIES", () => {
    // RDCL_NO and MDS_NO on both, TAA_NO on one; RSBA on the other.
    const model = intersect([skylake("a", "0x121"), skylake("b", "0x025")]);
    expect(model.msrs).toEqual([{ index: 0x10a, value: "0x25" }]);
  });

  test("nobody at all is refused", () => {
    expect(refusal(() => intersect([]))).toContain("at least one host");
  });
});

describe("a host that joins later", () => {
  const model = intersect([zen4("a")]);

  test("is accepted when it is the same", () => {
    expect(refusal(() => checkHost(model, zen4("b")))).toBe("accepted");
  });

  test("is refused by the names of everything it lacks", () => {
    const without = change(zen4("b"), 7, 0, "ebx", (ebx) => ebx & ~((1 << 16) | (1 << 17)));
    const answer = refusal(() => checkHost(model, without));
    expect(answer).toBe('cpu_incompatible: host "b" lacks avx512f, avx512dq');
    const other = refusal(() => checkHost(model, zen3("c")));
    expect(other).toMatch(/host "c" lacks avx512f, .*XSAVE component 9 at offset 2432/);
    expect(other).toContain("52 physical address bits (it has 48)");
  });

  test("may have more", () => {
    expect(refusal(() => checkHost(intersect([zen3("a")]), zen4("b")))).toContain("component 9");
    const small = intersect([zen3("a"), zen4("b")]);
    expect(refusal(() => checkHost(small, zen4("b")))).toBe("accepted");
  });

  test("of the emulated family matches a model made of such a host", () => {
    expect(refusal(() => checkHost(intersect([qemuMax("a")]), qemuMax("b")))).toBe("accepted");
  });
});

describe("the recorded form", () => {
  test("comes back equal through JSON text", () => {
    for (const host of [zen4(), zen3(), qemuMax(), skylake()]) {
      const model = intersect([host]);
      expect(decodeModel(JSON.parse(modelText(model)))).toEqual(model);
    }
  });

  test("refuses damage by naming it, and never grants a bit that is off", () => {
    const good = encodeModel(intersect([zen4()]));
    const words = good["words"] as Record<string, string>;
    const cases: [unknown, RegExp][] = [
      [null, /it is not an object/],
      ["x", /it is not an object/],
      [[], /it is not an object/],
      [{ ...good, format: 2 }, /format is 2/],
      [{ ...good, kind: "arm" }, /neither intel nor amd/],
      [{ ...good, vendor: "x" }, /vendor/],
      [{ ...good, words: { ...words, "1.ecx": "0x01000000" } }, /1\.ecx has bits 0x01000000/],
      [{ ...good, words: { ...words, "9.eax": 1 } }, /word 9\.eax is not known/],
      [{ ...good, words: { ...words, "1.ecx": -1 } }, /not a whole number/],
      [{ ...good, caches: Array(65).fill({}) }, /caches is not a list/],
      [{ ...good, msrs: [{ index: 1, value: "1e9" }] }, /not hexadecimal/],
      [{ ...good, physicalBits: 64 }, /physicalBits/],
    ];
    for (const [value, message] of cases) expect(() => decodeModel(value)).toThrow(message);
  });
});
