// One agent per state folder at a time: two with one certificate would take each other's place at
// the coordinator for ever. SQLite's lock on a file there, which the kernel frees when the process
// ends, however it ends.

import { Database } from "bun:sqlite";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";

const FILE = "lock";

/** Held until the returned function is called, or this process ends. */
export function onlyOne(folder: string): () => void {
  const lock = new Database(join(folder, FILE), { create: true, readwrite: true });
  try {
    // Nothing is ever written: no journal is to lie beside it.
    lock.run("PRAGMA journal_mode = MEMORY");
    lock.run("BEGIN EXCLUSIVE");
    return () => lock.close();
  } catch (cause) {
    lock.close();
    throw new SsihvError("name_taken", `an agent with the state in ${folder} runs already`, {
      hint: "end that one first, or name another --state",
      cause,
    });
  }
}
