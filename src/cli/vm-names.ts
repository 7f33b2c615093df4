// Names of VMs as a shell's completion proposes them: those of the coordinator that is found
// without flags, and those of this user on this host. Whoever does not answer soon has none.

import { runningVms } from "../node/admin-client.ts";
import { ApiClient } from "./api-client.ts";

/** A person waits with a finger on the key. */
const LIMIT_MS = 1000;

async function ofCoordinator(): Promise<string[]> {
  const api = await ApiClient.find({});
  return api === undefined ? [] : (await api.vms()).map(({ spec }) => spec.name);
}

async function ofThisHost(): Promise<string[]> {
  return (await runningVms()).vms.map(({ label }) => label);
}

function soon(names: Promise<string[]>): Promise<string[]> {
  // Nobody is there to hear why there are none.
  return Promise.race([names.catch(() => []), Bun.sleep(LIMIT_MS).then((): string[] => [])]);
}

export async function vmNames(partial: string): Promise<string[]> {
  const found = await Promise.all([soon(ofCoordinator()), soon(ofThisHost())]);
  const names = [...new Set(found.flat())].filter((name) => name.startsWith(partial));
  return names.sort();
}
