// The numbers of all running VMs' engines, for whoever watches the cluster. Agents are asked when
// somebody looks, and never by the coordinator's own clock: without a reader there is no cost, and
// readers at the same moment share one answer.
// Invariants: an agent that does not answer delays nobody beyond the limit, and is not asked again
// while it owes an answer; what an agent answers is checked before it is told.

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
  private readonly open = new Map<string, Promise<unknown>>();
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
    const seconds = (this.options.patienceMs / 1000).toFixed(1);
    const late = new SsihvError("vm_silent", `its agent did not answer within ${seconds} s`);
    if (this.open.has(name)) throw late;
    const asked = this.vms.ask(name, { op: "stats" });
    this.open.set(name, asked);
    const done = () => this.open.delete(name);
    asked.then(done, done);
    const timeout = Promise.withResolvers<never>();
    const timer = setTimeout(() => timeout.reject(late), this.options.patienceMs);
    try {
      return await Promise.race([asked, timeout.promise]);
    } finally {
      clearTimeout(timer);
    }
  }
}
