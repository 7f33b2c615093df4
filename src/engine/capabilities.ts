// What an engine tells its parent about its host before anything is built: enough to intersect CPU
// models of several hosts and to choose how page tables are shared.

import { hostname } from "node:os";
import { ABI_HASH } from "../native/abi.gen.ts";
import { hostCpuid, hostMsrs, hostTscKhz, hostWalksWrite } from "../native/engine-handle.ts";
import { hostCpu } from "../vmm/machine.ts";
import type { EngineCapabilities } from "./messages.ts";

export function hostCapabilities(memoryOnly: boolean): EngineCapabilities {
  const abiHash = ABI_HASH.toString(16);
  // Without vCPUs there is no CPU to agree on, nor KVM to ask.
  if (memoryOnly) return { pid: process.pid, abiHash, tscKhz: 0, pageTables: "strict" };
  const host = { cpuid: hostCpuid(), msrs: hostMsrs(), tscKhz: hostTscKhz() };
  return {
    pid: process.pid,
    abiHash,
    tscKhz: host.tscKhz,
    pageTables: hostWalksWrite() ? "replicated" : "strict",
    hostCpu: hostCpu(hostname(), host),
  };
}
