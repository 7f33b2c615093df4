// What `ssihv cluster` and `ssihv vm` show of a cluster to people. Pure; programs get JSON.

import type { Host, Status, Vm } from "./api-client.ts";
import { printable } from "./report.ts";
import { duration, table } from "./vm-tables.ts";

const HOST_HEAD = [
  ...["HOST", "STATE", "FOR", "CPUS", "USED", "MIB", "USED-MIB", "CERT", "CHECK", "NOTE"],
];
const NOTE_MAX = 60;
const HOST_RIGHT = new Set(["CPUS", "USED", "MIB", "USED-MIB"]);

function mib(bytes: number): string {
  return String(Math.floor(bytes / 2 ** 20));
}

/** The beginning; all of it is in --json. */
function note(text: string): string {
  return text.length > NOTE_MAX ? `${text.slice(0, NOTE_MAX - 3)}...` : text;
}

function age(iso: string | null, now: number): string {
  return iso === null ? "-" : duration(Math.max(0, now - Date.parse(iso)) / 1000);
}

export function hostTable(hosts: readonly Host[], now = Date.now()): string {
  const rows = hosts.map(({ name, state, since, why, capacity, used, check, certificate }) => [
    ...[name, state, age(since, now)],
    ...[String(capacity?.cpus ?? "-"), String(used.cpus)],
    ...[capacity === null ? "-" : mib(capacity.memoryBytes), mib(used.memoryBytes)],
    certificate === null
      ? "-"
      : `${certificate.expiresAt.slice(0, 10)}${certificate.current ? "" : " (old CA)"}`,
    ...[check?.verdict ?? "-", note(why ?? check?.problems[0] ?? "")],
  ]);
  return table(HOST_HEAD, rows, HOST_RIGHT);
}

const VM_HEAD = ["NAME", "STATE", "FOR", "NODES", "VCPUS", "MIB", "HOSTS"];
const VM_RIGHT = new Set(["NODES", "VCPUS", "MIB"]);

export function vmTable(vms: readonly Vm[], now = Date.now()): string {
  const rows = vms.map((vm) => {
    const { name, state, since, last, spec, places } = vm;
    const { nodes, memoryNodes = 0 } = spec;
    return [
      ...[name, state, age(since ?? last?.at ?? null, now)],
      String(nodes.length + memoryNodes),
      String(nodes.reduce((sum, { cpus }) => sum + cpus, 0)),
      mib(nodes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0)),
      places.length === 0 ? "-" : places.map(({ host }) => host).join(","),
    ];
  });
  return table(VM_HEAD, rows, VM_RIGHT);
}

const PLACE_HEAD = ["NODE", "HOST", "VCPUS", "HOST-MIB", "ROLE"];

/** Of a VM as the coordinator has it. */
export function vmText(vm: Vm, now = Date.now()): string {
  const { name, state, since, last, places } = vm;
  const head: [string, string][] = [
    ["Name", name],
    ["State", since === null ? state : `${state}, started ${age(since, now)} ago`],
    ...(last === null ? [] : ([["Last run", `${last.text} (${last.reason})`]] as const)),
  ].map(([key = "", value = ""]) => [key, value]);
  const lines = head.map(([key, value]) => `${`${key}:`.padEnd(10)}${printable(value)}\n`);
  if (places.length === 0) return lines.join("");
  const rows = places.map(({ node, host, cpus, memoryBytes, memoryOnly }) => {
    const role = node === 0 ? "lead" : memoryOnly ? "memory" : "compute";
    return [String(node), host, String(cpus), mib(memoryBytes), role];
  });
  return `${lines.join("")}\n${table(PLACE_HEAD, rows, new Set(["NODE", "VCPUS", "HOST-MIB"]))}`;
}

export function statusText(status: Status, now = Date.now()): string {
  const { hosts, vms, capacity, used } = status;
  const counts = Object.entries(vms).map(([state, count]) => `${count} ${state}`);
  const lines: [string, string][] = [
    ["Coordinator", `${status.version}, up ${age(status.startedAt, now)}`],
    ["Certificate", `until ${status.certificateExpires.slice(0, 10)}`],
    ["Hosts", `${hosts.up} up, ${hosts.silent} silent`],
    ["VMs", counts.length === 0 ? "none" : counts.join(", ")],
    ["CPUs", `${used.cpus} of ${capacity.cpus} promised`],
    ["Memory", `${mib(used.memoryBytes)} of ${mib(capacity.memoryBytes)} MiB promised`],
  ];
  return lines.map(([key, value]) => `${`${key}:`.padEnd(13)}${printable(value)}\n`).join("");
}
