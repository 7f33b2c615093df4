// The CPU model of a VM from what its engines say about their hosts: what all of them can run.

import type { EngineCapabilities } from "../engine/messages.ts";
import { type HostCpu, intersect, tscTolerancePpm } from "../vmm/cpu-model.ts";
import { encodeModel } from "../vmm/cpu-model-json.ts";

/** JSON for EnginePlan.cpuModel; undefined when an engine gave no CPU. */
export function agreeOnCpu(
  capabilities: readonly EngineCapabilities[],
  clockDilation: number,
): unknown {
  const hosts: HostCpu[] = [];
  for (const [node, { hostCpu }] of capabilities.entries()) {
    // Both ends are one executable: the shape is what src/vmm/machine.ts hostCpu() makes.
    if (hostCpu === undefined) return undefined;
    hosts.push({ ...(hostCpu as HostCpu), name: `node ${node}` });
  }
  return encodeModel(intersect(hosts, { tolerancePpm: tscTolerancePpm(clockDilation) }));
}
