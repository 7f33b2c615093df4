// The store in an etcd, for the coordinator that leads: a record is a key, its revision the key's
// mod_revision. Every change is one transaction that also compares the leader's key, so one that
// was deposed can write nothing; and the number of the last change, so that asking again after an
// answer that was lost carries it out once. One change at a time.

import { randomBytes } from "node:crypto";

import { SsihvError } from "../src/base/errors.ts";
import {
  type Compare,
  type EtcdClient,
  EtcdSilent,
  type KeyValue,
  type Operation,
} from "./etcd-client.ts";
import type { Change, Kind, Store, Stored } from "./store.ts";

/** The key that says who leads, as this coordinator put it there. */
export interface Fence {
  readonly key: string;
  readonly createRevision: number;
}

/** An etcd that is asked again knows by then what became of the first time. */
const TRIES = 3;
const TRY_PAUSE_MS = 300;

export class EtcdStore implements Store {
  private readonly client: EtcdClient;
  private readonly prefix: string;
  private readonly fence: Fence;
  private readonly onDeposed: () => void;
  /** What the last change left there; undefined: not read yet. */
  private last: Pick<KeyValue, "modRevision"> | undefined;
  private turn: Promise<unknown> = Promise.resolve();
  private closed = false;

  /** `onDeposed`: another coordinator leads, or none. */
  constructor(client: EtcdClient, prefix: string, fence: Fence, onDeposed: () => void) {
    this.client = client;
    this.prefix = prefix;
    this.fence = fence;
    this.onDeposed = onDeposed;
  }

  async get(kind: Kind, id: string): Promise<Stored | undefined> {
    const found = await this.client.get(this.keyOf(kind, id));
    return found && this.stored(kind, found);
  }

  async list(kind: Kind): Promise<readonly Stored[]> {
    const found = await this.client.list(this.keyOf(kind, ""));
    return found.map((each) => this.stored(kind, each));
  }

  apply(changes: readonly Change[]): Promise<boolean> {
    const done = this.turn.then(() => this.write(changes));
    this.turn = done.catch(() => undefined);
    return done;
  }

  close(): void {
    this.closed = true;
  }

  private async write(changes: readonly Change[]): Promise<boolean> {
    const mark = randomBytes(16).toString("hex");
    const lastKey = lastChangeKey(this.prefix);
    const ours: Operation[] = [{ put: lastKey, value: mark }];
    const operations = ours.concat(changes.map((change) => this.operation(change)));
    for (let tries = 1; ; tries++) {
      if (this.closed) throw deposed();
      try {
        this.last ??= (await this.client.get(lastKey)) ?? { modRevision: 0 };
        const { succeeded, read, revision } = await this.client.transact(
          [...this.compares(lastKey, this.last), ...changes.flatMap((each) => this.demands(each))],
          operations,
          [{ get: this.fence.key }, { get: lastKey }],
        );
        if (succeeded) {
          this.last = { modRevision: revision };
          return true;
        }
        const [leader, last] = read;
        if (leader?.createRevision !== this.fence.createRevision) {
          this.onDeposed();
          throw deposed();
        }
        const before = this.last.modRevision;
        this.last = last ?? { modRevision: 0 };
        // The first time was carried out, though its answer was lost.
        if (last?.value === mark) return true;
        if (this.last.modRevision === before) return false;
        // An earlier change whose answer never came was carried out after all: on top of that.
        if (tries >= TRIES) throw meddled(lastKey);
      } catch (error) {
        if (!(error instanceof EtcdSilent) || tries >= TRIES) throw error;
        await Bun.sleep(TRY_PAUSE_MS);
      }
    }
  }

  private compares(lastKey: string, { modRevision }: Pick<KeyValue, "modRevision">): Compare[] {
    const { key, createRevision } = this.fence;
    return [
      { key, target: "CREATE", revision: createRevision },
      { key: lastKey, target: "MOD", revision: modRevision },
    ];
  }

  private demands({ kind, id, ifRevision }: Change): Compare[] {
    if (ifRevision === undefined) return [];
    return [{ key: this.keyOf(kind, id), target: "MOD", revision: ifRevision }];
  }

  private operation({ kind, id, value }: Change): Operation {
    const key = this.keyOf(kind, id);
    return value === undefined ? { remove: key } : { put: key, value: JSON.stringify(value) };
  }

  private keyOf(kind: Kind, id: string): string {
    return recordKey(this.prefix, kind, id);
  }

  private stored(kind: Kind, { key, value, modRevision }: KeyValue): Stored {
    const id = key.slice(this.keyOf(kind, "").length);
    return { id, revision: modRevision, value: JSON.parse(value) };
  }
}

export function recordKey(prefix: string, kind: Kind, id: string): string {
  return `${prefix}/record/${kind}/${id}`;
}

/** Absent: nothing was ever written there. */
export function lastChangeKey(prefix: string): string {
  return `${prefix}/last-change`;
}

function meddled(lastKey: string): SsihvError {
  return new SsihvError("store_failed", `somebody else writes to ${lastKey} in etcd`, {
    hint: "keys below --store-prefix are the coordinators' alone",
  });
}

function deposed(): SsihvError {
  return new SsihvError("store_failed", "this coordinator does not lead any more", {
    hint: "ask again: another has taken over, or is about to",
  });
}
