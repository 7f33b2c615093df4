import { expect, test } from "bun:test";
import { clusterMetrics } from "./metrics.ts";

const HOST = {
  ...{ since: null, why: null, joinedAt: "2026-01-01T00:00:00Z", check: null, build: null },
  ...{ runsVcpus: true, laneHost: null, certificate: null },
};

test("hosts with what they give and what is promised, VMs with their state", () => {
  const text = clusterMetrics({
    version: "1.0",
    startedAt: "2026-01-01T00:00:00Z",
    certificateExpires: new Date("2027-01-01T00:00:00Z"),
    hosts: [
      {
        ...{ ...HOST, name: "a", state: "up" as const },
        certificate: { expiresAt: "2026-02-01T00:00:00Z", issuer: "old", current: false },
        capacity: { cpus: 8, memoryBytes: 4096 },
        used: { cpus: 2, memoryBytes: 1024 },
      },
      {
        ...{ ...HOST, name: "b", state: "silent" as const, capacity: null },
        used: { cpus: 0, memoryBytes: 0 },
      },
    ],
    vms: [
      { name: "demo", state: "running" },
      { name: "old", state: "failed" },
    ],
  });
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  expect(lines).toEqual([
    'ssihv_cluster_build_info{version="1.0"} 1',
    "ssihv_cluster_leader 1",
    "ssihv_cluster_start_time_seconds 1767225600",
    "ssihv_cluster_certificate_expiry_time_seconds 1798761600",
    'ssihv_cluster_host_up{host="a"} 1',
    'ssihv_cluster_host_up{host="b"} 0',
    'ssihv_cluster_host_certificate_expiry_time_seconds{host="a"} 1769904000',
    'ssihv_cluster_host_certificate_current{host="a"} 0',
    'ssihv_cluster_host_cpus{host="a",amount="given"} 8',
    'ssihv_cluster_host_cpus{host="a",amount="promised"} 2',
    'ssihv_cluster_host_cpus{host="b",amount="promised"} 0',
    'ssihv_cluster_host_memory_bytes{host="a",amount="given"} 4096',
    'ssihv_cluster_host_memory_bytes{host="a",amount="promised"} 1024',
    'ssihv_cluster_host_memory_bytes{host="b",amount="promised"} 0',
    'ssihv_cluster_vm_state{vm="demo",state="running"} 1',
    'ssihv_cluster_vm_state{vm="old",state="failed"} 1',
  ]);
});
