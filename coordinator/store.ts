// Where the coordinator's state lives: small JSON records by kind and id, each with a revision, and
// changes that apply together or not at all. So little, that an etcd can stand behind it as well.
// What a read returns is what the last finished `apply` wrote, also after a crash.

/** `import`: one record while a state is being brought there (import.ts). */
export const KINDS = ["host", "token", "vm", "import"] as const;
export type Kind = (typeof KINDS)[number];

export interface Stored<T = unknown> {
  readonly id: string;
  /** Grows with every change of the record. */
  readonly revision: number;
  readonly value: T;
}

export interface Change {
  readonly kind: Kind;
  readonly id: string;
  /** Undefined removes the record. */
  readonly value: unknown;
  /** The revision that it must have now; 0: there must be none. Absent: whatever it is. */
  readonly ifRevision?: number;
}

export interface Store {
  get(kind: Kind, id: string): Promise<Stored | undefined>;
  /** By id. */
  list(kind: Kind): Promise<readonly Stored[]>;
  /** False, with nothing changed, where a record has another revision than a change asked for. */
  apply(changes: readonly Change[]): Promise<boolean>;
  close(): void;
}
