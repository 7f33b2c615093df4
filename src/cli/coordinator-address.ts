// How a command reaches the coordinator: what flags and environment say, else the local socket.
// Which of the three there is decides what `ssihv vm list` lists.

import { existsSync } from "node:fs";
import { join } from "node:path";

import { adminFolders, foldersToSearch } from "../node/admin-folder.ts";
import { type HostPort, parseTarget } from "../node/join-address.ts";

/** Not .sock, as the sockets of VMs beside it are. */
export const SOCKET_NAME = "coordinator.api";

export type CoordinatorAddress =
  | { readonly kind: "unix"; readonly path: string }
  | {
      readonly kind: "tls";
      readonly target: HostPort;
      /** One of them leads, the others stand by. */
      readonly others?: readonly HostPort[];
    };

/** Where a coordinator of this user makes its socket. */
export function coordinatorSocket(): string {
  const [folder] = adminFolders();
  return join(folder?.path ?? "/run/ssihv", SOCKET_NAME);
}

/** `--coordinator` and $SSIHV_COORDINATOR: HOST:PORT, several of them, or the path of a socket. */
export function parseCoordinator(value: string): CoordinatorAddress {
  if (value.startsWith("/")) return { kind: "unix", path: value };
  const named = value.split(",").map((each) => parseTarget(each.trim(), "--coordinator"));
  const [target, ...others] = named as [HostPort, ...HostPort[]];
  return { kind: "tls", target, ...(others.length > 0 && { others }) };
}

/** Undefined: no coordinator was named, and none is on this host. */
export function findCoordinator(
  flag: CoordinatorAddress | undefined,
  env: Readonly<Record<string, string | undefined>> = process.env,
): CoordinatorAddress | undefined {
  if (flag !== undefined) return flag;
  const named = env["SSIHV_COORDINATOR"] ?? "";
  if (named !== "") return parseCoordinator(named);
  const path = foldersToSearch(env)
    .map((folder) => join(folder.path, SOCKET_NAME))
    .find((candidate) => existsSync(candidate));
  return path === undefined ? undefined : { kind: "unix", path };
}
