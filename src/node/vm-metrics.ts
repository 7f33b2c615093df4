// The metrics of VMs' nodes that run on this host. Nodes on other hosts are told there, so that
// each is told once.

import { exposition, type Family } from "../telemetry/exposition.ts";
import { type NodeSampled, nodeFamilies } from "../telemetry/node-metrics.ts";
import { buildInfo } from "./build-info.ts";
import { sampleVm, type VmFacts, type VmObserved } from "./vm-view.ts";

const STATES: readonly VmFacts["state"][] = [
  "waiting",
  "starting",
  "running",
  "paused",
  "stopping",
];

/** Nodes of this host alone, silent ones too. */
async function sampleNodes(vm: VmObserved): Promise<NodeSampled[]> {
  const { name, nodes } = await sampleVm(vm, ({ host }) => host === undefined);
  return nodes.map(({ node, vcpus, memoryBytes, stats }) => {
    return { vm: name, node, vcpus, memoryBytes, ...(stats !== null && { stats }) };
  });
}

function vmFamilies(vms: readonly VmObserved[]): Family[] {
  const facts = vms.map((vm) => vm.facts());
  return [
    {
      ...{ name: "ssihv_vm_state", help: "The VM's state: 1 at the one it is in.", type: "gauge" },
      samples: facts.flatMap(({ name, state }) =>
        STATES.map((each) => {
          return { labels: { vm: name, state: each }, value: each === state ? 1 : 0 };
        }),
      ),
    },
    {
      ...{ name: "ssihv_vm_uptime_seconds", help: "Time since the guest began.", type: "gauge" },
      samples: facts.flatMap(({ name, uptimeSeconds }) =>
        uptimeSeconds === undefined ? [] : [{ labels: { vm: name }, value: uptimeSeconds }],
      ),
    },
  ];
}

/** The text that a Prometheus reads; it never fails for a node that does not answer. */
export async function metricsText(
  vms: readonly VmObserved[],
  ...more: readonly Family[]
): Promise<string> {
  const { version, commit } = buildInfo();
  const build: Family = {
    ...{ name: "ssihv_build_info", help: "The build that runs, always 1.", type: "gauge" },
    samples: [{ labels: { version, commit }, value: 1 }],
  };
  const nodes = (await Promise.all(vms.map(sampleNodes))).flat();
  return exposition([build, ...more, ...vmFamilies(vms), ...nodeFamilies(nodes)]);
}

/** Of a host's agent; without a sample before its first connection. */
export function certificateFamily(expires: Date | undefined): Family {
  return {
    name: "ssihv_agent_certificate_expiry_time_seconds",
    help: "When this host's certificate ends, Unix time; it is renewed long before.",
    type: "gauge",
    samples: expires === undefined ? [] : [{ labels: {}, value: expires.getTime() / 1000 }],
  };
}
