import { expect, test } from "bun:test";

import type { RunningVm } from "../node/admin-client.ts";
import type { PageShown, VmShown } from "../node/vm-view.ts";
import { duration, listTable, pagesText, showText, table } from "./vm-tables.ts";

test("columns are as wide as their widest cell, numbers to the right", () => {
  expect(
    table(
      ["A", "LONG"],
      [
        ["x", "1"],
        ["long one", "22"],
      ],
      new Set(["LONG"]),
    ),
  ).toBe("A         LONG\nx            1\nlong one    22\n");
  // What a guest or a host named itself cannot drive the terminal.
  expect(table(["A"], [["\x1b[2J"]], new Set())).toBe("A\n\\x1b[2J\n");
});

test("durations in their two largest units", () => {
  const all = [0, 0.9, 59, 60, 3600, 3661, 90_000, 700_000].map(duration);
  expect(all).toEqual(["0 s", "0 s", "59 s", "1 min", "1 h", "1 h 1 min", "1 d 1 h", "8 d 2 h"]);
});

test("a list of VMs, one of which does not answer", () => {
  const vms: RunningVm[] = [
    {
      path: "/run/ssihv/demo.sock",
      label: "demo",
      listing: {
        ...{ name: "demo", role: "lead", node: null, state: "running", nodes: 2, vcpus: 4 },
        ...{ memoryBytes: 2 ** 30, uptimeSeconds: 61, pid: 4711 },
      },
      silent: null,
    },
    { path: "/run/ssihv/old.sock", label: "old/1", listing: null, silent: "did not answer" },
  ];
  expect(listTable(vms)).toBe(
    [
      "NAME   STATE      NODES  VCPUS   MIB  UPTIME      PID",
      "demo   running        2      4  1024  1 min 1 s  4711",
      "old/1  no answer",
      "",
    ].join("\n"),
  );
  expect(listTable([])).toBe("NAME  STATE  NODES  VCPUS  MIB  UPTIME  PID\n");
});

test("a VM with a node that answers and one that does not", () => {
  const stats = {
    ...{ node: 0, runSeconds: 5, exits: 1000, exitsTypescript: 0, remoteFaults: 7 },
    ...{ faultUsMedian: 48.4, faultUsP99: 107.6, pageTables: "strict" as const },
    ...{
      pageTableTransfers: 0,
      longestStallUs: 900.2,
      freezes: 0,
      frozenSeconds: 0,
      longestFreezeSeconds: 0,
      oldest_fault_us: 2_000_000.9,
    },
    ...{ stalledShare: 0.0312, mismatches: 0 },
    memory: {
      ownPagesMax: 0,
      cachePagesMax: 0,
      evicted: 0,
      returned: 0,
      framesHeld: 0,
      discarded: 0,
      framesFreed: 0,
    },
  };
  const size = { vcpus: 1, memoryBytes: 2 ** 27, lentBytes: null };
  const sandbox = { user: 1_879_100_000, filter: true, missing: [] };
  const none = { sandbox: null, stats: null };
  const vm: VmShown = {
    ...{ name: "demo", role: "lead", node: null, state: "running", vcpus: 2 },
    ...{ memoryBytes: 2 ** 28, uptimeSeconds: 5, pid: 10 },
    nodes: [
      { node: 0, host: null, pid: 11, ...size, sandbox, stats, silent: null },
      { node: 1, host: "b", pid: null, ...size, ...none, silent: "its engine is not up yet" },
      {
        ...{ node: 2, host: "c", pid: 9, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 },
        ...{ sandbox: { filter: false, missing: ["no filter here"] } },
        ...{ stats: null, silent: "it does not answer" },
      },
    ],
  };
  const text = showText("demo", vm);
  const [heads = "", cells = "", other = "", lender = ""] = text.split("\n").slice(6);
  expect(text).toContain("State:    running\nUptime:   5 s\nSize:     2 vCPU(s), 256 MiB\n");
  const row = (line: string) => line.trim().split(/ +/);
  expect(row(heads)).toEqual([
    ...["NODE", "HOST", "PID", "VCPUS", "MIB", "EXITS", "REMOTE-FAULTS", "MEDIAN-US", "P99-US"],
    ...["STALLED-%", "LONGEST-US", "OLDEST-FAULT-US"],
  ]);
  expect(row(cells)).toEqual([
    ...["0", "this", "11", "1", "128", "1000", "7", "48", "108", "3.1", "900", "2000001"],
  ]);
  expect(row(other)).toEqual(["1", "b", "-", "1", "128", ...Array(7).fill("-")]);
  expect(row(lender)).toEqual(["2", "c", "9", "0", "64", ...Array(7).fill("-")]);
  expect(text).toContain(
    "sandbox of node 0: user 1879100000; no new privileges, system calls filtered\n" +
      "sandbox of node 2: no user of its own; no filter; no filter here\n",
  );
  expect(text).toContain("node 1: its engine is not up yet\n");
  expect(text).not.toContain("balloon");
  const balloon = {
    ...{ target: 64 << 20, actual: 60 << 20, inflated: 70 << 20, reported: 9 << 20 },
  };
  const memory = { ...stats.memory, discarded: 79 * 256, framesFreed: 2 * 256 };
  const given = { node: 0, host: null, pid: 11, ...size, sandbox, silent: null };
  const shown = showText("demo", {
    ...vm,
    nodes: [{ ...given, stats: { ...stats, balloon, memory } }],
  });
  expect(shown).toEndWith(
    "\nballoon: 60 of 64 MiB; given so far 70 MiB, reported free 9 MiB; discarded 79 MiB, " +
      "2 MiB on memory nodes\n",
  );
});

const PAGE: PageShown = {
  ...{ gpa: 0x100_0000, home: 1, state: "shared", owner: 0, sharers: [0, 2], version: 12 },
  transaction: null,
  copies: [
    { node: 0, access: "shared", version: 12, revokesDeferred: 0 },
    { node: 1, access: "invalid", version: 0, revokesDeferred: 0 },
  ],
};

test("pages: entry, copies, and what is under way", () => {
  const busy: PageShown = {
    ...PAGE,
    gpa: 0x100_1000,
    transaction: { requester: 1, request: "upgrade", phase: "strict", queued: 2 },
    copies: [
      { node: 0, access: "exclusive", version: 12, revokesDeferred: 1 },
      { node: 1, access: "replicated", version: 12, waitsFor: "upgrade", revokesDeferred: 0 },
    ],
  };
  const unknown: PageShown = {
    ...PAGE,
    ...{ gpa: 0x100_2000, state: null, owner: null, sharers: [], version: null, copies: [] },
  };
  const silent = [{ node: 1, why: "its engine is gone" }];
  const text = pagesText({ vm: "demo", pages: [PAGE, busy, unknown], silent });
  expect(text.split("\n").map((line) => line.split(/ {2,}/).map((cell) => cell.trim()))).toEqual([
    ["GPA", "HOME", "STATE", "OWNER", "SHARERS", "VERSION", "MAPPED", "TRANSACTION"],
    ["0x1000000", "1", "shared", "0", "0,2", "12", "0:ro 1:-", "-"],
    [
      ...["0x1001000", "1", "shared", "0", "0,2", "12", "0:rw 1:rw"],
      "upgrade by node 1, phase strict, 2 queued; node 0 keeps it from 1; node 1 waits for upgrade",
    ],
    ["0x1002000", "1", "unknown", "-", "-", "-", "-", "-"],
    ["node 1: its engine is gone"],
    [""],
  ]);
});
