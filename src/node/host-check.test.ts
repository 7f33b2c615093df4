import { expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { records } from "../native/abi.gen.ts";
import type { HostProbe } from "../native/engine-handle.ts";
import { checkHost } from "./host-check.ts";
import { groupHeadroom, type HostFacts, hostFacts, meminfoBytes, softLimit } from "./host-facts.ts";

const FACTS: HostFacts = {
  kernel: "6.1.0-18-amd64",
  cpus: 4,
  virtualisation: "svm",
  kvmModules: ["kvm_amd"],
  memoryTotal: 2 ** 34,
  memoryAvailable: 2 ** 33,
  overcommit: 0,
  memfdNoexec: 0,
  openFiles: 1024,
  addressSpace: Infinity,
  root: true,
};

const FIELDS = Object.keys(records.HostProbe.fields).filter(
  (field) => field !== "reserved",
) as (keyof HostProbe)[];

function probe(over: Partial<Record<keyof HostProbe, [state: number, errno?: number]>> = {}) {
  const all = FIELDS.map((field) => {
    const [state, errno = 0] = over[field] ?? [1];
    return [field, { state, errno, value: 7n }];
  });
  return Object.fromEntries(all) as HostProbe;
}

function lineOf(id: string, over: Parameters<typeof probe>[0], facts: Partial<HostFacts> = {}) {
  const { lines, verdict } = checkHost(probe(over), { ...FACTS, ...facts });
  const line = lines.find((each) => each.id === id);
  if (line === undefined) throw new Error(`no line ${id}`);
  return { ...line, verdict };
}

test("every probed thing has a line, and a good host is fit without any fix", () => {
  const { lines, verdict } = checkHost(probe(), FACTS);
  expect(verdict).toBe("fit");
  for (const field of FIELDS) expect(lines.map((line) => line.id)).toContain(field);
  for (const line of lines) {
    expect(line.state).toBe("good");
    expect(line.fix).toBeUndefined();
    expect(line.detail).not.toBe("");
  }
});

test("whatever is not good says what to do", () => {
  for (const field of FIELDS) {
    for (const state of [0, 2, 3, 99]) {
      const line = lineOf(field, { [field]: [state, 1] });
      expect(line.state).not.toBe("good");
      expect(line.fix ?? "").not.toBe("");
      expect(line.verdict).toBe(line.required && state !== 2 ? "unfit" : "degraded");
    }
  }
});

test("no /dev/kvm: the fix fits the CPU and the errno", () => {
  const missing = (errno: number, facts: Partial<HostFacts> = {}) =>
    lineOf("kvm", { kvm: [3, errno] }, facts).fix ?? "";
  expect(missing(2)).toContain("modprobe kvm_amd");
  expect(missing(2)).toContain("--device /dev/kvm");
  expect(missing(2, { virtualisation: "vmx" })).toContain("modprobe kvm_intel");
  expect(missing(2, { virtualisation: undefined })).toContain("nested");
  expect(missing(13)).toContain("usermod -aG kvm");
  expect(missing(16)).toContain("another hypervisor");
});

test("page walks that write degrade, and name the mode that copes", () => {
  const amd = lineOf("walks_write", { walks_write: [2] });
  expect(amd.verdict).toBe("degraded");
  expect(amd.detail).toContain("7 write-protected");
  expect(amd.fix).toContain("replicated page tables");
  const intel = lineOf("walks_write", { walks_write: [2] }, { virtualisation: "vmx" });
  expect(intel.fix).toContain("kvm_intel.eptad=0");
});

test("shadow paging: the fix fits the module", () => {
  const fix = (facts: Partial<HostFacts>) => lineOf("tdp", { tdp: [3] }, facts).fix ?? "";
  expect(fix({})).toContain("modprobe kvm_amd npt=1");
  expect(fix({ virtualisation: "vmx" })).toContain("modprobe kvm_intel ept=1");
  expect(fix({ kvmModules: ["kvm_pvm"] })).toContain("kvm_pvm");
});

test("userfaultfd without permission names the sysctl", () => {
  expect(lineOf("uffd", { uffd: [3, 1] }).fix).toContain("vm.unprivileged_userfaultfd=1");
  expect(lineOf("uffd", { uffd: [3, 38] }).fix).toContain("CONFIG_USERFAULTFD");
});

test("limits are judged", () => {
  expect(lineOf("kernel", {}, { kernel: "5.9.1" }).verdict).toBe("unfit");
  expect(lineOf("kernel", {}, { kernel: "5.10.0-8-amd64" }).state).toBe("good");
  expect(lineOf("kernel", {}, { kernel: "7.0.0" }).state).toBe("good");
  expect(lineOf("cpus", {}, { cpus: 1 }).state).toBe("degraded");
  expect(lineOf("memory", {}, { memoryAvailable: 2 ** 28 }).state).toBe("degraded");
  expect(lineOf("overcommit", {}, { overcommit: 2 }).fix).toContain("sysctl");
  expect(lineOf("address_space", {}, { addressSpace: 2 ** 32 }).state).toBe("degraded");
  expect(lineOf("open_files", {}, { openFiles: 64 }).state).toBe("degraded");
  expect(lineOf("memfd", {}, { memfdNoexec: 2 }).state).toBe("degraded");
});

test("facts are read from the text the kernel writes", () => {
  expect(meminfoBytes("MemTotal:       16384 kB\nMemAvailable:    1 kB\n", "MemAvailable")).toBe(
    1024,
  );
  expect(meminfoBytes("", "MemTotal")).toBe(0);
  const limits =
    "Limit                     Soft Limit           Hard Limit           Units\n" +
    "Max open files            1024                 524288               files\n" +
    "Max address space         unlimited            unlimited            bytes\n";
  expect(softLimit(limits, "Max open files")).toBe(1024);
  expect(softLimit(limits, "Max address space")).toBe(Infinity);
  const here = hostFacts();
  expect(here.memoryTotal).toBeGreaterThan(0);
  expect(here.cpus).toBeGreaterThan(0);
  expect(here.kernel).toMatch(/^\d+\.\d+/);
});

test("what control groups still allow is the least of all around this process", () => {
  const root = mkdtempSync(join(tmpdir(), "ssihv-headroom-"));
  try {
    const limit = (path: string, max: string, current: number) => {
      mkdirSync(join(root, path), { recursive: true });
      writeFileSync(join(root, path, "memory.max"), `${max}\n`);
      writeFileSync(join(root, path, "memory.current"), `${current}\n`);
    };
    limit("/a", "1000", 100);
    limit("/a/b", "2000", 50);
    limit("/a/b/agent", "max", 10);
    expect(groupHeadroom(root, "0::/a/b/agent\n")).toBe(900);
    limit("/a", "max", 100);
    expect(groupHeadroom(root, "0::/a/b/agent\n")).toBe(1950);
    expect(groupHeadroom(root, "0::/none\n")).toBe(Infinity);
    expect(groupHeadroom(root, "4:memory:/a\n")).toBe(Infinity);
  } finally {
    rmSync(root, { recursive: true });
  }
});
