// The numbers of all running VMs' engines, for whoever watches the cluster. Agents are asked when
// somebody looks, and never by the coordinator's own clock: without a reader there is no cost, and
// readers at the same moment share one answer.
// Invariants: an agent that does not answer delays nobody beyond the limit, counted from when it
// was asked, and is not asked again while it owes an answer; what it answers is checked first.

import { type Static, type TSchema, Type } from "@sinclair/typebox";
import { TypeCompiler } from "@sinclair/typebox/compiler";

import { SsihvError } from "../src/base/errors.ts";
import { Heat, NodeSample, type VmNumbers } from "./number-schemas.ts";
import type { Vms } from "./vms.ts";

export interface NumbersOptions {
  /** Engines have 2.5 s to answer their lead, but who watches wants the others meanwhile. */
  readonly patienceMs: number;
  /** An answer is good for so long. */
  readonly freshMs: number;
}

const USUAL: NumbersOptions = { patienceMs: 1500, freshMs: 250 };

const Sample = Type.Object({ nodes: Type.Array(NodeSample) });
const RUNNING = new Set(["running", "paused", "stopping"]);

function checked<T extends TSchema>(schema: T): (value: unknown) => Static<T> {
  const compiled = TypeCompiler.Compile(schema);
  return (value) => {
    if (compiled.Check(value)) return value;
    throw new SsihvError("vm_silent", "its agent answered in a form that is unknown here", {
      hint: "run the same ssihv on all hosts",
    });
  };
}

const sampleOf = checked(Sample);
const heatOf = checked(Heat);

/** Goes forward only, and on where a coordinator before this one left off. */
function now(): number {
  return performance.timeOrigin + performance.now();
}

export class Numbers {
  private readonly vms: Pick<Vms, "list" | "ask">;
  private readonly options: NumbersOptions;
  private readonly open = new Map<string, { readonly at: number; answer: Promise<unknown> }>();
  private newest: { readonly until: number; readonly all: Promise<VmNumbers[]> } | undefined;

  constructor(vms: Pick<Vms, "list" | "ask">, options = USUAL) {
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

  /** Remote faults by block of guest RAM. */
  async heat(name: string): Promise<Static<typeof Heat>> {
    return heatOf(await this.vms.ask(name, { op: "heat" }));
  }

  private async askAll(): Promise<VmNumbers[]> {
    const running = (await this.vms.list()).filter(({ state }) => RUNNING.has(state));
    return await Promise.all(
      running.map(async ({ name, state }): Promise<VmNumbers> => {
        try {
          const { nodes } = sampleOf(await this.ask(name));
          return { name, state, at: now(), nodes, silent: null };
        } catch (error) {
          const silent = error instanceof Error ? error.message : String(error);
          return { name, state, at: now(), nodes: [], silent };
        }
      }),
    );
  }

  private async ask(name: string): Promise<unknown> {
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
