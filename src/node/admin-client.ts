// Asks running VMs of this user through their admin sockets, and finds them by name.

import { messageOf, SsihvError } from "../base/errors.ts";
import { suggest } from "../base/suggest.ts";
import type { BalloonSummary } from "../engine/messages.ts";
import { findSockets } from "./admin-folder.ts";
import { type AdminRequest, LineReader, parseReply, REPLY_BYTES_MAX } from "./admin-protocol.ts";
import type { HeatShown, PagesShown, VmListing, VmSample, VmShown } from "./vm-view.ts";

/** A command that is alive answers this at once. */
const LIST_MS = 2000;
/** Behind it the engines have 2.5 s. */
const ASK_MS = 5000;

/** True: somebody listens there. */
export async function isLive(path: string): Promise<boolean> {
  try {
    const socket = await Bun.connect({ unix: path, socket: { data: () => undefined } });
    socket.terminate();
    return true;
  } catch (error) {
    return !isGone(error);
  }
}

function isGone(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return code === "ECONNREFUSED" || code === "ENOENT";
}

/** One request and its reply. Undefined: nobody listens there any more. */
export async function askAdmin(
  path: string,
  request: AdminRequest,
  limitMs: number,
): Promise<unknown> {
  const reply = Promise.withResolvers<string>();
  const lines = new LineReader(REPLY_BYTES_MAX);
  const seconds = (limitMs / 1000).toFixed(0);
  const timer = setTimeout(() => reply.reject(silent(path, `for ${seconds} s`)), limitMs);
  const take = (bytes: Uint8Array) => {
    try {
      const [line] = lines.push(bytes);
      if (line !== undefined) reply.resolve(line);
    } catch (error) {
      reply.reject(error);
    }
  };
  let socket: Bun.Socket<undefined> | undefined;
  try {
    socket = await Bun.connect<undefined>({
      unix: path,
      socket: {
        data: (_, bytes) => take(bytes),
        close: () => reply.reject(silent(path, "and closed the connection")),
        error: (_, error) => reply.reject(error),
      },
    });
    // A few bytes on a fresh socket: taken whole.
    socket.write(`${JSON.stringify({ id: 1, ...request })}\n`);
    return parseReply(await reply.promise);
  } catch (error) {
    if (socket === undefined && isGone(error)) return undefined;
    throw error;
  } finally {
    clearTimeout(timer);
    socket?.terminate();
    // Refused by what comes late, with nobody to hear it.
    reply.promise.catch(() => undefined);
  }
}

function silent(path: string, how: string): SsihvError {
  return new SsihvError("vm_silent", `the command behind ${path} did not answer ${how}`, {
    hint: "is its process stopped (SIGSTOP) or the host overloaded?",
  });
}

/** A VM, or a joined host's node of one, whose command runs as this user. */
export interface RunningVm {
  readonly path: string;
  /** As one names it: "demo", or "demo/1" for a joined host's node. */
  readonly label: string;
  /** Null: its command did not answer. */
  readonly listing: VmListing | null;
  readonly silent: string | null;
}

export interface RunningVms {
  readonly vms: readonly RunningVm[];
  /** Folders that were not looked into, with the reason. */
  readonly refused: readonly string[];
}

export async function runningVms(): Promise<RunningVms> {
  const { sockets, refused } = findSockets();
  const found = (await Promise.all(sockets.map(look))).filter((vm) => vm !== undefined);
  found.sort((a, b) => (a.label < b.label ? -1 : 1));
  return { vms: found, refused };
}

async function look(path: string): Promise<RunningVm | undefined> {
  const file = path.slice(path.lastIndexOf("/") + 1).replace(/\.sock$/, "");
  const label = file.replace(/\.(\d+)$/, "/$1");
  try {
    const listing = (await askAdmin(path, { op: "list" }, LIST_MS)) as VmListing | undefined;
    return listing === undefined ? undefined : { path, label, listing, silent: null };
  } catch (error) {
    const silent = messageOf(error);
    return { path, label, listing: null, silent };
  }
}

function labels(vms: readonly RunningVm[]): string {
  return vms.map(({ label }) => label).join(", ");
}

/** The VM of that name, or the only one there is. A name alone means the lead where it is here. */
export async function findVm(name: string | undefined): Promise<RunningVm> {
  const { vms } = await runningVms();
  const bare = (label: string) => label.replace(/\/\d+$/, "");
  const wanted = vms.filter(({ label }) => {
    return name === undefined || label === name || bare(label) === name;
  });
  const lead = wanted.filter(({ label }) => !label.includes("/"));
  const exact = wanted.filter(({ label }) => label === name);
  const [only, another] = exact.length > 0 ? exact : lead.length > 0 ? lead : wanted;
  if (only !== undefined && another === undefined) return only;
  if (only !== undefined) {
    const which = name === undefined ? "VM runs" : `node of VM ${name} is`;
    throw new SsihvError("vm_unknown", `more than one ${which} here`, {
      hint: `name one: ${labels(wanted)}`,
    });
  }
  if (name === undefined || vms.length === 0) {
    const which = name === undefined ? "no VM" : `no VM ${name}`;
    throw new SsihvError("vm_unknown", `${which} of this user runs on this host`, {
      hint: "start one with ssihv run; only the user who runs a VM sees it",
    });
  }
  const near = suggest(name, [...vms.map(({ label }) => label)]);
  throw new SsihvError("vm_unknown", `no VM ${name} runs here`, {
    hint: near === undefined ? `there are: ${labels(vms)}` : `did you mean ${near}?`,
  });
}

async function ask(vm: RunningVm, request: AdminRequest): Promise<unknown> {
  const answer = await askAdmin(vm.path, request, ASK_MS);
  if (answer !== undefined) return answer;
  throw new SsihvError("vm_unknown", `VM ${vm.label} has just ended`, {
    hint: "ssihv vm list shows those that run",
  });
}

export async function askShow(vm: RunningVm): Promise<VmShown> {
  return (await ask(vm, { op: "show" })) as VmShown;
}

export async function askStats(vm: RunningVm): Promise<VmSample> {
  return (await ask(vm, { op: "stats" })) as VmSample;
}

export async function askHeat(vm: RunningVm): Promise<HeatShown> {
  return (await ask(vm, { op: "heat" })) as HeatShown;
}

export async function askBalloon(vm: RunningVm, bytes: number): Promise<BalloonSummary> {
  return (await ask(vm, { op: "balloon", bytes })) as BalloonSummary;
}

export async function askPages(vm: RunningVm, gpa: number, count: number): Promise<PagesShown> {
  return (await ask(vm, { op: "pages", gpa, count })) as PagesShown;
}
