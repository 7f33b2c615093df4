// The metrics of a VM's nodes that run on this host, and the HTTP endpoint that a Prometheus
// scrapes them from. Nodes on other hosts are told there, so that each is told once.

import { SsihvError } from "../base/errors.ts";
import { CONTENT_TYPE, exposition, type Family } from "../telemetry/exposition.ts";
import { type NodeSampled, nodeFamilies } from "../telemetry/node-metrics.ts";
import { buildInfo } from "./build-info.ts";
import type { HostPort } from "./join-address.ts";
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
export async function metricsText(vms: readonly VmObserved[]): Promise<string> {
  const { version, commit } = buildInfo();
  const build: Family = {
    ...{ name: "ssihv_build_info", help: "The build that runs, always 1.", type: "gauge" },
    samples: [{ labels: { version, commit }, value: 1 }],
  };
  const nodes = (await Promise.all(vms.map(sampleNodes))).flat();
  return exposition([build, ...vmFamilies(vms), ...nodeFamilies(nodes)]);
}

export class MetricsServer {
  private readonly server: Bun.Server<undefined>;

  private constructor(server: Bun.Server<undefined>) {
    this.server = server;
  }

  /** Throws "flag_invalid" where the address cannot be listened on. Port 0: any free one. */
  static open({ host, port }: HostPort, vms: () => readonly VmObserved[]): MetricsServer {
    try {
      const server = Bun.serve({
        hostname: host,
        port,
        // Longer than engines may take to answer.
        idleTimeout: 10,
        fetch: (request) => respond(request, vms),
      });
      return new MetricsServer(server);
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new SsihvError("flag_invalid", `--metrics ${host}:${port} cannot be used: ${why}`, {
        hint: "name an address of this host and a port that is free",
        cause,
      });
    }
  }

  get port(): number {
    return this.server.port ?? 0;
  }

  close(): void {
    void this.server.stop(true);
  }
}

async function respond(request: Request, vms: () => readonly VmObserved[]): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname !== "/metrics") {
    return new Response("Metrics are at /metrics\n", { status: pathname === "/" ? 200 : 404 });
  }
  if (request.method !== "GET" && request.method !== "HEAD") {
    return new Response("GET only\n", { status: 405, headers: { allow: "GET, HEAD" } });
  }
  return new Response(await metricsText(vms()), { headers: { "content-type": CONTENT_TYPE } });
}
