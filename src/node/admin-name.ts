// The name of an admin socket: one live command at a time has it among this user's VMs, and what a
// dead process left is replaced. A lock file makes finding and replacing one step.

import {
  closeSync,
  existsSync,
  linkSync,
  lstatSync,
  openSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { askAdmin, isLive } from "./admin-client.ts";
import { findSockets, foldersToSearch, socketName } from "./admin-folder.ts";
import type { VmListing } from "./vm-view.ts";

/** Names tried where the user gave none. */
export const NAMES_MAX = 100;
const LOCK = ".lock";
const LOCK_MS_MAX = 10_000;
const LOCK_RETRY_MS = 5;

export interface AdminName {
  readonly vm: string;
  /** For a joined host's node of the VM. */
  readonly node?: number;
  /** The user chose it: it may not be changed to one that is free. */
  readonly chosen: boolean;
}

/** Gives the listening socket at `own` its name in the folder. Throws `name_taken`. */
export function claimName(
  folder: string,
  own: string,
  name: AdminName,
): Promise<{ vm: string; path: string }> {
  return withLock(folder, () => claim(folder, own, name));
}

async function claim(
  folder: string,
  own: string,
  { vm, node, chosen }: AdminName,
): Promise<{ vm: string; path: string }> {
  for (let i = 1; i <= NAMES_MAX; i++) {
    const name = i === 1 ? vm : `${vm}-${i}`;
    const file = socketName(name, node);
    const path = join(folder, file);
    const holder = await heldElsewhere(path);
    if (holder === undefined && (await take(own, path))) return { vm: name, path };
    if (chosen) throw taken(vm, await holderOf(holder ?? path));
  }
  throw taken(vm, undefined);
}

/** Removes what commands of this user left in its folders when they were killed. */
export async function sweepDead(): Promise<void> {
  const { sockets, unnamed } = findSockets();
  for (const path of [...sockets, ...unnamed]) {
    if (await isLive(path)) continue;
    // One that is being made has its file before it listens.
    await Bun.sleep(LOCK_RETRY_MS);
    await withLock(dirname(path), async () => {
      if (!(await isLive(path))) removeIfThere(path);
    });
  }
  for (const { path } of foldersToSearch()) dropDeadLock(join(path, LOCK));
}

/** The socket of a live command that has the name in another of this user's folders. */
async function heldElsewhere(path: string): Promise<string | undefined> {
  for (const other of findSockets().sockets) {
    if (basename(other) !== basename(path) || other === path) continue;
    if (await isLive(other)) return other;
  }
  return undefined;
}

/** Gives the socket its name unless a live process has it. Under the folder's lock. */
async function take(own: string, path: string): Promise<boolean> {
  for (;;) {
    try {
      linkSync(own, path);
      return true;
    } catch (error) {
      if (!hasCode(error, "EEXIST")) throw error;
    }
    if (await isLive(path)) return false;
    removeIfThere(path);
  }
}

/**
 * One command at a time claims a name in the folder: between finding a socket dead and replacing it
 * nobody else may do the same. A lock names its holder and takes milliseconds; one that is old, or
 * whose holder is dead, is nobody's.
 */
async function withLock<T>(folder: string, act: () => Promise<T>): Promise<T> {
  const path = join(folder, LOCK);
  for (;;) {
    try {
      const fd = openSync(path, "wx", 0o600);
      writeSync(fd, String(process.pid));
      closeSync(fd);
      break;
    } catch (error) {
      if (!hasCode(error, "EEXIST")) throw error;
    }
    if (!dropDeadLock(path)) await Bun.sleep(LOCK_RETRY_MS);
  }
  try {
    return await act();
  } finally {
    removeIfThere(path);
  }
}

/** True: the lock was nobody's and is gone. */
function dropDeadLock(path: string): boolean {
  const since = lstatSync(path, { throwIfNoEntry: false })?.mtimeMs;
  if (since === undefined) return false;
  let holder = "";
  try {
    holder = readFileSync(path, "utf8");
  } catch (error) {
    if (!hasCode(error, "ENOENT")) throw error;
    return false;
  }
  const dead = holder !== "" && !existsSync(`/proc/${holder}`);
  if (!dead && Date.now() - since <= LOCK_MS_MAX) return false;
  removeIfThere(path);
  return true;
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

async function holderOf(path: string): Promise<VmListing | undefined> {
  try {
    return (await askAdmin(path, { op: "list" }, 1000)) as VmListing | undefined;
  } catch {
    // Its pid is a courtesy.
    return undefined;
  }
}

function taken(vm: string, holder: VmListing | undefined): SsihvError {
  const who = holder === undefined ? "" : ` (pid ${holder.pid})`;
  return new SsihvError("name_taken", `a VM named ${vm} runs here already${who}`, {
    hint: "choose another --name; ssihv vm list shows the names in use",
  });
}

export function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (!hasCode(error, "ENOENT")) throw error;
  }
}
