// What `ssihv run --hosts` and the part of its VM on a host (`ssihv part`) say to each other:
// JSON, one message a line, over the part's stdin and stdout. Both run the same file (bootstrap.ts
// compares its hash), so a message is told by its type and otherwise believed.
// Order: the part tells of its host; files, then `lead` or `join`; from then on what happens,
// until `ended`. Console bytes cross one chunk at a time each way, and are answered, so that a
// slow reader holds back the guest and a slow guest its writer.

import type { EngineSummary, SandboxMode } from "../engine/messages.ts";
import type { HostCheck } from "../node/host-check.ts";
import type { HostPort } from "../node/join-address.ts";
import type { EndedOutcome } from "../node/join-messages.ts";
import type { VmEvent, VmPlan } from "../node/vm.ts";

export type BootFile = "kernel" | "initrd";

export interface LeadOrder {
  readonly type: "lead";
  /** Boot files that were sent before replace those it names. */
  readonly plan: Omit<VmPlan, "door">;
  /** Absent: the VM is on this host alone. */
  readonly listen?: HostPort;
  /** Hex. It is told here and nowhere else: no argument, environment, file or log has it. */
  readonly key: string;
  readonly nameChosen: boolean;
  readonly sandbox: SandboxMode;
}

export interface JoinOrder {
  readonly type: "join";
  /** What the user calls this host. */
  readonly hostName: string;
  readonly lead: HostPort;
  readonly key: string;
  readonly node: number;
  readonly memoryOnly: boolean;
  readonly laneHost?: string;
  readonly sandbox: SandboxMode;
}

export type ToPart =
  | { readonly type: "alive" }
  /** A piece of a boot file, in base64, in order. */
  | { readonly type: "file"; readonly file: BootFile; readonly data: string }
  | LeadOrder
  | JoinOrder
  /** Bytes for the guest's console; answered by `typed`. */
  | { readonly type: "input"; readonly data: string }
  /** The answer to `console`. */
  | { readonly type: "taken" }
  | { readonly type: "stop" | "pause" | "nmi" | "report" | "dump" };

export interface PartHost {
  readonly check: HostCheck;
  /** Address at which the connection reached this host, and from which it came (SSH_CONNECTION). */
  readonly reachedAt?: string;
  readonly reachedFrom?: string;
  /** Ports from which on enough are free for a VM. */
  readonly freePorts: readonly number[];
}

export type FromPart =
  | { readonly type: "alive" }
  | { readonly type: "host"; readonly host: PartHost }
  /** The name that the VM has on the lead's host. */
  | { readonly type: "named"; readonly vm: string; readonly warnings: readonly string[] }
  | { readonly type: "event"; readonly event: VmEvent }
  | { readonly type: "console"; readonly data: string }
  | { readonly type: "typed" }
  /** A part that joined: it has its node. */
  | { readonly type: "joined" }
  | { readonly type: "notice"; readonly text: string }
  | {
      readonly type: "ended";
      readonly outcome: EndedOutcome;
      readonly summaries: readonly EngineSummary[];
    };

/** Both say that they live this often, and give up a side that is silent for `SILENCE_MS`. */
export const ALIVE_MS = 1000;
export const SILENCE_MS = 30_000;

/** The lead's door, and the lanes of up to eight nodes. */
export const PORTS_PER_VM = 16;
const FIRST_PORT = 7700;
const BLOCKS = 20;

/** Where the ports of a VM may begin, in the order of preference. */
export const PORT_BLOCKS: readonly number[] = Array.from(
  { length: BLOCKS },
  (_, i) => FIRST_PORT + i * PORTS_PER_VM,
);

export function toBase64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}

/** Splits bytes into lines; what has no end yet waits. */
export class Lines {
  private parts: Uint8Array[] = [];

  push(bytes: Uint8Array): string[] {
    const lines: string[] = [];
    let rest = bytes;
    for (;;) {
      const end = rest.indexOf(NEWLINE);
      this.parts.push(end < 0 ? rest.slice() : rest.subarray(0, end));
      if (end < 0) return lines;
      lines.push(Buffer.concat(this.parts).toString("utf8"));
      this.parts = [];
      rest = rest.subarray(end + 1);
    }
  }

  /** What the stream ended with. */
  rest(): string {
    return Buffer.concat(this.parts).toString("utf8");
  }
}

const NEWLINE = 0x0a;
