// A VM's part on this host as the agent looks after it: it leads the VM, or joins one that another
// host leads. Both are what `ssihv run` and `ssihv join` do, ordered by the coordinator and without
// a terminal. A part is known by its run until the coordinator has its end on record.

import type { SsihvError } from "../base/errors.ts";
import type { Ended, Part } from "../control/messages.ts";
import type { VmOutcome } from "../node/vm.ts";
import type { VmFacts, VmObserved } from "../node/vm-view.ts";

export interface RunningPart extends VmObserved {
  /** Its VM ends in order. */
  stop(): void;
  /** Its engines tell on stderr what is open. */
  dump(): void;
  /** At once; for the last moments of this process. */
  killAll(): void;
}

/** Reasons that are no failure: the guest or its user wanted it so. */
const IN_ORDER = new Set(["powered_off", "requested", "reset", "debug_exit"]);

/** Of a text, which may carry an engine's last words and registers. */
const TEXT_MAX = 8000;

function failed(error: SsihvError): Ended {
  return { kind: "failed", reason: error.code, text: error.message.slice(0, TEXT_MAX) };
}

export function endedOf(outcome: VmOutcome): Ended {
  if (outcome.kind === "failed") return failed(outcome.error);
  const { reason, code, detail, registers } = outcome;
  const kind = IN_ORDER.has(reason) ? "stopped" : "failed";
  const value = code === undefined ? "" : ` (value ${code})`;
  const more = detail === undefined ? "" : `: ${detail}`;
  const state = kind === "failed" && registers !== undefined ? `\n${registers}` : "";
  const text = `${reason.replaceAll("_", " ")}${value}${more}${state}`;
  return { kind, reason, text: text.slice(0, TEXT_MAX) };
}

/** One part, from its order to its end. */
export class PartRecord {
  readonly vm: string;
  readonly run: string;
  readonly lead: boolean;
  readonly running: RunningPart;
  private ended: Ended | undefined;
  private told = "";

  constructor(vm: string, run: string, lead: boolean, running: RunningPart) {
    this.vm = vm;
    this.run = run;
    this.lead = lead;
    this.running = running;
  }

  get isOver(): boolean {
    return this.ended !== undefined;
  }

  end(ended: Ended): void {
    this.ended ??= ended;
  }

  /** As of now. */
  report(): Part {
    const { vm, run, lead, ended } = this;
    const head = { vm, run, lead };
    if (ended !== undefined) return { ...head, state: "ended", ended };
    const facts = this.facts();
    if (facts === undefined) return { ...head, state: "starting" };
    const { state, nodes } = facts;
    const node = lead ? 0 : nodes[0]?.node;
    return { ...head, state, ...(node !== undefined && { node }) };
  }

  /** The part, where it can be looked at: it has joined, and has not ended. */
  get observed(): VmObserved | undefined {
    return this.isOver || this.facts() === undefined ? undefined : this.running;
  }

  private facts(): VmFacts | undefined {
    try {
      return this.running.facts();
    } catch {
      // A host that has not joined yet has no facts.
      return undefined;
    }
  }

  /** The report, which is told now. */
  tell(): Part {
    const part = this.report();
    this.told = JSON.stringify(part);
    return part;
  }

  /** The report, where it says something new. */
  news(): Part | undefined {
    return JSON.stringify(this.report()) === this.told ? undefined : this.tell();
  }
}
