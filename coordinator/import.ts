// Brings the state of a coordinator into a store that has none, for good. What is there already is
// never changed and nothing that was removed comes back, so an old state can do no harm: either the
// store was never written to, or it holds the same already, or an import into it was cut.
// Invariant: a store that holds a part of a state has the record `import` too, from the change that
// writes the first part to the one that writes the last; nobody leads while it is there.

import { SsihvError } from "../src/base/errors.ts";
import { put, remove, type TokenRecord, TypedStore } from "./records.ts";
import type { Change, Kind, Store } from "./store.ts";

export interface Brought {
  readonly hosts: number;
  readonly vms: number;
  readonly tokens: number;
  /** Of all those records; the others were there. */
  readonly written: number;
}

interface Entry {
  readonly kind: Kind;
  readonly id: string;
  readonly value: unknown;
}

export const IMPORT_ID = "state";
/** In place of the address of a coordinator that leads. */
export const IMPORTER = "an import";

/** etcd takes 128 in a transaction (--max-txn-ops); EtcdStore and the record `import` need some. */
const BATCH_RECORDS = 100;
/** etcd takes requests of 1.5 MiB (--max-request-bytes). */
const BATCH_BYTES = 1 << 20;
/** Of a record in a request: twice its key, and what is around it. */
const RECORD_BYTES = 1024;
const SHOWN = 5;

export function cutImport(): SsihvError {
  const message = "an import into this etcd was cut: its state is not whole";
  return new SsihvError("store_failed", message, {
    hint: "the same ssihv cluster import again goes on where it was cut",
  });
}

/**
 * `used`: something was written to `to` before, also where nothing of it is left.
 * Throws `store_failed`, with nothing written where `to` has a state of its own.
 */
export async function importState(from: Store, to: Store, used: boolean): Promise<Brought> {
  const now = Date.now();
  const [entries, there] = [await entriesOf(from, now), await entriesOf(to, now)];
  const cut = (await new TypedStore(to).get("import", IMPORT_ID)) !== undefined;
  const missing = without(entries, there);
  refuseOther(entries, there, used && !cut ? missing : []);
  const count = (kind: Kind) => entries.filter((entry) => entry.kind === kind).length;
  const counts = { hosts: count("host"), vms: count("vm"), tokens: count("token") };
  for (const changes of changesFor(missing, cut)) {
    if (await to.apply(changes)) continue;
    throw new SsihvError("store_failed", "somebody else writes to this etcd", {
      hint: "keys below --store-prefix are the coordinators' alone",
    });
  }
  return { ...counts, written: missing.length };
}

/** A token that has expired is nobody's state. */
async function entriesOf(store: Store, now: number): Promise<Entry[]> {
  const entries: Entry[] = [];
  for (const kind of ["host", "vm", "token"] as const) {
    for (const { id, value } of await new TypedStore(store).list(kind)) {
      if (kind === "token" && Date.parse((value as TokenRecord).expiresAt) <= now) continue;
      entries.push({ kind, id, value });
    }
  }
  return entries;
}

const keyOf = ({ kind, id }: Entry) => `${kind} ${id}`;

function without(entries: readonly Entry[], others: readonly Entry[]): Entry[] {
  const keys = new Set(others.map(keyOf));
  return entries.filter((entry) => !keys.has(keyOf(entry)));
}

/** `gone`: of the state, and was taken away there. */
function refuseOther(
  entries: readonly Entry[],
  there: readonly Entry[],
  gone: readonly Entry[],
): void {
  const byKey = new Map(entries.map((entry) => [keyOf(entry), entry.value]));
  const differing = there.filter((entry) => {
    return byKey.has(keyOf(entry)) && !Bun.deepEquals(byKey.get(keyOf(entry)), entry.value, true);
  });
  const all = [
    ...differing.map((entry) => `${keyOf(entry)} differs`),
    ...without(there, entries).map((entry) => `${keyOf(entry)} is only there`),
    ...gone.map((entry) => `${keyOf(entry)} is not there any more`),
  ];
  if (all.length === 0) return;
  const more = all.length > SHOWN ? `; ${all.length - SHOWN} more` : "";
  const words = `${all.slice(0, SHOWN).join("; ")}${more}`;
  throw new SsihvError("store_failed", `this etcd has a state of its own: ${words}`, {
    hint: "nothing was written; is --store the right one? Another --store-prefix begins empty",
  });
}

/** Each of them is one change of the store. */
function changesFor(missing: readonly Entry[], cut: boolean): Change[][] {
  const batches = batchesOf(missing);
  if (!cut && batches.length > 1) {
    batches[0]?.push(put("import", IMPORT_ID, { begunAt: new Date().toISOString() }, 0));
  }
  if (cut && batches.length === 0) batches.push([]);
  if (cut || batches.length > 1) batches.at(-1)?.push(remove("import", IMPORT_ID));
  return batches;
}

function batchesOf(entries: readonly Entry[]): Change[][] {
  const batches: Change[][] = [];
  let bytes = BATCH_BYTES;
  for (const { kind, id, value } of entries) {
    const own = Buffer.byteLength(JSON.stringify(value)) + RECORD_BYTES;
    const last = batches.at(-1);
    const change = { kind, id, value, ifRevision: 0 };
    if (last === undefined || last.length === BATCH_RECORDS || bytes + own > BATCH_BYTES) {
      batches.push([change]);
      bytes = own;
    } else {
      last.push(change);
      bytes += own;
    }
  }
  return batches;
}
