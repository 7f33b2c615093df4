// What an engine tells its parent about its host before anything is built: enough to intersect CPU
// models of several hosts and to choose how page tables are shared.

import { ABI_HASH } from "../native/abi.gen.ts";
import { hostCpuid, hostMsrs, hostTscKhz, hostWalksWrite } from "../native/engine-handle.ts";
import type { EngineCapabilities } from "./messages.ts";

export function hostCapabilities(): EngineCapabilities {
  return {
    pid: process.pid,
    abiHash: ABI_HASH.toString(16),
    tscKhz: hostTscKhz(),
    pageTables: hostWalksWrite() ? "replicated" : "strict",
    hostCpu: {
      cpuid: hostCpuid(),
      msrs: hostMsrs().map(({ index, value }) => ({ index, value: value.toString() })),
    },
  };
}
