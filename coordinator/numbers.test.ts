import { describe, expect, test } from "bun:test";
import { SsihvError } from "../src/base/errors.ts";
import type { StatsAnswer } from "../src/control/vm-answers.ts";
import type { Vm } from "./api-schemas.ts";
import { Numbers } from "./numbers.ts";

const SAMPLE = {
  name: "a",
  state: "running" as const,
  nodes: [
    {
      ...{ node: 0, host: null, vcpus: 2, memoryBytes: 1, lentBytes: null, silent: null },
      stats: {
        ...{ node: 0, engine: { faults_remote: 7 }, vcpus: [{ exits: 1 }] },
        faultLatency: { count: 7, sum_ns: 70, buckets: [0, 7] },
      },
    },
  ],
};

/** VMs whose agents answer as the test says. */
function vms(states: Record<string, string>, answer: (vm: string) => Promise<StatsAnswer>) {
  const asked: [string, string][] = [];
  return {
    asked,
    list: async () => Object.entries(states).map(([name, state]) => ({ name, state }) as Vm),
    ask: (name: string, question: { op: "stats" }) => {
      asked.push([name, question.op]);
      return answer(name);
    },
  };
}

const OPTIONS = { patienceMs: 30, freshMs: 10_000 };

describe("the numbers of all VMs", () => {
  test("of those that run; readers at the same time share an answer", async () => {
    const of = vms({ a: "running", b: "stopped", c: "paused" }, async () => SAMPLE);
    const numbers = new Numbers(of, OPTIONS);
    const [first, second] = await Promise.all([numbers.all(), numbers.all()]);
    expect(second).toBe(first);
    expect(first.map(({ name, nodes, silent }) => [name, nodes, silent])).toEqual([
      ["a", SAMPLE.nodes, null],
      ["c", SAMPLE.nodes, null],
    ]);
    expect(of.asked).toEqual([
      ["a", "stats"],
      ["c", "stats"],
    ]);
  });

  test("an agent that does not answer delays nobody, and is not asked twice", async () => {
    const held = Promise.withResolvers<StatsAnswer>();
    const of = vms({ a: "running", b: "running" }, (vm) =>
      vm === "b" ? held.promise : Promise.resolve(SAMPLE),
    );
    const numbers = new Numbers(of, { ...OPTIONS, freshMs: -1 });
    for (let i = 0; i < 3; i++) {
      const [a, b] = await numbers.all();
      expect([a?.nodes.length, b?.nodes.length]).toEqual([1, 0]);
      expect(b?.silent).toBe("its agent did not answer within 0.0 s");
    }
    expect(of.asked.filter(([vm]) => vm === "b").length).toBe(1);
    held.resolve(SAMPLE);
    await held.promise;
    expect((await numbers.all())[1]?.silent).toBeNull();
  });

  test("a reader who comes while an agent is at it gets that answer, too", async () => {
    const held = Promise.withResolvers<StatsAnswer>();
    const of = vms({ a: "running" }, () => held.promise);
    const numbers = new Numbers(of, { patienceMs: 60_000, freshMs: -1 });
    const readers = [numbers.all(), numbers.all()];
    await Bun.sleep(1);
    held.resolve(SAMPLE);
    for (const all of await Promise.all(readers)) expect(all[0]?.nodes).toEqual(SAMPLE.nodes);
    expect(of.asked.length).toBe(1);
  });

  test("a refusal is told on", async () => {
    const of = vms({ a: "running" }, async () => {
      throw new SsihvError("host_silent", "host x is silent: gone");
    });
    const all = await new Numbers(of, OPTIONS).all();
    expect(all.map(({ nodes, silent }) => [nodes, silent])).toEqual([
      [[], "host x is silent: gone"],
    ]);
  });
});
