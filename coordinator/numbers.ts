// The numbers of all running VMs' engines, for whoever watches the cluster. Agents are asked when
// somebody looks, and never by the coordinator's own clock: without a reader there is no cost, and
// readers at the same moment share one answer.
// Invariants: an agent that does not answer delays nobody beyond the limit, counted from when it
// was asked, and is not asked again while it owes an answer.

import { messageOf, SsihvError } from "../src/base/errors.ts";
import type { StatsAnswer } from "../src/control/vm-answers.ts";
import type { VmNumbers } from "./number-schemas.ts";
import type { Vms } from "./vms.ts";

export interface NumbersOptions {
  /** Engines have 2.5 s to answer their lead, but who watches wants the others meanwhile. */
  readonly patienceMs: number;
  /** An answer is good for so long. */
  readonly freshMs: number;
}

const USUAL: NumbersOptions = { patienceMs: 1500, freshMs: 250 };

const RUNNING = new Set(["running", "paused", "stopping"]);

/** Goes forward only, and on where a coordinator before this one left off. */
function now(): number {
  return performance.timeOrigin + performance.now();
}

export interface AskedVms extends Pick<Vms, "list"> {
  ask(name: string, question: { op: "stats" }): Promise<StatsAnswer>;
}

export class Numbers {
  private readonly vms: AskedVms;
  private readonly options: NumbersOptions;
  private readonly open = new Map<string, { readonly at: number; answer: Promise<StatsAnswer> }>();
  private newest: { readonly until: number; readonly all: Promise<VmNumbers[]> } | undefined;

  constructor(vms: AskedVms, options = USUAL) {
    this.vms = vms;
    this.options = options;
  }

  /** Of every VM that runs; where there are none, why. */
  all(): Promise<VmNumbers[]> {
    const at = now();
    if (this.newest === undefined || at > this.newest.until) {
      this.newest = { until: at + this.options.freshMs, all: this.askAll() };
    }
    return this.newest.all;
  }

  private async askAll(): Promise<VmNumbers[]> {
    const running = (await this.vms.list()).filter(({ state }) => RUNNING.has(state));
    return await Promise.all(
      running.map(async ({ name, state }): Promise<VmNumbers> => {
        try {
          const { nodes } = await this.ask(name);
          return { name, state, at: now(), nodes, silent: null };
        } catch (error) {
          const silent = messageOf(error);
          return { name, state, at: now(), nodes: [], silent };
        }
      }),
    );
  }

  private async ask(name: string): Promise<StatsAnswer> {
    const { patienceMs } = this.options;
    const { at, answer } = this.open.get(name) ?? this.askAnew(name);
    const timeout = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => {
        const seconds = (patienceMs / 1000).toFixed(1);
        const words = `its agent did not answer within ${seconds} s`;
        timeout.reject(new SsihvError("vm_silent", words));
      },
      Math.max(0, at + patienceMs - now()),
    );
    try {
      return await Promise.race([answer, timeout.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  private askAnew(name: string) {
    const asked = { at: now(), answer: this.vms.ask(name, { op: "stats" }) };
    this.open.set(name, asked);
    const done = () => this.open.delete(name);
    asked.answer.then(done, done);
    return asked;
  }
}
