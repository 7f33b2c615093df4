// docs/METRICS.md: every metric that agents and the coordinator tell Prometheus, from what they
// say of themselves. `make gen` writes it, a test holds it fresh, and others ask it which metrics
// there are. Usage: bun tools/metrics-doc.ts > docs/METRICS.md

import { clusterMetrics } from "../coordinator/metrics.ts";
import { certificateFamily, metricsText } from "../src/node/vm-metrics.ts";
import type { VmObserved } from "../src/node/vm-view.ts";

export interface Metric {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly labels: readonly string[];
}

const HEAD = `# Metrics

Made from what the programs say of themselves by \`make gen\`: do not edit. OPERATIONS.md tells
which of them are worth an alert. Counters begin at 0 with each engine: look at their \`rate()\`.
`;

/** A VM of one node, of which something is known. */
const VM: VmObserved = {
  facts: () => ({
    ...{ name: "demo", role: "lead", state: "running", uptimeSeconds: 1 },
    shape: [{ id: 0, vcpus: 1, memoryBytes: 4096 }],
    nodes: [{ node: 0 }],
  }),
  ask: () => {
    const faultLatency = { count: 0, sum_ns: 0, buckets: [] };
    const stats = { node: 0, engine: {}, vcpus: [{}], faultLatency };
    return Promise.resolve({ kind: "stats", stats });
  },
};

function ofCluster(): string {
  const capacity = { cpus: 1, memoryBytes: 1 };
  const time = "2026-01-01T00:00:00Z";
  const host = {
    ...{ name: "host-a", since: time, why: null, joinedAt: time, check: null, capacity },
    ...{ used: capacity, runsVcpus: true, build: null, laneHost: null, state: "up" as const },
    certificate: { expiresAt: time, issuer: "ca", current: true },
  };
  return clusterMetrics({
    ...{ version: "1", startedAt: time, certificateExpires: new Date(time) },
    ...{ hosts: [host], vms: [{ name: "demo", state: "running" }] },
  });
}

/** Families of a text in the exposition format (Prometheus: text format 0.0.4). */
function familiesIn(text: string): Metric[] {
  return [...text.matchAll(/^# HELP (\w+) (.*)\n# TYPE \w+ (\w+)$/gm)].map((match) => {
    const [, name = "", help = "", type = ""] = match;
    const samples = text.matchAll(new RegExp(`^${name}(?:_bucket)?\\{(.*)\\} `, "gm"));
    const labels = [...samples].flatMap(([, inside = ""]) =>
      [...inside.matchAll(/(\w+)="/g)].map(([, label = ""]) => label),
    );
    return { name, help, type, labels: [...new Set(labels)] };
  });
}

export async function metrics(): Promise<{ agents: Metric[]; coordinator: Metric[] }> {
  return {
    agents: familiesIn(await metricsText([VM], certificateFamily(new Date(0)))),
    coordinator: familiesIn(ofCluster()),
  };
}

function table(rows: readonly Metric[]): string {
  const lines = rows.map(({ name, type, labels, help }) => {
    return `| \`${name}\` | ${type} | ${labels.join(", ")} | ${help} |\n`;
  });
  return `| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n${lines.join("")}`;
}

export async function metricsDoc(): Promise<string> {
  const { agents, coordinator } = await metrics();
  return `${HEAD}
## Of an agent, \`ssihv run\` and \`ssihv join\`

With \`--metrics\`. Each tells of the nodes on its own host.

${table(agents)}
## Of the coordinator

At \`/metrics\` of its API, and with \`--metrics\` without TLS.

${table(coordinator)}`;
}

if (import.meta.main) process.stdout.write(await metricsDoc());
