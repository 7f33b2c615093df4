// The store in one SQLite file: write-ahead log, every change synced before it is told as done.
// The file is locked for as long as it is open: two coordinators cannot share a state.

import { Database } from "bun:sqlite";
import { chmodSync, existsSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";

import { SsihvError } from "../src/base/errors.ts";
import type { Change, Kind, Store, Stored } from "./store.ts";

const SCHEMA_VERSION = 1;

export function stateFile(stateFolder: string): string {
  return join(stateFolder, "state.sqlite");
}

interface Row {
  readonly id: string;
  readonly revision: number;
  readonly value: string;
}

/** Rolls the transaction back. */
class Conflict extends Error {}

export class SqliteStore implements Store {
  private readonly database: Database;

  /** `look`: one that is there, to be read only. Throws `store_failed`. */
  constructor(path: string, use: "own" | "look" = "own") {
    if (use === "look") {
      this.database = looked(path);
      return;
    }
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      this.database = new Database(path, { create: true, strict: true });
      // Tokens are secrets while they are valid.
      chmodSync(path, 0o600);
      this.prepare();
    } catch (cause) {
      throw failure(path, cause);
    }
  }

  async get(kind: Kind, id: string): Promise<Stored | undefined> {
    const row = this.database
      .query<Row, [string, string]>("SELECT id, revision, value FROM record WHERE kind=? AND id=?")
      .get(kind, id);
    return row === null ? undefined : stored(row);
  }

  async list(kind: Kind): Promise<readonly Stored[]> {
    return this.database
      .query<Row, [string]>("SELECT id, revision, value FROM record WHERE kind=? ORDER BY id")
      .all(kind)
      .map(stored);
  }

  async apply(changes: readonly Change[]): Promise<boolean> {
    try {
      this.database.transaction(() => {
        for (const change of changes) this.change(change);
      })();
      return true;
    } catch (error) {
      if (error instanceof Conflict) return false;
      throw failure(this.database.filename, error);
    }
  }

  close(): void {
    this.database.close();
  }

  private prepare(): void {
    // Held from the first write on (sqlite.org/pragma.html#pragma_locking_mode), and a second
    // process fails at once instead of waiting.
    this.database.run("PRAGMA locking_mode = EXCLUSIVE");
    this.database.run("PRAGMA journal_mode = WAL");
    this.database.run("PRAGMA synchronous = FULL");
    const version = versionOf(this.database);
    if (version !== 0 && version !== SCHEMA_VERSION) throw unknownVersion(version);
    this.database.transaction(() => {
      this.database.run(`CREATE TABLE IF NOT EXISTS record (
        kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID`);
      this.database.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
    })();
  }

  private change({ kind, id, value, ifRevision }: Change): void {
    const revision =
      this.database
        .query<{ revision: number }, [string, string]>(
          "SELECT revision FROM record WHERE kind=? AND id=?",
        )
        .get(kind, id)?.revision ?? 0;
    if (ifRevision !== undefined && ifRevision !== revision) throw new Conflict();
    if (value === undefined) {
      this.database.run("DELETE FROM record WHERE kind=? AND id=?", [kind, id]);
      return;
    }
    this.database.run("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", [
      kind,
      id,
      revision + 1,
      JSON.stringify(value),
    ]);
  }
}

/**
 * Locked as by its coordinator, and not changed. Not opened as read-only: SQLite would leave files
 * beside it, and take no lock. One whose coordinator was killed gets what its log holds, as when
 * that coordinator starts again.
 */
function looked(path: string): Database {
  if (!existsSync(path)) {
    throw new SsihvError("store_failed", `there is no ${path}`, {
      hint: "--state names the folder of a coordinator that ran without --store",
    });
  }
  let database: Database | undefined;
  try {
    database = new Database(path, { readwrite: true, create: false, strict: true });
    database.run("PRAGMA locking_mode = EXCLUSIVE");
    database.run("PRAGMA query_only = ON");
    const version = versionOf(database);
    if (version !== SCHEMA_VERSION) throw unknownVersion(version);
    return database;
  } catch (cause) {
    database?.close();
    throw failure(path, cause);
  }
}

function versionOf(database: Database): number {
  const [row] = database.query<{ user_version: number }, []>("PRAGMA user_version").all();
  return row?.user_version ?? 0;
}

function unknownVersion(version: number): Error {
  return new Error(`it has version ${version}, this ssihv knows ${SCHEMA_VERSION}`);
}

function stored({ id, revision, value }: Row): Stored {
  return { id, revision, value: JSON.parse(value) };
}

function failure(path: string, cause: unknown): SsihvError {
  const busy = cause instanceof Error && /locked|busy/i.test(cause.message);
  const message = busy ? `${path} is in use` : `${path} cannot be used as the state`;
  return new SsihvError("store_failed", message, {
    hint: busy
      ? "end the coordinator that runs with this --state folder first; VMs go on"
      : "is the disk full, and the folder this user's?",
    cause,
  });
}
