// What `ssihv cluster apply` would do: declared VMs beside those on record. Pure.

import type { DeclaredVm } from "../config/declared-vms.ts";
import type { VmSpec } from "../control/vm-spec.ts";
import type { Vm } from "./api-client.ts";

export interface Difference {
  /** As the file has it: "nodes[1].cpus", "hold_max". */
  readonly key: string;
  /** Absent: the default. */
  readonly from?: string;
  readonly to?: string;
}

/** create: it is absent. change: it does not run. blocked: it does. same: nothing to do. */
export type Action = "create" | "change" | "blocked" | "same";

export interface Change {
  readonly vm: string;
  readonly action: Action;
  /** What it is now; absent where it is to be created. */
  readonly state?: Vm["state"];
  readonly differences: readonly Difference[];
  readonly declared: DeclaredVm;
}

/** What is no run of a VM: its record may change. */
export function isAtRest(state: Vm["state"]): boolean {
  return state === "stopped" || state === "failed";
}

/** "holdUsMax" as the file has it: "hold_max". The unit is the value's there. */
function fileKey(key: string): string {
  const bare = key.replace(/(Bytes|MBps|Ns|Ms)$|Us(?=Max$)/, "");
  return bare.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function fileValue(key: string, value: unknown): string {
  if (typeof value !== "number") return JSON.stringify(value);
  if (key.endsWith("Bytes")) {
    const mib = value / 2 ** 20;
    return Number.isInteger(mib) ? `${mib}M` : `${value}`;
  }
  if (key.endsWith("Ms")) return `${value}ms`;
  if (key.endsWith("UsMax")) return `${value}us`;
  return String(value);
}

/** Every setting with its value, as the file would say both. */
function settings(spec: VmSpec): Map<string, string> {
  const { nodes, ...others } = spec;
  const found = new Map<string, string>();
  for (const [i, node] of nodes.entries()) {
    for (const [key, value] of Object.entries(node)) {
      found.set(`nodes[${i}].${fileKey(key)}`, fileValue(key, value));
    }
  }
  for (const [key, value] of Object.entries(others)) found.set(fileKey(key), fileValue(key, value));
  return found;
}

export function differences(before: VmSpec, after: VmSpec): Difference[] {
  const old = settings(before);
  const now = settings(after);
  return [...new Set([...old.keys(), ...now.keys()])].flatMap((key) => {
    const from = old.get(key);
    const to = now.get(key);
    if (from === to) return [];
    return { key, ...(from !== undefined && { from }), ...(to !== undefined && { to }) };
  });
}

export function planChanges(declared: readonly DeclaredVm[], onRecord: readonly Vm[]): Change[] {
  return declared.map((each): Change => {
    const vm = each.spec.name;
    const there = onRecord.find(({ name }) => name === vm);
    if (there === undefined) return { vm, action: "create", differences: [], declared: each };
    const found = differences(there.spec, each.spec);
    const changed = isAtRest(there.state) ? "change" : "blocked";
    const action = found.length === 0 ? "same" : changed;
    return { vm, action, state: there.state, differences: found, declared: each };
  });
}

function differenceWords({ key, from = "(default)", to = "(default)" }: Difference): string {
  return `${key}: ${from} -> ${to}`;
}

function shapeWords({ nodes, memoryNodes = 0 }: VmSpec): string {
  const vcpus = nodes.reduce((sum, { cpus }) => sum + cpus, 0);
  const mib = nodes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0) / 2 ** 20;
  const lending = memoryNodes === 0 ? "" : `, ${memoryNodes} memory node(s)`;
  return `${nodes.length} node(s), ${vcpus} vCPU(s), ${Math.floor(mib)} MiB${lending}`;
}

/** A line for each VM, and one for each difference. */
export function planText(changes: readonly Change[], onRecord: readonly Vm[]): string {
  const lines = changes.flatMap(({ vm, action, state, differences: found, declared }) => {
    const words = action === "create" ? shapeWords(declared.spec) : (state ?? "");
    const head = `${action.padEnd(8)} ${vm} (${words})`;
    return [head, ...found.map((each) => `           ${differenceWords(each)}`)];
  });
  const known = new Set(changes.map(({ vm }) => vm));
  const others = onRecord.filter(({ name }) => !known.has(name)).map(({ name }) => name);
  if (others.length > 0) lines.push(`not in the file, left alone: ${others.join(", ")}`);
  return `${lines.join("\n")}\n`;
}
