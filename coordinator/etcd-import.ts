// `ssihv cluster import`: leads over an etcd for as long as it takes to bring a coordinator's state
// there, so none of its coordinators does meanwhile, and what it writes is fenced as theirs is. The
// state's file is locked for as long, so its own coordinator does not run either.

import { randomBytes } from "node:crypto";

import { SsihvError } from "../src/base/errors.ts";
import { EtcdClient, type EtcdOptions } from "./etcd-client.ts";
import { Leadership, type Member } from "./etcd-leader.ts";
import { EtcdStore, lastChangeKey } from "./etcd-store.ts";
import { type Brought, IMPORTER, importState } from "./import.ts";
import { SqliteStore, stateFile } from "./sqlite-store.ts";

export interface EtcdImportOptions {
  readonly etcd: EtcdOptions;
  /** Of a coordinator that had its state there; stays as it is. */
  readonly stateFolder: string;
  /** As coordinators have it: an import that is cut bars the next one for so long. */
  readonly leaseSeconds: number;
  /** Lines for the log. */
  say(text: string): void;
}

/** Throws `store_failed`. */
export async function importIntoEtcd(options: EtcdImportOptions): Promise<Brought> {
  const from = new SqliteStore(stateFile(options.stateFolder), "look");
  try {
    return await leading(options, (to, used) => importState(from, to, used));
  } finally {
    from.close();
  }
}

async function leading<T>(
  { etcd, leaseSeconds, say }: EtcdImportOptions,
  act: (store: EtcdStore, used: boolean) => Promise<T>,
): Promise<T> {
  const client = new EtcdClient(etcd);
  const led = await Leadership.campaign({
    ...{ client, prefix: etcd.prefix, leaseSeconds, say },
    member: { api: IMPORTER, id: randomBytes(8).toString("hex") },
  });
  if (!(led instanceof Leadership)) throw ledBy(led, leaseSeconds);
  let lost: string | undefined;
  void led.lost.then((why) => {
    lost = why;
  });
  try {
    const used = (await client.get(lastChangeKey(etcd.prefix))) !== undefined;
    const deposed = () => led.depose("another one leads");
    return await act(new EtcdStore(client, etcd.prefix, led.fence, deposed), used);
  } catch (cause) {
    if (lost === undefined) throw cause;
    throw new SsihvError("store_failed", `the import was cut: ${lost}`, {
      hint: "the same command again goes on where it was cut",
      cause,
    });
  } finally {
    await led.resign();
  }
}

function ledBy(member: Member | "barred" | undefined, leaseSeconds: number): SsihvError {
  const api = typeof member === "object" ? member.api : "somebody";
  const hint =
    api === IMPORTER
      ? `one that was cut ends within ${leaseSeconds} s: then again`
      : "end all coordinators of that etcd first; an import is for one that has no state yet";
  return new SsihvError("store_failed", `${api} leads over this etcd`, { hint });
}
