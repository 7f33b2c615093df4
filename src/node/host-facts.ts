// What /proc tells about this host: the limits `ssihv check` reports and `ssihv run` looks at
// before it starts anything. Reading is here, judging is in host-check.ts; a file that is not there
// is undefined.

import { closeSync, existsSync, openSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";

import { fileOrNone } from "../base/file-or-none.ts";

export interface HostFacts {
  /** As uname -r: "6.1.0-18-amd64". */
  readonly kernel: string;
  readonly cpus: number;
  /** svm, vmx or undefined when the CPU shows neither. */
  readonly virtualisation: "svm" | "vmx" | undefined;
  /** Vendor modules of KVM that are loaded: kvm_amd, kvm_intel, kvm_pvm. */
  readonly kvmModules: readonly string[];
  readonly memoryTotal: number;
  /** Free for new work without swapping, the control group's limit included. */
  readonly memoryAvailable: number;
  readonly overcommit: number;
  readonly memfdNoexec: number;
  readonly openFiles: number;
  /** RLIMIT_AS in bytes; Infinity when unlimited. */
  readonly addressSpace: number;
  readonly root: boolean;
}

/** A field of /proc/meminfo in bytes. */
export function meminfoBytes(text: string, field: string): number {
  const kilobytes = new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(text)?.[1];
  return Number(kilobytes ?? 0) * 1024;
}

/** The soft limit of a row of /proc/self/limits. */
export function softLimit(text: string, row: string): number {
  const value = new RegExp(`^${row}\\s+(\\S+)`, "m").exec(text)?.[1];
  return value === undefined || value === "unlimited" ? Infinity : Number(value);
}

/**
 * What the control group and those around it still allow; Infinity without a limit (cgroup v2
 * alone). An agent's own has none: its service's has.
 */
export function groupHeadroom(
  root = "/sys/fs/cgroup",
  self = fileOrNone("/proc/self/cgroup"),
): number {
  const path = /^0::(\/.*)$/m.exec(self ?? "")?.[1];
  let headroom = Infinity;
  for (let at = path; at !== undefined; at = at === "/" ? undefined : dirname(at)) {
    const max = Number(fileOrNone(join(root, at, "memory.max")) ?? Number.NaN);
    const used = Number(fileOrNone(join(root, at, "memory.current")) ?? 0);
    if (Number.isFinite(max)) headroom = Math.min(headroom, Math.max(0, max - used));
  }
  return headroom;
}

export function hostFacts(): HostFacts {
  const memory = fileOrNone("/proc/meminfo") ?? "";
  const limits = fileOrNone("/proc/self/limits") ?? "";
  const flags = /^flags\s*:(.*)$/m.exec(fileOrNone("/proc/cpuinfo") ?? "")?.[1] ?? "";
  const sysctl = (name: string) => Number(fileOrNone(`/proc/sys/vm/${name}`) ?? 0);
  return {
    kernel: (fileOrNone("/proc/sys/kernel/osrelease") ?? "unknown").trim(),
    cpus: availableParallelism(),
    virtualisation: / svm\b/.test(flags) ? "svm" : / vmx\b/.test(flags) ? "vmx" : undefined,
    kvmModules: ["kvm_amd", "kvm_intel", "kvm_pvm"].filter((name) =>
      existsSync(`/sys/module/${name}`),
    ),
    memoryTotal: meminfoBytes(memory, "MemTotal"),
    memoryAvailable: Math.min(meminfoBytes(memory, "MemAvailable"), groupHeadroom()),
    overcommit: sysctl("overcommit_memory"),
    memfdNoexec: sysctl("memfd_noexec"),
    openFiles: softLimit(limits, "Max open files"),
    addressSpace: softLimit(limits, "Max address space"),
    root: process.getuid?.() === 0,
  };
}

/** errno name of opening /dev/kvm for use, or undefined when it opened. */
export function kvmOpenError(): string | undefined {
  try {
    closeSync(openSync("/dev/kvm", "r+"));
    return undefined;
  } catch (error) {
    return error instanceof Error && "code" in error ? String(error.code) : "unknown error";
  }
}
