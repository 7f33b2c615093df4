import { describe, expect, test } from "bun:test";
import { parseAnswer } from "./vm-answers.ts";

const node = { node: 0, host: null, vcpus: 2, memoryBytes: 1, lentBytes: null, silent: null };
const stats = {
  ...{ node: 0, engine: { faults_remote: 7 }, vcpus: [{ exits: 1 }] },
  faultLatency: { count: 7, sum_ns: 70, buckets: [0, 7] },
};
const sample = { name: "a", state: "running", nodes: [{ ...node, stats }] };
const heat = {
  vm: "a",
  ranges: [{ gpa: 0, bytes: 4096, node: 0 }],
  nodes: [{ node: 0, heat: { blockBytes: 4096, faults: [3] }, silent: null }],
};

describe("what agents answer", () => {
  test("is taken as it is, with what a newer build adds", () => {
    for (const more of [{}, { colour: "blue" }]) {
      expect(parseAnswer("stats", { ...sample, ...more })).toEqual({ ...sample, ...more } as never);
      expect(parseAnswer("heat", { ...heat, ...more })).toEqual({ ...heat, ...more } as never);
    }
  });

  test("is refused where it is not of the form", () => {
    const wrong = { ...sample, nodes: [{ ...node, vcpus: "<script>", stats }] };
    expect(parseAnswer("stats", wrong)).toBeUndefined();
    const cold = { node: 0, heat: { blockBytes: 4096, faults: [-1] }, silent: null };
    expect(parseAnswer("heat", { ...heat, nodes: [cold] })).toBeUndefined();
    expect(parseAnswer("heat", sample)).toBeUndefined();
  });
});
