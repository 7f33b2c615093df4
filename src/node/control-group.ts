// A control group (version 2) for each engine of an agent, with the memory that its node may take:
// an engine that takes more, for whatever reason, ends alone, and neither the host nor other VMs.
// Only where the agent has a group to itself, as a service has (Delegate=yes): other groups are
// somebody else's to divide. The agent itself moves into a group beside them, since the kernel
// lets no group with processes have groups with limits below it.
// Everything here may fail on a host that does it otherwise; then engines have no group, and why is
// told (`ssihv vm show`).

import { mkdirSync, readdirSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { fileOrNone } from "../base/file-or-none.ts";
import { type NodeSizes, PAGE_BYTES } from "../vmm/memory-budget.ts";

const MIB = 2 ** 20;
const PREFIX = "engine-";
const OWN = "agent";
/** Page states and directory entries of every guest page (README). */
const STATE_BYTES = 44;
/**
 * Page tables of host and KVM, and what KVM remembers of each page: of all that the guest has ever
 * touched here, since tables stay when pages leave. Without nested paging they are largest.
 */
const TABLES_PART = 16;
/** The engine's runtime, its executable as far as it is read, lanes. */
const ENGINE_BYTES = 512 * MIB;
/** The kernel lets go of a group a moment after its last process. */
const REMOVALS_MAX = 50;
const REMOVAL_MS = 20;

/**
 * What an engine may take at most. Generous: a limit that an honest engine meets is the VM's end.
 * A node without a cache limit may come to hold every page of the VM.
 */
export function engineBytesMax(nodes: readonly NodeSizes[], node: number): number {
  const own = nodes[node];
  const total = nodes.reduce((bytes, { memoryBytes }) => bytes + memoryBytes, 0);
  const given =
    own?.lentBytes ??
    (own?.residentBytes ?? own?.memoryBytes ?? 0) +
      (own?.cacheBytes ?? total - (own?.memoryBytes ?? 0));
  const states = (total / Number(PAGE_BYTES)) * STATE_BYTES;
  return Math.ceil(given + total / TABLES_PART + states + ENGINE_BYTES);
}

export interface GroupFiles {
  readonly self: string | undefined;
  readonly mounts: string | undefined;
  readonly pid: number;
}

function ownFiles(): GroupFiles {
  return {
    self: fileOrNone("/proc/self/cgroup"),
    mounts: fileOrNone("/proc/self/mounts"),
    pid: process.pid,
  };
}

/** Where this process's group of version 2 is; undefined without. */
export function ownGroup({ self, mounts }: GroupFiles): string | undefined {
  const path = /^0::(\/.*)$/m.exec(self ?? "")?.[1];
  const root = /^\S+ (\S+) cgroup2 /m.exec(mounts ?? "")?.[1];
  return path === undefined || root === undefined ? undefined : join(root, path);
}

/** Or why there are none. */
export type Groups = ControlGroups | string;

export class ControlGroups {
  private readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** Why there are none, in words, where there are none. */
  static open(files = ownFiles()): Groups {
    const path = ownGroup(files);
    if (path === undefined) return "this host has no control groups of version 2";
    const controllers = fileOrNone(join(path, "cgroup.controllers")) ?? "";
    if (!controllers.split(/\s+/).includes("memory")) {
      return "the agent's control group cannot limit memory";
    }
    if (fileOrNone(join(path, "cgroup.procs"))?.trim() !== String(files.pid)) {
      return "the agent's control group is not its own (ssihv install node makes it a service)";
    }
    try {
      const groups = new ControlGroups(path);
      groups.prepare(files.pid);
      return groups;
    } catch (error) {
      return `the agent's control group may not be divided (${codeOf(error)})`;
    }
  }

  /** Puts an engine into a group of its own; why it is in none, where that fails. */
  add(pid: number, bytes: number): string | undefined {
    try {
      this.limit(this.groupOf(pid), pid, bytes);
      return undefined;
    } catch (error) {
      return `its control group cannot be made (${codeOf(error)})`;
    }
  }

  private limit(group: string, pid: number, bytes: number): void {
    // One of an earlier process of this number may be there.
    mkdirSync(group, { recursive: true });
    writeFileSync(join(group, "memory.max"), String(bytes));
    // Absent where the kernel has no swap.
    if (fileOrNone(join(group, "memory.swap.max")) !== undefined) {
      writeFileSync(join(group, "memory.swap.max"), "0");
    }
    writeFileSync(join(group, "cgroup.procs"), String(pid));
  }

  /** After the engine's end. */
  async remove(pid: number): Promise<void> {
    for (let i = 0; i < REMOVALS_MAX; i++) {
      if (removed(this.groupOf(pid))) return;
      await Bun.sleep(REMOVAL_MS);
    }
  }

  private groupOf(pid: number): string {
    return join(this.path, `${PREFIX}${pid}`);
  }

  private prepare(pid: number): void {
    // Of an agent that was killed; one whose engine still ends goes with a later agent.
    for (const name of readdirSync(this.path)) {
      if (name.startsWith(PREFIX)) removed(join(this.path, name));
    }
    const own = join(this.path, OWN);
    mkdirSync(own, { recursive: true });
    writeFileSync(join(own, "cgroup.procs"), String(pid));
    writeFileSync(join(this.path, "cgroup.subtree_control"), "+memory");
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

/** True too where it was not there. */
function removed(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "ENOENT";
  }
}
