// Where a command that looks at VMs looks: it asks the coordinator where there is one, else, or
// with --local, the commands that run VMs of this user on this host.

import { SsihvError } from "../base/errors.ts";
import { ApiClient, type ApiFlags } from "./api-client.ts";
import { API_HELP } from "./api-flags.ts";
import type { CliContext } from "./context.ts";
import { printable } from "./report.ts";

export interface WhereFlags extends ApiFlags {
  readonly local: boolean;
}

export interface LookFlags extends WhereFlags {
  readonly json: boolean;
}

export const WHERE_HELP = `${API_HELP}
--local, or where there is no coordinator: the VMs of this user on this host, without one.`;

export const LOCAL = {
  kind: "boolean",
  default: false,
  withNegated: false,
  brief: "only this host, without the coordinator",
} as const;

/** Asks the coordinator where there is one, else this host. */
export async function ask<T>(
  context: CliContext,
  flags: WhereFlags,
  cluster: (api: ApiClient) => Promise<T>,
  local: () => Promise<T>,
): Promise<T> {
  const api = flags.local ? undefined : await ApiClient.find(flags);
  if (api === undefined) return await local();
  try {
    return await cluster(api);
  } catch (error) {
    // One that was asked for by name is not to be replaced by something else.
    const named =
      flags.coordinator !== undefined || (process.env["SSIHV_COORDINATOR"] ?? "") !== "";
    const away = error instanceof SsihvError && error.code === "coordinator_unreachable";
    if (named || !away) throw error;
    const words = `${error.message}; this is what runs on this host`;
    context.process.stderr.write(`ssihv: ${printable(words)}\n`);
    return await local();
  }
}

/** The name, or that of the only VM there is. */
export async function nameOf(api: ApiClient, name: string | undefined): Promise<string> {
  if (name !== undefined) return name;
  const names = (await api.vms()).map((vm) => vm.name);
  const [only, another] = names;
  if (only !== undefined && another === undefined) return only;
  const message = only === undefined ? "there is no VM" : "there is more than one VM";
  throw new SsihvError("vm_unknown", message, {
    hint: only === undefined ? "ssihv vm create -f FILE" : `name one: ${names.join(", ")}`,
  });
}
