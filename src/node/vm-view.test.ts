import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import type { EngineSummary, PageReport, Question } from "../engine/messages.ts";
import type { Asked } from "./questions.ts";
import {
  heatOfVm,
  listVm,
  setBalloon,
  showPages,
  showVm,
  type VmFacts,
  type VmObserved,
} from "./vm-view.ts";

const MIB = 2 ** 20;
const FACTS: VmFacts = {
  name: "demo",
  role: "lead",
  state: "running",
  uptimeSeconds: 5,
  shape: [
    { id: 0, vcpus: 2, memoryBytes: 128 * MIB },
    { id: 1, vcpus: 1, memoryBytes: 4096 * MIB },
  ],
  nodes: [
    { node: 0, pid: 10 },
    { node: 1, host: "other", pid: 20 },
  ],
};

function report(node: number, gpa: number): PageReport {
  return {
    gpa,
    home: 1,
    ...(node === 1 && { entry: { state: "exclusive", owner: 0, sharers: [], version: 3 } }),
    copy: { access: node === 0 ? "exclusive" : "invalid", version: 3, revokesDeferred: 0 },
  };
}

function observed(mute: readonly number[] = [], facts: VmFacts = FACTS) {
  const asked: [number, Question][] = [];
  const vm: VmObserved = {
    facts: () => facts,
    ask: (node, question): Promise<Asked> => {
      asked.push([node, question]);
      if (mute.includes(node))
        return Promise.reject(new SsihvError("vm_silent", "its engine sleeps"));
      if (question.kind === "summary") {
        const summary = { node, oldest_fault_us: 9 } as EngineSummary;
        return Promise.resolve({ kind: "summary", summary });
      }
      if (question.kind === "balloon") {
        const balloon = { target: question.bytes, actual: 0, inflated: 0, reported: 0 };
        return Promise.resolve({ kind: "balloon", balloon });
      }
      if (question.kind === "heat") {
        const heat = { blockBytes: 2 * MIB, faults: [node, 5] };
        return Promise.resolve({ kind: "heat", heat });
      }
      if (question.kind !== "pages") throw new Error(`nobody asks for ${question.kind}`);
      const pages = Array.from({ length: question.count }, (_, i) =>
        report(node, question.gpa + i * 4096),
      );
      return Promise.resolve({ kind: "pages", pages });
    },
  };
  return { vm, asked };
}

test("heat tells where RAM is, and is asked of nodes with pages only", async () => {
  const shape = [...FACTS.shape, { id: 2, vcpus: 0, memoryBytes: 0, lentBytes: 64 * MIB }];
  const nodes = [...FACTS.nodes, { node: 2, host: "lender", pid: 30 }];
  const { vm, asked } = observed([1], { ...FACTS, shape, nodes });
  const heat = await heatOfVm(vm);
  expect(asked.map(([node]) => node)).toEqual([0, 1]);
  expect(heat.nodes).toEqual([
    { node: 0, heat: { blockBytes: 2 * MIB, faults: [0, 5] }, silent: null },
    { node: 1, heat: null, silent: "its engine sleeps" },
  ]);
  // Node 1 has what fits below the hole for devices, and the rest above it.
  expect(heat.ranges).toEqual([
    { gpa: 0, bytes: 128 * MIB, node: 0 },
    { gpa: 128 * MIB, bytes: 2944 * MIB, node: 1 },
    { gpa: 4096 * MIB, bytes: 1152 * MIB, node: 1 },
  ]);
});

async function errorOf(promise: Promise<unknown>): Promise<SsihvError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SsihvError) return error;
  throw new Error("no error of ours");
}

test("a listing sums the nodes; a joined host's names its own", () => {
  expect(listVm(observed().vm)).toEqual({
    name: "demo",
    role: "lead",
    node: null,
    state: "running",
    nodes: 2,
    vcpus: 3,
    memoryBytes: 4224 * MIB,
    uptimeSeconds: 5,
    pid: process.pid,
  });
  const joined: VmFacts = { ...FACTS, role: "node", nodes: [{ node: 1, pid: 20 }] };
  expect(listVm(observed([], joined).vm).node).toBe(1);
});

test("every node is shown, one that does not answer with the reason", async () => {
  const { nodes } = await showVm(observed([1]).vm);
  expect(nodes[0]).toMatchObject({ node: 0, host: null, pid: 10, vcpus: 2, silent: null });
  expect(nodes[0]?.stats?.oldest_fault_us).toBe(9);
  expect(nodes[1]).toMatchObject({ host: "other", stats: null, silent: "its engine sleeps" });
});

test("a page has its home's entry and every node's copy", async () => {
  const { vm, asked } = observed();
  const gpa = 200 * MIB;
  const { pages, silent } = await showPages(vm, gpa + 17, 2);
  // The page that holds the address, from both nodes.
  expect(asked).toEqual([0, 1].map((node) => [node, { kind: "pages", gpa, count: 2 }]));
  expect(silent).toEqual([]);
  expect(pages.map((page) => page.gpa)).toEqual([gpa, gpa + 4096]);
  expect(pages[0]).toEqual({
    gpa,
    home: 1,
    state: "exclusive",
    owner: 0,
    sharers: [],
    version: 3,
    transaction: null,
    copies: [
      { node: 0, access: "exclusive", version: 3, revokesDeferred: 0 },
      { node: 1, access: "invalid", version: 3, revokesDeferred: 0 },
    ],
  });
});

test("without the home's answer the entry is unknown; without any it is an error", async () => {
  const { pages, silent } = await showPages(observed([1]).vm, 200 * MIB, 1);
  expect(pages[0]).toMatchObject({ home: 1, state: null, owner: null, version: null });
  expect(pages[0]?.copies.map(({ node }) => node)).toEqual([0]);
  expect(silent).toEqual([{ node: 1, why: "its engine sleeps" }]);
  expect((await errorOf(showPages(observed([0, 1]).vm, 0, 1))).message).toBe("its engine sleeps");
});

test("an address in a hole or behind the end is an error with the ranges", async () => {
  const { vm, asked } = observed();
  // 3 GiB lie below the hole; the last page before it, and one more.
  const edge = 0xc000_0000 - 4096;
  expect((await showPages(vm, edge, 1)).pages.length).toBe(1);
  const before = asked.length;
  const error = await errorOf(showPages(vm, edge, 2));
  expect(error.code).toBe("gpa_invalid");
  expect(error.message).toBe("VM demo: guest address 0xc0000000 is not RAM");
  expect(error.hint).toBe(
    "its RAM is 0x0 to 0x7ffffff (node 0), 0x8000000 to 0xbfffffff (node 1), " +
      "0x100000000 to 0x147ffffff (node 1)",
  );
  for (const gpa of [0xc000_0000, 0xfee0_0000, 0x1_4800_0000, Number.MAX_SAFE_INTEGER]) {
    expect((await errorOf(showPages(vm, gpa, 1))).code).toBe("gpa_invalid");
  }
  expect(asked.length).toBe(before);
  // From one node's RAM into the next one's there is no hole.
  expect((await showPages(vm, 128 * MIB - 4096, 2)).pages.length).toBe(2);
  for (const count of [0, 1025]) {
    expect((await errorOf(showPages(vm, 0, count))).code).toBe("request_invalid");
  }
});

test("memory nodes are asked for numbers, not for pages", async () => {
  const lender = { id: 2, vcpus: 0, memoryBytes: 0, lentBytes: 64 * MIB };
  const nodes = [...FACTS.nodes, { node: 2, host: "third", pid: 30 }];
  const facts: VmFacts = { ...FACTS, shape: [...FACTS.shape, lender], nodes };
  const { vm, asked } = observed([], facts);
  expect((await showVm(vm)).nodes[2]).toMatchObject({ memoryBytes: 0, lentBytes: 64 * MIB });
  const shown = await showPages(vm, 0x1000, 1);
  expect(shown.pages[0]?.copies.map(({ node }) => node)).toEqual([0, 1]);
  expect(asked.filter(([node]) => node === 2).map(([, { kind }]) => kind)).toEqual(["summary"]);
  const itself: VmFacts = { ...facts, role: "node", nodes: nodes.slice(2) };
  const refused = await errorOf(showPages(observed([], itself).vm, 0x1000, 1));
  expect(refused.message).toBe("node 2 of VM demo has no pages");
  expect(refused.hint).toContain("ssihv run");
});

test("the balloon's size goes to node 0, and never beyond the guest's RAM", async () => {
  const { vm, asked } = observed();
  expect((await setBalloon(vm, 64 * MIB)).target).toBe(64 * MIB);
  expect(asked).toEqual([[0, { kind: "balloon", bytes: 64 * MIB }]]);
  const much = await errorOf(setBalloon(vm, 4225 * MIB));
  expect([much.code, much.message]).toEqual([
    "flag_invalid",
    "a balloon of 4225 MiB in a guest of 4224 MiB",
  ]);
  const joined = observed([], { ...FACTS, role: "node", nodes: [{ node: 1, pid: 20 }] });
  const far = await errorOf(setBalloon(joined.vm, MIB));
  expect(far.message).toBe("node 1 of VM demo has no balloon");
  expect([asked.length, joined.asked.length]).toEqual([1, 0]);
});
