// `ssihv cluster status|token|remove|..`: the cluster as a whole, through its coordinator.

import { buildCommand, buildRouteMap } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { ApiClient, type ApiFlags } from "./api-client.ts";
import { API_FLAGS, API_HELP, API_STATUSES, jsonFlag } from "./api-flags.ts";
import { applyCommand } from "./cluster-apply.ts";
import { importCommand } from "./cluster-import.ts";
import { hostTable, statusText, vmTable } from "./cluster-tables.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { printable } from "./report.ts";
import { durationFlag } from "./run-options.ts";

interface JsonFlags extends ApiFlags {
  readonly json: boolean;
}

interface TokenFlags extends JsonFlags {
  readonly expires: number;
  readonly rejoin: boolean;
}

async function status(this: CliContext, flags: JsonFlags): Promise<void> {
  const api = await ApiClient.open(flags);
  const [cluster, hosts, vms] = await Promise.all([api.status(), api.hosts(), api.vms()]);
  if (flags.json) {
    this.process.stdout.write(`${JSON.stringify({ ...cluster, hosts, vms })}\n`);
    return;
  }
  const tables = `\n${hostTable(hosts)}${vms.length === 0 ? "" : `\n${vmTable(vms)}`}`;
  this.process.stdout.write(`${statusText(cluster)}${tables}`);
}

async function token(this: CliContext, flags: TokenFlags, host?: string): Promise<void> {
  const seconds = Math.round(flags.expires / 1_000_000);
  if (seconds < 1 || seconds > 604_800) {
    throw new SsihvError("flag_invalid", "--expires: from 1s to a week (10080min)", {
      hint: "for example --expires 60min",
    });
  }
  if (flags.rejoin && host === undefined) {
    throw new SsihvError("flag_invalid", "--rejoin: which host is to join again?", {
      hint: "ssihv cluster token --rejoin HOST; ssihv cluster status lists them",
    });
  }
  const api = await ApiClient.open(flags);
  const made = await api.token(seconds, host, flags.rejoin);
  if (flags.json) {
    this.process.stdout.write(`${JSON.stringify(made)}\n`);
    return;
  }
  this.process.stdout.write(`${made.token}\n`);
  const which = host === undefined ? "one host" : `host ${host}`;
  const join = flags.rejoin ? "join again" : "join";
  const how = flags.rejoin ? "ssihv node --join TOKEN" : "ssihv install node --join TOKEN";
  const words = `lets ${which} ${join} until ${made.expiresAt}: ${how}`;
  this.process.stderr.write(`ssihv: ${printable(words)}\n`);
}

async function removeHost(this: CliContext, flags: ApiFlags, host: string): Promise<void> {
  const api = await ApiClient.open(flags);
  await api.removeHost(host);
}

const statusCommand = buildCommand<JsonFlags, [], CliContext>({
  func: status,
  docs: {
    brief: "hosts and VMs of the cluster, and what is free",
    fullDescription: `Shows the coordinator, each host (silent: its agent is not heard; why is in
NOTE) with what it gives and what VMs were promised, and each VM. CERT is when the host's
certificate ends, which it renews by itself; "(old CA)" is one that a host has not yet replaced
since ssihv certs rotate --ca.

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    flags: { ...API_FLAGS, json: jsonFlag("one JSON object: {hosts: [..], vms: [..], ..}") },
  },
});

const tokenCommand = buildCommand<TokenFlags, [host?: string], CliContext>({
  func: token,
  docs: {
    brief: "make a token that lets one host join the cluster, once",
    fullDescription: `Prints a token on stdout. Who has it before it is used can join in your host's
place: bring it there by a safe way, and name the host where you can.

A host whose certificate has ended (it was off for long) or is lost joins again under its name with
--rejoin: it stays the host it was, and its older certificates are worth nothing from then on.

Examples:
  ssihv cluster token host-b
  ssihv cluster token --rejoin host-b
  ssihv cluster token --expires 60min | ssh host-b 'read t; ssihv node --join "$t"'

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        { parse: text, optional: true, brief: "only for a host of this name", placeholder: "HOST" },
      ],
    },
    flags: {
      ...API_FLAGS,
      expires: {
        kind: "parsed",
        parse: durationFlag("--expires"),
        default: "15min",
        brief: "how long it can be used",
        placeholder: "TIME",
      },
      rejoin: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "for a host that has joined before, and cannot connect any more",
      },
      json: jsonFlag("one JSON object: {token, id, host, expiresAt}"),
    },
  },
});

const removeCommand = buildCommand<ApiFlags, [host: string], CliContext>({
  func: removeHost,
  docs: {
    brief: "take a host out of the cluster",
    fullDescription: `The host's agent is let in no more. What runs there is not touched; VMs that
it leads are listed as failed, since nothing more will be heard of them.

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [{ parse: text, brief: "the host", placeholder: "HOST" }],
    },
    flags: API_FLAGS,
  },
});

type Command = "status" | "apply" | "token" | "remove" | "import";

export const clusterCommands = buildRouteMap<Command, CliContext>({
  routes: {
    status: statusCommand,
    apply: applyCommand,
    token: tokenCommand,
    remove: removeCommand,
    import: importCommand,
  },
  docs: { brief: "the cluster: its hosts and VMs, letting hosts in and out" },
});
