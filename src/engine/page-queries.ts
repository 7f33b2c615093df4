// Questions about pages, one after another: the shard takes one at a time, about a few pages, and
// its answer comes as an event. What it says of each page in words, node numbers and plain numbers.

import { SsihvError } from "../base/errors.ts";
import { constants, enums } from "../native/abi.gen.ts";
import type { PageRecord } from "../native/shared-page.ts";
import type { PageCopy, PageEntry, PageReport, PageTransaction } from "./messages.ts";

const PAGE_BYTES = 4096;
/** A shard that is alive answers in its next turn. */
const PATIENCE_MS = 1500;
/** Sequences are 16 bits, and 0 is none. */
const SEQUENCES = 0xffff;

export interface PageSource {
  query(gpa: bigint, count: number, sequence: number): void;
  answer(): { readonly sequence: number; readonly records: readonly PageRecord[] };
}

export class PageQueries {
  private readonly node: number;
  private readonly source: PageSource;
  private readonly patienceMs: number;
  private sequence = 0;
  private waiting: { sequence: number; done: (records: readonly PageRecord[]) => void } | undefined;
  private last: Promise<unknown> = Promise.resolve();

  constructor(node: number, source: PageSource, patienceMs = PATIENCE_MS) {
    this.node = node;
    this.source = source;
    this.patienceMs = patienceMs;
  }

  /** All of them in RAM without a hole between. */
  ask(gpa: number, count: number): Promise<PageReport[]> {
    const mine = this.last.then(() => this.askAll(gpa, count));
    // The next one's turn comes also when this one failed.
    this.last = mine.catch(() => undefined);
    return mine;
  }

  /** Event `pages_answered`. */
  answered(sequence: number): void {
    // One that was given up before.
    if (this.waiting?.sequence !== sequence) return;
    const { sequence: newest, records } = this.source.answer();
    if (newest === sequence) this.waiting.done(records);
  }

  private async askAll(gpa: number, count: number): Promise<PageReport[]> {
    const reports: PageReport[] = [];
    while (reports.length < count) {
      const some = Math.min(count - reports.length, constants.page_records_max);
      const records = await this.askSome(gpa + reports.length * PAGE_BYTES, some);
      for (const record of records) reports.push(pageReport(record, this.node));
    }
    return reports;
  }

  private async askSome(gpa: number, count: number): Promise<readonly PageRecord[]> {
    this.sequence = (this.sequence % SEQUENCES) + 1;
    const answer = Promise.withResolvers<readonly PageRecord[]>();
    this.waiting = { sequence: this.sequence, done: answer.resolve };
    const timer = setTimeout(() => answer.reject(silent(this.patienceMs)), this.patienceMs);
    try {
      this.source.query(BigInt(gpa), count, this.sequence);
      return await answer.promise;
    } finally {
      clearTimeout(timer);
      this.waiting = undefined;
    }
  }
}

function silent(ms: number): SsihvError {
  const seconds = (ms / 1000).toFixed(1);
  return new SsihvError("vm_silent", `its shard did not answer within ${seconds} s`, {
    hint: "is the VM still starting? kill -USR1 the command that runs it: it tells what is open",
  });
}

function nameOf<E extends Record<string, number>>(names: E, value: number): keyof E & string {
  const found = Object.keys(names).find((name) => names[name] === value);
  if (found === undefined) throw new Error(`value ${value} has no name in abi.gen.ts`);
  return found;
}

/** A record of node `node`'s shard. */
export function pageReport(record: PageRecord, node: number): PageReport {
  const { gpa, home } = record;
  const copy: PageCopy = {
    access: nameOf(enums.PageAccess, record.access),
    version: record.copy_version,
    ...waitsFor(record),
    revokesDeferred: record.revokes_deferred,
  };
  return { gpa: Number(gpa), home, ...(home === node && { entry: entryOf(record) }), copy };
}

function waitsFor({ waits_for }: PageRecord): Pick<PageCopy, "waitsFor"> {
  const request = nameOf(enums.PageRequest, waits_for);
  return request === "none" ? {} : { waitsFor: request };
}

function entryOf(record: PageRecord): PageEntry {
  const state = nameOf(enums.PageState, record.state);
  const transaction = transactionOf(record);
  return {
    state,
    ...((state === "exclusive" || state === "shared") && { owner: record.owner }),
    sharers: nodesOf(record.sharers),
    version: record.version,
    ...(transaction !== undefined && { transaction }),
  };
}

function transactionOf(record: PageRecord): PageTransaction | undefined {
  const request = nameOf(enums.PageRequest, record.request);
  const phase = nameOf(enums.PagePhase, record.phase);
  if (request === "none" || phase === "none") return undefined;
  return { requester: record.requester, request, phase, queued: record.queued };
}

/** Numbers of the bits that are set. */
function nodesOf(set: bigint): number[] {
  const nodes: number[] = [];
  for (let node = 0; set >> BigInt(node) !== 0n; node++) {
    if ((set >> BigInt(node)) & 1n) nodes.push(node);
  }
  return nodes;
}
