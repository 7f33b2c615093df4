// What Prometheus is told of the cluster: hosts with what they give and what VMs take of it, VMs by
// state, the coordinator's certificate. What engines count is told by the agents on their hosts.

import type { Capacity } from "../src/control/messages.ts";
import { exposition, type Family, type Sample } from "../src/telemetry/exposition.ts";
import type { HostView } from "./hosts.ts";

export interface ClusterNow {
  readonly version: string;
  readonly startedAt: string;
  readonly certificateExpires: Date;
  readonly hosts: readonly (HostView & { readonly used: Capacity })[];
  readonly vms: readonly { readonly name: string; readonly state: string }[];
}

function gauge(name: string, help: string, samples: readonly Sample[]): Family {
  return { name: `ssihv_cluster_${name}`, help, type: "gauge", samples };
}

const LEADER = "Whether this coordinator leads; with others in one etcd the sum of all is 1.";

/** Of a coordinator that does not lead: the cluster is told by the one that does. */
export function standbyMetrics(): string {
  return exposition([gauge("leader", LEADER, [{ labels: {}, value: 0 }])]);
}

function seconds(date: Date): number {
  return date.getTime() / 1000;
}

export function clusterMetrics(now: ClusterNow): string {
  const { hosts } = now;
  const amounts = (of: (capacity: Capacity) => number): Sample[] =>
    hosts.flatMap(({ name, capacity, used }) => [
      ...(capacity === null
        ? []
        : [{ labels: { host: name, amount: "given" }, value: of(capacity) }]),
      { labels: { host: name, amount: "promised" }, value: of(used) },
    ]);
  const one = (value: number, labels = {}): Sample[] => [{ labels, value }];
  return exposition([
    gauge("build_info", "The coordinator's build, always 1.", one(1, { version: now.version })),
    gauge("leader", LEADER, one(1)),
    gauge(
      "start_time_seconds",
      "When the coordinator was started, Unix time.",
      one(seconds(new Date(now.startedAt))),
    ),
    gauge(
      "certificate_expiry_time_seconds",
      "When the coordinator's certificate ends, Unix time.",
      one(seconds(now.certificateExpires)),
    ),
    gauge(
      "host_up",
      "Whether the host's agent is connected and heard.",
      hosts.map(({ name, state }) => ({ labels: { host: name }, value: state === "up" ? 1 : 0 })),
    ),
    gauge(
      "host_certificate_expiry_time_seconds",
      "When the certificate ends that the host's agent connected with last, Unix time.",
      hosts.flatMap(({ name, certificate }) =>
        certificate === null
          ? []
          : [{ labels: { host: name }, value: seconds(new Date(certificate.expiresAt)) }],
      ),
    ),
    gauge(
      "host_certificate_current",
      "Whether that certificate is of the newest CA; 0 for long keeps the old one needed.",
      hosts.flatMap(({ name, certificate }) =>
        certificate === null
          ? []
          : [{ labels: { host: name }, value: certificate.current ? 1 : 0 }],
      ),
    ),
    gauge(
      "host_cpus",
      "CPUs that the host gives, and that are promised to VMs.",
      amounts(({ cpus }) => cpus),
    ),
    gauge(
      "host_memory_bytes",
      "Memory that the host gives, and that is promised to VMs.",
      amounts(({ memoryBytes }) => memoryBytes),
    ),
    gauge(
      "vm_state",
      "The state a VM is in, always 1.",
      now.vms.map(({ name, state }) => ({ labels: { vm: name, state }, value: 1 })),
    ),
  ]);
}
