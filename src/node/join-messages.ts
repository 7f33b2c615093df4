// What the lead of a VM (`ssihv run --listen`) and a host that joins it (`ssihv join`) say to each
// other over a sealed channel. Order: both greet with `hello`; the lead answers with `welcome` or
// `refused`; then engine messages pass both ways, `exit` tells that the engine is gone, and
// `ended`, the lead's last message, how the VM ended. `alive` only breaks the silence.
// The other side holds the VM's key, but it may run another build: `hello` is read field by field
// and decides; everything after it comes from the same build and is told apart by its tag.

import { isErrorCode, SsihvError } from "../base/errors.ts";
import {
  type FromEngine,
  isFromEngine,
  isToEngine,
  type NodePlan,
  type ToEngine,
} from "../engine/messages.ts";
import type { BuildInfo } from "./build-info.ts";
import type { EngineExit } from "./engine-process.ts";
import type { VmOutcome } from "./vm.ts";

export interface Hello {
  readonly type: "hello";
  readonly build: BuildInfo;
  /** The host's own name, for messages. */
  readonly host: string;
  /** From a joining host: the IP address at which it reached the lead. */
  readonly leadHost?: string;
  /** From a joining host: the IP address that other nodes reach it at (--lane). */
  readonly laneHost?: string;
  /** From a joining host: it lends memory and runs no vCPUs. */
  readonly memoryOnly?: boolean;
  /** From a joining host: the node it is to be; absent: any of its kind. */
  readonly node?: number;
}

export interface Welcome {
  readonly type: "welcome";
  readonly vm: string;
  /** Which of `nodes` the host is to be. */
  readonly node: number;
  readonly nodes: readonly NodePlan[];
  readonly peerTimeoutMs: number;
}

export interface Refused {
  readonly type: "refused";
  readonly message: string;
  readonly hint?: string;
}

/** A VmOutcome as JSON. */
export type EndedOutcome =
  | Extract<VmOutcome, { kind: "stopped" }>
  | {
      readonly kind: "failed";
      readonly code: string;
      readonly message: string;
      readonly hint?: string;
    };

export type FromLead =
  | Hello
  | Welcome
  | Refused
  | { readonly type: "engine"; readonly message: ToEngine }
  | { readonly type: "kill" }
  /** The engine tells on stderr what is open. */
  | { readonly type: "dump" }
  | { readonly type: "ended"; readonly outcome: EndedOutcome }
  | { readonly type: "alive" };

export type FromJoined =
  | Hello
  | {
      readonly type: "engine";
      readonly message: FromEngine;
      /** With `stopped`: what formatCpuDump() made of the shared page. */
      readonly registers?: string;
    }
  | { readonly type: "stderr"; readonly text: string }
  | { readonly type: "exit"; readonly exit: EngineExit; readonly lastWords?: string }
  /** The user of the joined host ended its command. */
  | { readonly type: "leave"; readonly why: string }
  | { readonly type: "alive" };

const LEAD_TAGS = new Set([
  ...["hello", "welcome", "refused", "engine", "kill", "dump", "ended", "alive"],
]);
const JOINED_TAGS = new Set(["hello", "engine", "stderr", "exit", "leave", "alive"]);

function tagged(value: unknown, tags: ReadonlySet<string>): { type: string } | undefined {
  if (typeof value !== "object" || value === null || !("type" in value)) return undefined;
  const { type } = value;
  return typeof type === "string" && tags.has(type) ? (value as { type: string }) : undefined;
}

function inner(value: object): unknown {
  return "message" in value ? value.message : undefined;
}

export function isFromLead(value: unknown): value is FromLead {
  const message = tagged(value, LEAD_TAGS);
  return message !== undefined && (message.type !== "engine" || isToEngine(inner(message)));
}

export function isFromJoined(value: unknown): value is FromJoined {
  const message = tagged(value, JOINED_TAGS);
  return message !== undefined && (message.type !== "engine" || isFromEngine(inner(message)));
}

const WORD_MAX = 255;

function word(value: unknown): string | undefined {
  return typeof value === "string" && value.length <= WORD_MAX ? value : undefined;
}

/** The other side's greeting, whatever build made it; undefined when it is none. */
export function parseHello(value: unknown): Hello | undefined {
  if (tagged(value, new Set(["hello"])) === undefined) return undefined;
  const raw = value as Record<string, unknown>;
  const build = raw["build"];
  if (typeof build !== "object" || build === null) return undefined;
  const { version, commit, abi } = build as Record<string, unknown>;
  const told = { version: word(version), commit: word(commit), abi: word(abi) };
  const host = word(raw["host"]);
  if (told.version === undefined || told.commit === undefined || told.abi === undefined) {
    return undefined;
  }
  if (host === undefined) return undefined;
  const leadHost = word(raw["leadHost"]);
  const laneHost = word(raw["laneHost"]);
  const node = Number.isSafeInteger(raw["node"]) ? Number(raw["node"]) : undefined;
  return {
    type: "hello",
    build: { version: told.version, commit: told.commit, abi: told.abi },
    host,
    ...(leadHost !== undefined && { leadHost }),
    ...(laneHost !== undefined && { laneHost }),
    memoryOnly: raw["memoryOnly"] === true,
    ...(node !== undefined && { node }),
  };
}

function buildText({ version, commit, abi }: BuildInfo): string {
  return `ssihv ${version} (commit ${commit}, ABI ${abi})`;
}

/** Why two builds cannot share a VM: undefined when they are the same. */
export function buildMismatch(own: BuildInfo, theirs: BuildInfo, host: string): string | undefined {
  const ours = buildText(own);
  const other = buildText(theirs);
  return ours === other ? undefined : `host ${host} runs ${other}, this host runs ${ours}`;
}

export const MISMATCH_HINT = "copy the same dist/ssihv to both hosts; ssihv --version tells it";

export function encodeOutcome(outcome: VmOutcome): EndedOutcome {
  if (outcome.kind === "stopped") return outcome;
  const { code, message, hint } = outcome.error;
  return { kind: "failed", code, message, ...(hint !== undefined && { hint }) };
}

export function decodeOutcome(outcome: EndedOutcome): VmOutcome {
  if (outcome.kind === "stopped") return outcome;
  const { code, message, hint } = outcome;
  const error = new SsihvError(isErrorCode(code) ? code : "engine_failed", message, {
    ...(hint !== undefined && { hint }),
  });
  return { kind: "failed", error };
}
