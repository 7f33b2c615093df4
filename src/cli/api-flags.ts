// The flags of every command that talks to the coordinator.

import type { FlagParametersForType } from "@stricli/core";

import type { ApiFlags } from "./api-client.ts";
import type { CliContext } from "./context.ts";
import { parseCoordinator } from "./coordinator-address.ts";
import { path } from "./flags.ts";

export const API_FLAGS: FlagParametersForType<ApiFlags, CliContext> = {
  coordinator: {
    kind: "parsed",
    parse: parseCoordinator,
    optional: true,
    brief: "HOST:PORT,.. or socket [$SSIHV_COORDINATOR, or the one on this host]",
    placeholder: "WHERE",
  },
  cert: {
    kind: "parsed",
    parse: path("--cert"),
    optional: true,
    brief: "certificate, with ca.pem beside it [$SSIHV_CERT, or admin.pem of ssihv certs]",
    placeholder: "FILE",
  },
};

export const API_HELP = `Asks the coordinator: --coordinator, else $SSIHV_COORDINATOR, else the one
on this host, over a socket that only its user can open. From another host it takes a certificate
(--cert, $SSIHV_CERT). Of several, with commas between, the one that leads is asked.`;

export const API_STATUSES = `Exit status: 0 done, 2 refused (wrong flags, no such VM, no room),
10 the coordinator or an agent did not answer, or the VM failed.`;

export function jsonFlag(brief: string) {
  return { kind: "boolean", default: false, withNegated: false, brief } as const;
}
