// An engine shuts itself in between building its machine, which opens devices and images, and its
// first word with a peer or a guest. What a host does not allow is told, not done without a word:
// `auto` goes on without, `required` does not.

import { messageOf, SsihvError } from "../base/errors.ts";
import { becomeUser, dieWithParent, filterCalls } from "../native/engine-handle.ts";
import type { SandboxState, SandboxWish } from "./messages.ts";

export interface SandboxCalls {
  readonly becomeUser: typeof becomeUser;
  readonly dieWithParent: typeof dieWithParent;
  readonly filterCalls: typeof filterCalls;
}

/** `priority`: the highest real-time priority that a thread of the engine asks for, or 0. */
export function enterSandbox(
  { mode, user }: SandboxWish,
  priority: number,
  calls: SandboxCalls = { becomeUser, dieWithParent, filterCalls },
): SandboxState {
  if (mode === "off") return { filter: false, missing: ["it was turned off (--sandbox off)"] };
  const missing: string[] = [];
  const tried = (what: () => void): boolean => {
    try {
      what();
      return true;
    } catch (error) {
      missing.push(messageOf(error));
      return false;
    }
  };
  const own = user !== undefined && tried(() => calls.becomeUser(user, priority));
  // Not a loss to go on with: nobody would know of an engine that its parent left.
  if (user !== undefined) calls.dieWithParent();
  const filter = tried(() => calls.filterCalls());
  if (mode === "required" && missing.length > 0) {
    throw new SsihvError("host_unfit", `no sandbox for the engine: ${missing.join("; ")}`, {
      hint: "--sandbox auto goes on with what this host allows",
    });
  }
  return { ...(own && { user }), filter, missing };
}
