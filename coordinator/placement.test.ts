// Which node goes where, and what a refusal says: every host by name, with what it is short of.

import { describe, expect, test } from "bun:test";
import fc from "fast-check";

import { SsihvError } from "../src/base/errors.ts";
import type { VmSpec } from "../src/control/vm-spec.ts";
import { demandsOf, type HostRoom, placeVm } from "./placement.ts";

const GIB = 2 ** 30;

function room(name: string, cpus: number, gib: number, change: Partial<HostRoom> = {}): HostRoom {
  return {
    name,
    capacity: { cpus, memoryBytes: gib * GIB },
    used: { cpus: 0, memoryBytes: 0 },
    runsVcpus: true,
    ...change,
  };
}

function spec(nodes: VmSpec["nodes"], more: Partial<VmSpec> = {}): VmSpec {
  return { name: "demo", nodes, kernel: "/k", ...more };
}

const node = (cpus: number, gib: number, host?: string) => ({
  ...{ cpus, memoryBytes: gib * GIB },
  ...(host !== undefined && { host }),
});

function where(wanted: VmSpec, hosts: readonly HostRoom[]): string[] {
  return placeVm(wanted, hosts).map(({ host }) => host);
}

function refusal(wanted: VmSpec, hosts: readonly HostRoom[]): string {
  try {
    placeVm(wanted, hosts);
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    expect(error.code).toBe("placement_refused");
    return error.message;
  }
  throw new Error("it was placed");
}

test("the tightest host that fits is taken, and each node has a host of its own", () => {
  const hosts = [room("big", 8, 64), room("small", 8, 4), room("middle", 8, 16)];
  expect(where(spec([node(2, 2)]), hosts)).toEqual(["small"]);
  expect(where(spec([node(2, 2), node(2, 8)]), hosts)).toEqual(["small", "middle"]);
  expect(where(spec([node(2, 2), node(2, 2), node(2, 2)]), hosts).toSorted()).toEqual([
    ...["big", "middle", "small"],
  ]);
});

test("a node that names its host gets it, whatever the others would like", () => {
  const hosts = [room("a", 8, 8), room("b", 8, 8)];
  expect(where(spec([node(1, 1), node(1, 4, "a")]), hosts)).toEqual(["b", "a"]);
});

test("a greedy choice that leaves another node without a host is taken back", () => {
  // Node 0 has more memory, so it chooses first; the host it would like is the only one with CPUs.
  const hosts = [room("cpus", 16, 6), room("memory", 2, 8)];
  expect(where(spec([node(2, 4), node(8, 3)]), hosts)).toEqual(["memory", "cpus"]);
});

describe("a refusal", () => {
  test("names each host and what it is short of", () => {
    const hosts = [
      room("few", 2, 64),
      room("little", 16, 2),
      room("full", 16, 64, { used: { cpus: 14, memoryBytes: 60 * GIB } }),
      room("gone", 16, 64, { unusable: "it is silent: nothing was heard for 5.0 s" }),
      room("unfit", 16, 64, { runsVcpus: false, problems: ["KVM: /dev/kvm is missing"] }),
    ];
    expect(refusal(spec([node(4, 8)]), hosts).split("\n")).toEqual([
      "VM demo has no place for node 0 (4 vCPU(s), 8344 MiB with page states and engine)",
      "host few: 2 CPU(s) short (2 free of 2)",
      "host little: 6296 MiB short (2048 MiB free of 2048 MiB)",
      "host full: 2 CPU(s) short (2 free of 16), 4248 MiB short (4096 MiB free of 65536 MiB)",
      "host gone: it is silent: nothing was heard for 5.0 s",
      "host unfit: it cannot run vCPUs: KVM: /dev/kvm is missing",
    ]);
  });

  test("tells of the host that a node names, also where that never joined", () => {
    expect(refusal(spec([node(1, 1, "c")]), [room("a", 8, 8)])).toMatch(
      /\nhost c: it has not joined$/,
    );
    const hosts = [room("a", 1, 8), room("b", 8, 8)];
    expect(refusal(spec([node(2, 1, "a")]), hosts)).toMatch(/\nhost a: 1 CPU\(s\) short[^\n]*$/);
  });

  test("says when there are fewer hosts than nodes", () => {
    const words = refusal(spec([node(1, 1), node(1, 1)]), [room("a", 8, 8)]);
    expect(words).toContain("host a: it has node 0 of this VM");
    expect(refusal(spec([node(1, 1)]), [])).toBe("VM demo has no place: no host has joined");
  });
});

test("memory nodes go to hosts without KVM, compute nodes do not", () => {
  const hosts = [room("kvm", 8, 3), room("lender", 1, 64, { runsVcpus: false })];
  const lending = spec([node(4, 8)], { memoryNodes: 1, nodeMemoryBytes: 2 * GIB });
  const places = placeVm(lending, hosts);
  expect(places.map(({ host, memoryOnly }) => [host, memoryOnly])).toEqual([
    ["kvm", false],
    ["lender", true],
  ]);
  // What the home cannot keep lies with the lender.
  expect((places[1]?.memoryBytes ?? 0) / GIB).toBeGreaterThan(6);
});

test("whatever is placed is promised by hosts that have it, each once; else nothing fits", () => {
  const anyRoom = fc.record({
    cpus: fc.integer({ min: 1, max: 8 }),
    gib: fc.integer({ min: 1, max: 8 }),
  });
  const anyNode = fc.record({
    cpus: fc.integer({ min: 1, max: 6 }),
    gib: fc.integer({ min: 1, max: 6 }),
  });
  fc.assert(
    fc.property(
      fc.array(anyRoom, { minLength: 1, maxLength: 4 }),
      fc.array(anyNode, { minLength: 1, maxLength: 3 }),
      (rooms, nodes) => {
        const hosts = rooms.map(({ cpus, gib }, i) => room(`h${i}`, cpus, gib));
        const wanted = spec(nodes.map(({ cpus, gib }) => node(cpus, gib)));
        const fits = (host: HostRoom, i: number) => {
          const demand = demandsOf(wanted)[i];
          if (demand === undefined) return false;
          const { cpus, memoryBytes } = host.capacity;
          return demand.cpus <= cpus && demand.memoryBytes <= memoryBytes;
        };
        const possible = (i: number, left: readonly HostRoom[]): boolean =>
          i === nodes.length ||
          left.some(
            (host) =>
              fits(host, i) &&
              possible(
                i + 1,
                left.filter((h) => h !== host),
              ),
          );
        let placed: string[] | undefined;
        try {
          placed = where(wanted, hosts);
        } catch (error) {
          if (!(error instanceof SsihvError)) throw error;
        }
        expect(placed !== undefined).toBe(possible(0, hosts));
        if (placed === undefined) return;
        expect(new Set(placed).size).toBe(nodes.length);
        placed.forEach((name, i) => {
          const host = hosts.find((each) => each.name === name);
          expect(host !== undefined && fits(host, i)).toBe(true);
        });
      },
    ),
    { numRuns: 300 },
  );
});
