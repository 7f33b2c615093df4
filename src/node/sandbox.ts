// What a parent wishes for the engines it starts: how much of a sandbox, and as whom they run. The
// engine shuts itself in (src/engine/sandbox.ts) once it has opened what it needs.

import { chownSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { SANDBOX_MODES, type SandboxMode, type SandboxWish } from "../engine/messages.ts";

export { SANDBOX_MODES, type SandboxMode, type SandboxWish };

/** Beyond what Linux distributions, systemd and container managers give out (systemd's
 * UIDS-GIDS.md): no account has them. */
const FIRST_USER = 0x7000_0000;
/** Process ids are below 2^22, so that all is below 2^32. */
const USERS_OF_A_PROCESS = 256;
const OTHERS_ENTER = 0o001;
let made = 0;
/** Of VMs that run. */
const inUse = new Set<number>();

/** Where the lanes' sockets of engines on one host lie. */
export type LanePlaces =
  /** Lanes are TCP, or there are none. */
  | "none"
  /** A folder that the parent makes. */
  | "own folder"
  /** Paths that somebody else chose. */
  | "given";

/**
 * For the engines of one VM on this host. Started by root they run as a user of this VM's own, so
 * that engines of two VMs are as far from each other as two users.
 */
export function sandboxFor(
  mode: SandboxMode,
  lanes: LanePlaces,
  root: boolean = process.geteuid?.() === 0,
): SandboxWish {
  if (mode === "off") return { mode };
  if (!root) return { mode, noUser: "ssihv was not started by root" };
  const noUser = shutOut(lanes);
  if (noUser === undefined) {
    return { mode, user: freeUser() };
  }
  if (mode === "auto") return { mode, noUser };
  throw new SsihvError("host_unfit", `no sandbox for the engines: ${noUser}`, {
    hint: "let TMPDIR be /tmp, and lanes TCP; --sandbox auto goes on without that",
  });
}

function freeUser(): number {
  for (let tries = 0; tries < USERS_OF_A_PROCESS; tries++) {
    made += 1;
    const user = FIRST_USER + process.pid * USERS_OF_A_PROCESS + (made % USERS_OF_A_PROCESS);
    if (inUse.has(user)) continue;
    inUse.add(user);
    return user;
  }
  throw new SsihvError("host_unfit", `${USERS_OF_A_PROCESS} VMs run here: no user is left`, {
    hint: "--sandbox off runs engines as the user that started them",
  });
}

/** Its engines have ended: another VM may have the user. */
export function giveBack({ user }: SandboxWish): void {
  if (user !== undefined) inUse.delete(user);
}

/** Why another user's engines could not reach each other. */
function shutOut(lanes: LanePlaces): string | undefined {
  if (lanes === "given") return "its lanes' sockets lie in folders of its user's choice";
  if (lanes === "none") return undefined;
  for (let path = tmpdir(); ; path = dirname(path)) {
    if ((statSync(path).mode & OTHERS_ENTER) === 0) return `${path} is closed to other users`;
    if (path === dirname(path)) return undefined;
  }
}

/** Lets the engines use a folder of their parent's. */
export function giveFolder(path: string, { user }: SandboxWish): void {
  if (user === undefined) return;
  try {
    chownSync(path, user, user);
  } catch {
    // In a user namespace without such users, where engines cannot become one either.
  }
}

/** For the command line of `ssihv engine`. */
export function sandboxWords({ mode, user }: SandboxWish): string[] {
  return ["--sandbox", mode, ...(user === undefined ? [] : ["--user", String(user)])];
}
