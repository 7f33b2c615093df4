// What the coordinator keeps for good, as records of its store, and the typed way to them.

import type { Capacity, Ended } from "../src/control/messages.ts";
import type { VmSpec } from "../src/control/vm-spec.ts";
import type { Change, Kind, Store, Stored } from "./store.ts";

export interface HostRecord {
  /** ISO 8601, like all times here. */
  readonly joinedAt: string;
  /** As it said last; absent before its agent first connected. */
  readonly capacity?: Capacity;
  /** With which its agent connected last. */
  readonly certificate?: { readonly expiresAt: string; readonly issuer: string };
}

export interface TokenRecord {
  readonly secret: string;
  /** Only for a host of this name. */
  readonly host?: string;
  /** For the host of that name, which has joined already, to join again. */
  readonly rejoin?: boolean;
  readonly expiresAt: string;
}

/** A host's share of a VM. */
export interface Place {
  readonly node: number;
  readonly host: string;
  readonly cpus: number;
  /** Of the host's memory, all included. */
  readonly memoryBytes: number;
  /** It lends memory and runs no vCPU. */
  readonly memoryOnly: boolean;
}

export interface RunRecord {
  readonly id: string;
  readonly since: string;
  /** Places of all nodes; the first is the lead's. */
  readonly places: readonly Place[];
}

export interface VmRecord {
  readonly spec: VmSpec;
  readonly createdAt: string;
  /** Which ports it has on its hosts: its own among all VMs. */
  readonly slot: number;
  readonly run?: RunRecord;
  /** How the last run ended. */
  readonly last?: Ended & { readonly at: string };
}

/** All of its etcd's records are of a state that was not brought there whole yet. */
export interface ImportRecord {
  readonly begunAt: string;
}

interface Records {
  readonly import: ImportRecord;
  readonly host: HostRecord;
  readonly token: TokenRecord;
  readonly vm: VmRecord;
}

/** The store's own writes are the only ones: what it returns has the type that was put in. */
export class TypedStore {
  private readonly store: Store;

  constructor(store: Store) {
    this.store = store;
  }

  async get<K extends Kind>(kind: K, id: string): Promise<Stored<Records[K]> | undefined> {
    return (await this.store.get(kind, id)) as Stored<Records[K]> | undefined;
  }

  async list<K extends Kind>(kind: K): Promise<readonly Stored<Records[K]>[]> {
    return (await this.store.list(kind)) as readonly Stored<Records[K]>[];
  }

  apply(...changes: readonly Change[]): Promise<boolean> {
    return this.store.apply(changes);
  }
}

export function put<K extends Kind>(
  kind: K,
  id: string,
  value: Records[K],
  ifRevision?: number,
): Change {
  return { kind, id, value, ...(ifRevision !== undefined && { ifRevision }) };
}

export function remove(kind: Kind, id: string, ifRevision?: number): Change {
  return { kind, id, value: undefined, ...(ifRevision !== undefined && { ifRevision }) };
}
