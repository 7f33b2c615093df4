import { expect, test } from "bun:test";

import { enums } from "../native/abi.gen.ts";
import type { PageRecord } from "../native/shared-page.ts";
import { PageQueries, pageReport } from "./page-queries.ts";

const { PageAccess, PagePhase, PageRequest, PageState } = enums;

function record(gpa: bigint, more: Partial<PageRecord> = {}): PageRecord {
  return {
    gpa,
    sharers: 0n,
    version: 0,
    queued: 0,
    copy_version: 0,
    revokes_deferred: 0,
    home: 0,
    state: PageState.untouched,
    owner: 0,
    requester: 0,
    request: PageRequest.none,
    phase: PagePhase.none,
    access: PageAccess.invalid,
    waits_for: PageRequest.none,
    ...more,
  };
}

/** A shard that answers when it is told to, as the real one does in a later turn. */
class Shard {
  readonly asked: [gpa: bigint, count: number, sequence: number][] = [];
  /** Sequences that get no answer. */
  readonly deaf = new Set<number>();
  queries: PageQueries | undefined;
  private newest = { sequence: 0, records: [] as PageRecord[] };

  query(gpa: bigint, count: number, sequence: number): void {
    this.asked.push([gpa, count, sequence]);
    if (this.deaf.has(sequence)) return;
    queueMicrotask(() => this.reply(gpa, count, sequence));
  }

  reply(gpa: bigint, count: number, sequence: number): void {
    const records = Array.from({ length: count }, (_, i) => record(gpa + BigInt(i * 4096)));
    this.newest = { sequence, records };
    this.queries?.answered(sequence);
  }

  answer(): { sequence: number; records: PageRecord[] } {
    return this.newest;
  }
}

function shard(patienceMs = 1000): Shard & { queries: PageQueries } {
  const made = new Shard();
  made.queries = new PageQueries(0, made, patienceMs);
  return made as Shard & { queries: PageQueries };
}

test("many pages are asked for a few at a time, and come in order", async () => {
  const { queries, asked } = shard();
  const reports = await queries.ask(0x1000, 130);
  expect(asked.map(([gpa, count]) => [gpa, count])).toEqual([
    [0x1000n, 64],
    [0x41000n, 64],
    [0x81000n, 2],
  ]);
  expect(reports.map(({ gpa }) => gpa)).toEqual(
    Array.from({ length: 130 }, (_, i) => 0x1000 + i * 4096),
  );
});

test("the shard has one question at a time, whoever asks", async () => {
  const made = shard();
  const all = await Promise.all([made.queries.ask(0, 65), made.queries.ask(0x10_0000, 1)]);
  expect(all.map(({ length }) => length)).toEqual([65, 1]);
  expect(made.asked.map(([gpa]) => gpa)).toEqual([0n, 0x40000n, 0x10_0000n]);
});

test("a shard that does not answer is given up; its late answer is nobody's", async () => {
  const made = shard(20);
  made.deaf.add(1);
  const first = made.queries.ask(0, 1);
  const second = made.queries.ask(0x5000, 1);
  await expect(first).rejects.toThrow("did not answer within");
  // Word of the first comes while the second waits for its own.
  made.queries.answered(1);
  expect((await second)[0]?.gpa).toBe(0x5000);
});

test("what the shard refuses is the question's error, and the next has its turn", async () => {
  const made = shard();
  const query = made.query.bind(made);
  made.query = () => {
    throw new Error("busy");
  };
  await expect(made.queries.ask(0, 1)).rejects.toThrow("busy");
  made.query = query;
  expect((await made.queries.ask(0, 1)).length).toBe(1);
});

test("sequences go round without ever being 0", async () => {
  const made = shard();
  for (let i = 0; i < 0x10001; i++) await made.queries.ask(0, 1);
  const sequences = made.asked.map(([, , sequence]) => sequence);
  expect(Math.min(...sequences.slice(0, 10))).toBe(1);
  expect(sequences.slice(-3)).toEqual([0xffff, 1, 2]);
});

test("a record of the home tells entry and transaction, another node's its copy alone", () => {
  const busy = record(0x2000n, {
    home: 1,
    state: PageState.shared,
    owner: 2,
    sharers: (1n << 63n) | 0b101n,
    version: 9,
    request: PageRequest.upgrade,
    requester: 63,
    phase: PagePhase.strict,
    queued: 2,
    access: PageAccess.shared,
    copy_version: 8,
    waits_for: PageRequest.upgrade,
    revokes_deferred: 1,
  });
  const copy = { access: "shared", version: 8, waitsFor: "upgrade", revokesDeferred: 1 } as const;
  expect(pageReport(busy, 0)).toEqual({ gpa: 0x2000, home: 1, copy });
  expect(pageReport(busy, 1)).toEqual({
    gpa: 0x2000,
    home: 1,
    entry: {
      state: "shared",
      owner: 2,
      sharers: [0, 2, 63],
      version: 9,
      transaction: { requester: 63, request: "upgrade", phase: "strict", queued: 2 },
    },
    copy,
  });
  // Nobody owns what nobody touched.
  expect(pageReport(record(0n), 0).entry).toEqual({ state: "untouched", sharers: [], version: 0 });
});
