import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { messageOf } from "../base/errors.ts";
import {
  frameRanges,
  type MemoryBudget,
  type MemoryWish,
  planBudget,
  usedPercent,
} from "./memory-budget.ts";

const MIB = 1n << 20n;

function wish(homes: readonly number[], more: Partial<MemoryWish> = {}): MemoryWish {
  return {
    homes: homes.map((mib) => ({ bytes: BigInt(mib) * MIB, vcpus: 2 })),
    memoryNodes: 0,
    copies: 1,
    ...more,
  };
}

/** In MiB, to be read. */
function shown({ compute, memory }: MemoryBudget) {
  return {
    compute: compute.map((each) => [
      Number(each.residentBytes) / 2 ** 20,
      Number(each.cacheBytes) / 2 ** 20,
    ]),
    memory: memory.map((bytes) => Number(bytes) / 2 ** 20),
  };
}

describe("compute nodes alone", () => {
  test("keep all own pages, and a cache of a sixteenth, at least 64 MiB", () => {
    expect(shown(planBudget(wish([512, 512])))).toEqual({
      compute: [
        [512, 64],
        [512, 64],
      ],
      memory: [],
    });
    const large = planBudget(wish([16384, 16384]));
    expect(shown(large).compute[0]).toEqual([16384, 1024]);
    expect(usedPercent(large)).toBe(94.1);
  });

  test("need no more cache than there are pages of other nodes", () => {
    expect(shown(planBudget(wish([64, 32]))).compute).toEqual([
      [64, 32],
      [32, 64],
    ]);
    expect(shown(planBudget(wish([64]))).compute).toEqual([[64, 0]]);
  });

  test("turn what else their hosts give into cache", () => {
    const given = { nodeBytes: 160n * MIB };
    expect(shown(planBudget(wish([128, 128], given))).compute[0]).toEqual([128, 32]);
    const most = { nodeBytes: 1024n * MIB };
    expect(shown(planBudget(wish([128, 128], most))).compute[0]).toEqual([128, 128]);
  });

  test("a cache that was asked for is what they get", () => {
    const asked = planBudget(wish([120, 120], { cacheBytes: 8n * MIB }));
    expect(shown(asked).compute[0]).toEqual([120, 8]);
    expect(usedPercent(asked)).toBe(93.7);
  });
});

describe("memory nodes", () => {
  test("lend as much as each compute node keeps, unless told", () => {
    expect(shown(planBudget(wish([384], { memoryNodes: 2 })))).toEqual({
      compute: [[128, 0]],
      memory: [128, 128],
    });
    expect(shown(planBudget(wish([384], { memoryNodes: 2, copies: 2 })))).toEqual({
      compute: [[192, 0]],
      memory: [192, 192],
    });
    const three = planBudget(wish([256, 256], { memoryNodes: 1 }));
    expect(three.compute[0]?.residentBytes).toBe(((512n * MIB) / 3n / 4096n + 1n) * 4096n);
    expect(usedPercent(planBudget(wish([384], { memoryNodes: 2 })))).toBe(100);
  });

  test("lend what the compute nodes lack", () => {
    const given = { memoryNodes: 2, nodeBytes: 128n * MIB };
    expect(shown(planBudget(wish([512], given)))).toEqual({
      compute: [[128, 0]],
      memory: [192, 192],
    });
    const two = shown(planBudget(wish([256, 256], given)));
    expect(two).toEqual({
      compute: [
        [96, 32],
        [96, 32],
      ],
      memory: [160, 160],
    });
  });

  test("lend what they are told, the compute nodes keep the rest", () => {
    const given = { memoryNodes: 2, memoryNodeBytes: 200n * MIB };
    expect(shown(planBudget(wish([256, 256], given))).compute).toEqual([
      [56, 64],
      [56, 64],
    ]);
    const copies = { ...given, copies: 2 };
    expect(shown(planBudget(wish([256, 256], copies))).compute[0]).toEqual([156, 64]);
  });

  test("may lend more than is needed", () => {
    const given = { memoryNodes: 1, nodeBytes: 128n * MIB, memoryNodeBytes: 512n * MIB };
    expect(shown(planBudget(wish([256], given)))).toEqual({ compute: [[128, 0]], memory: [512] });
  });
});

describe("what has no room is refused", () => {
  function words(bad: MemoryWish): string {
    try {
      planBudget(bad);
    } catch (error) {
      return messageOf(error);
    }
    return "";
  }

  test("a compute node that gives less than its pages or its cache need", () => {
    expect(words(wish([128, 128], { nodeBytes: 128n * MIB }))).toBe(
      "node 0 gives 128 MiB, it needs 132 MiB: 128 MiB for pages of its own, " +
        "4 MiB for those of other nodes",
    );
    expect(words(wish([128, 128], { nodeBytes: 140n * MIB, cacheBytes: 16n * MIB }))).toBe(
      "node 0 gives 140 MiB, it needs 144 MiB: 128 MiB for pages of its own, " +
        "16 MiB for those of other nodes",
    );
    const tiny = { nodeBytes: 8n * MIB, memoryNodes: 1 };
    expect(words(wish([128], tiny))).toBe(
      "node 0 gives 8 MiB, it needs 16 MiB: 16 MiB for pages of its own, " +
        "0 KiB for those of other nodes",
    );
  });

  test("a cache that does not hold what the vCPUs' instructions need", () => {
    const homes = [
      { bytes: 128n * MIB, vcpus: 64 },
      { bytes: 128n * MIB, vcpus: 1 },
    ];
    expect(words({ homes, memoryNodes: 0, copies: 1, cacheBytes: 6n * MIB })).toBe(
      "--cache: 6 MiB for other nodes' pages, node 0 needs 8 MiB",
    );
  });

  test("memory nodes that lend too little", () => {
    const given = { memoryNodes: 2, nodeBytes: 128n * MIB, memoryNodeBytes: 150n * MIB };
    expect(words(wish([512], given))).toBe(
      "384 MiB of the guest's 512 MiB do not fit on its compute nodes: " +
        "each memory node lends 150 MiB, it needs 192 MiB",
    );
    expect(words(wish([400], { ...given, copies: 2 }))).toBe(
      "272 MiB of the guest's 400 MiB do not fit on its compute nodes, 2 copies of each page: " +
        "each memory node lends 150 MiB, it needs 272 MiB",
    );
  });

  test("settings that mean nothing", () => {
    expect(words(wish([128], { copies: 2 }))).toBe("--copies without a memory node");
    expect(words(wish([128], { memoryNodeBytes: MIB }))).toBe(
      "--memory-node-memory without a memory node",
    );
    expect(words(wish([128], { copies: 2, memoryNodes: 1 }))).toBe(
      "--copies 2 with 1 memory node(s): each copy is on another one",
    );
    expect(words(wish([128], { memoryNodes: 1, nodeBytes: 128n * MIB }))).toBe(
      "1 memory node(s), but all of the guest's RAM fits on its compute nodes",
    );
  });
});

/** Any wish at all, most of them possible. */
const wishes = fc.record(
  {
    homes: fc.array(
      fc.record({
        bytes: fc.integer({ min: 8, max: 600 }).map((blocks) => BigInt(blocks) * 2n * MIB),
        vcpus: fc.integer({ min: 1, max: 64 }),
      }),
      { minLength: 1, maxLength: 5 },
    ),
    memoryNodes: fc.integer({ min: 0, max: 3 }),
    nodeBytes: fc.integer({ min: 1, max: 2 ** 31 }).map(BigInt),
    memoryNodeBytes: fc.integer({ min: 1, max: 2 ** 31 }).map(BigInt),
    cacheBytes: fc.integer({ min: 1, max: 2 ** 28 }).map(BigInt),
    copies: fc.constantFrom(1, 2),
  },
  { requiredKeys: ["homes", "memoryNodes", "copies"] },
);

/** Undefined for a wish that is refused in words; anything else it throws is a defect. */
function planned(wanted: MemoryWish): MemoryBudget | undefined {
  try {
    return planBudget(wanted);
  } catch (error) {
    if (error instanceof Error && "code" in error) return undefined;
    throw error;
  }
}

describe("every plan", () => {
  test("has a place for every page, within what each host gives", () => {
    let plans = 0;
    fc.assert(
      fc.property(wishes, (wanted) => {
        const plan = planned(wanted);
        if (plan === undefined) return;
        plans += 1;
        const ranges = frameRanges(plan, wanted.copies);
        plan.compute.forEach((each, node) => {
          if (wanted.nodeBytes !== undefined) {
            expect(each.residentBytes + each.cacheBytes).toBeLessThanOrEqual(wanted.nodeBytes);
          }
          const stored = Number((each.homeBytes - each.residentBytes) / 4096n);
          // So many pages with their copies on different nodes.
          const usable = ranges
            .map((range) => Math.min(range[node]?.count ?? 0, stored))
            .reduce((total, frames) => total + frames, 0);
          expect(usable).toBeGreaterThanOrEqual(stored * wanted.copies);
          expect(each.cacheBytes > 0n).toBe(plan.compute.length > 1);
        });
        ranges.forEach((range, memoryNode) => {
          const ends = range.map(({ first, count }) => first + count);
          expect(range.map(({ first }) => first)).toEqual([0, ...ends.slice(0, -1)]);
          expect(BigInt(ends.at(-1) ?? 0) * 4096n).toBe(plan.memory[memoryNode] ?? -1n);
        });
      }),
      { numRuns: 2000 },
    );
    expect(plans).toBeGreaterThan(200);
  });
});
