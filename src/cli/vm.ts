// `ssihv vm`: the VMs of the cluster through its coordinator, or those of this user that run on
// this host through the admin sockets of their commands: with --local, or without a coordinator.

import { buildCommand, buildRouteMap } from "@stricli/core";

import { messageOf, SsihvError } from "../base/errors.ts";
import { askPages, askShow, findVm, type RunningVm, runningVms } from "../node/admin-client.ts";
import { ADMIN_FOLDER_HELP } from "../node/admin-folder.ts";
import { PAGES_AT_ONCE_MAX, type PagesShown } from "../node/vm-view.ts";
import type { ApiClient, Vm } from "./api-client.ts";
import { API_FLAGS, jsonFlag } from "./api-flags.ts";
import { vmTable, vmText } from "./cluster-tables.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { printable } from "./report.ts";
import { wholeNumber } from "./run-options.ts";
import { balloonCommand } from "./vm-balloon.ts";
import { consoleCommand } from "./vm-console.ts";
import { vmNames } from "./vm-names.ts";
import { createCommand, destroyCommand, startCommand, stopCommand } from "./vm-orders.ts";
import { listTable, nodesText, pagesText, showText } from "./vm-tables.ts";
import { ask, LOCAL, type LookFlags, nameOf, WHERE_HELP } from "./where.ts";

interface PagesFlags extends LookFlags {
  readonly vm?: string;
  readonly gpa?: number;
  readonly count: number;
}

const EXIT_STATUSES = `Exit status: 0 answered, 2 wrong flags, no such VM or no such address,
10 the VM or the coordinator did not answer.`;

/** A guest-physical address: 0x and hexadecimal digits, or a decimal number. */
export function gpaFlag(value: string): number {
  const known = /^(0x[0-9a-f]{1,14}|\d{1,16})$/i.test(value);
  const gpa = known ? Number(value) : Number.NaN;
  if (Number.isSafeInteger(gpa)) return gpa;
  throw new SsihvError("flag_invalid", `--gpa: "${value.slice(0, 40)}" is not an address`, {
    hint: "for example --gpa 0x1000000",
  });
}

function listJson({ path, label, listing, silent }: RunningVm): object {
  const { name, ...rest } = listing ?? { name: label.replace(/\/\d+$/, "") };
  return { name: label, vm: name, ...rest, socket: path, silent };
}

async function list(this: CliContext, flags: LookFlags): Promise<void> {
  const out = await ask(
    this,
    flags,
    async (api) => {
      const vms = await api.vms();
      return flags.json ? `${JSON.stringify(vms)}\n` : vmTable(vms);
    },
    async () => {
      const { vms, refused } = await runningVms();
      for (const why of refused)
        this.process.stderr.write(`ssihv: not looked into ${printable(why)}\n`);
      return flags.json ? `${JSON.stringify(vms.map(listJson))}\n` : listTable(vms);
    },
  );
  this.process.stdout.write(out);
}

const RUNS: ReadonlySet<Vm["state"]> = new Set(["running", "paused", "stopping"]);

async function showCluster(api: ApiClient, name: string | undefined, json: boolean) {
  const vm = await api.vm(await nameOf(api, name));
  let engines = null;
  let silent = null;
  try {
    if (RUNS.has(vm.state)) engines = await api.engines(vm.name);
  } catch (error) {
    // It may have ended just now, or its host gone: what the coordinator knows is still true.
    silent = messageOf(error);
  }
  if (json) return `${JSON.stringify({ ...vm, engines, silent })}\n`;
  // The lead calls its own host "this": here that would be another.
  const hostOf = new Map(vm.places.map(({ node, host }) => [node, host]));
  const nodes = engines?.nodes.map((each) => ({ ...each, host: hostOf.get(each.node) ?? null }));
  const numbers = nodes === undefined ? "" : `\n${nodesText(nodes)}`;
  return `${vmText(vm)}${numbers}${silent === null ? "" : `\n${printable(silent)}\n`}`;
}

async function show(this: CliContext, flags: LookFlags, name?: string): Promise<void> {
  const out = await ask(
    this,
    flags,
    (api) => showCluster(api, name, flags.json),
    async () => {
      const vm = await findVm(name);
      const shown = await askShow(vm);
      return flags.json ? `${JSON.stringify(shown)}\n` : showText(vm.label, shown);
    },
  );
  this.process.stdout.write(out);
}

async function pages(this: CliContext, flags: PagesFlags): Promise<void> {
  const { gpa, count, vm, json } = flags;
  if (gpa === undefined) {
    throw new SsihvError("flag_invalid", "--gpa is missing: which page?", {
      hint: "ssihv vm pages --gpa 0x1000000 --count 4",
    });
  }
  const found = await ask<PagesShown>(
    this,
    flags,
    async (api) => api.pages(await nameOf(api, vm), gpa, count),
    async () => askPages(await findVm(vm), gpa, count),
  );
  this.process.stdout.write(json ? `${JSON.stringify(found)}\n` : pagesText(found));
}

const listCommand = buildCommand<LookFlags, [], CliContext>({
  func: list,
  docs: {
    brief: "the VMs of the cluster, or those that run on this host",
    fullDescription: `STATE is stopped, failed (ssihv vm show tells why), waiting (for its hosts),
starting, running, paused, stopping, or unknown: the agent of its first host is not heard.

${WHERE_HELP}
Then nodes of VMs that this host joined are listed, too (NAME/NODE).

${ADMIN_FOLDER_HELP}

Examples:
  ssihv vm list
  ssihv vm list --json | jq -r '.[] | select(.state == "running") | .name'

With --local --json, "state" is missing and "silent" tells why where a command did not answer.

${EXIT_STATUSES}`,
  },
  parameters: {
    flags: {
      ...{ ...API_FLAGS, local: LOCAL },
      json: jsonFlag("one JSON array: [{name, state, ..}]"),
    },
  },
});

const showCommand = buildCommand<LookFlags, [name?: string], CliContext>({
  func: show,
  docs: {
    brief: "state and numbers of a VM and its nodes, as of now",
    fullDescription: `Asks every engine of the VM for its numbers. OLDEST-FAULT-US (in --json
.stats.oldest_fault_us) is the age of the oldest fault in flight on a node, 0 when there is
none: when a guest hangs, the node where it grows is where to look. kill -USR1 the VM's command
then: its engines tell on stderr what is open. .stats.hotBlocks are the blocks of guest memory with
the most remote faults of a node since its engine started.

Examples:
  ssihv vm show                                   the only one that runs
  ssihv vm show demo
  ssihv vm show demo --json | jq '.engines.nodes[].stats.oldest_fault_us'
  ssihv vm show demo --local --json | jq '.nodes[].stats.oldest_fault_us'

${WHERE_HELP}

${EXIT_STATUSES}`,
    customUsage: ["[NAME] [--json]"],
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        {
          parse: text,
          optional: true,
          brief: "the VM; not needed when only one runs",
          placeholder: "NAME",
          proposeCompletions: vmNames,
        },
      ],
    },
    flags: {
      ...{ ...API_FLAGS, local: LOCAL },
      json: jsonFlag("one JSON object: {name, state, places, last, engines: {nodes, ..}, ..}"),
    },
  },
});

const pagesCommand = buildCommand<PagesFlags, [], CliContext>({
  func: pages,
  docs: {
    brief: "where pages of a VM are: home, owner, sharers, version, what is under way",
    fullDescription: `Asks a page's home for its entry, and every node how it has the page.

HOME         the node that keeps the page's entry
STATE        untouched (nobody has it, it is zeroes), shared (read-only copies), exclusive (one
             writable copy), replicated (page table, writable everywhere)
OWNER        exclusive: who has it; shared: who wrote it last
SHARERS      nodes with a read-only copy
VERSION      grows whenever another node gets it for writing
MAPPED       by node: rw writable, ro read-only, - not there
TRANSACTION  what is under way, for whom, and who waits

The guest runs on meanwhile: the nodes' answers are not of one instant.

Examples:
  ssihv vm pages --gpa 0x1000000
  ssihv vm pages --vm demo --gpa 0x8000000 --count 512 --json | jq '.pages[] | select(.transaction)'

${WHERE_HELP}

${EXIT_STATUSES}`,
    customUsage: ["--gpa ADDRESS [--vm NAME] [--count N] [--json]"],
  },
  parameters: {
    flags: {
      ...{ ...API_FLAGS, local: LOCAL },
      gpa: {
        kind: "parsed",
        parse: gpaFlag,
        optional: true,
        brief: "guest-physical address in the first page",
        placeholder: "ADDRESS",
      },
      count: {
        kind: "parsed",
        parse: wholeNumber("--count", 1, PAGES_AT_ONCE_MAX),
        default: "1",
        brief: "pages from there on, of 4096 bytes each",
        placeholder: "N",
      },
      vm: {
        kind: "parsed",
        parse: text,
        optional: true,
        brief: "the VM; not needed when only one runs",
        placeholder: "NAME",
      },
      json: jsonFlag("one JSON object: {vm, pages: [{gpa, home, state, owner, ..}], silent}"),
    },
  },
});

type VmCommand =
  | ("create" | "list" | "show" | "start" | "stop" | "destroy")
  | ("console" | "pages" | "balloon");

export const vmCommands = buildRouteMap<VmCommand, CliContext>({
  routes: {
    create: createCommand,
    list: listCommand,
    show: showCommand,
    start: startCommand,
    stop: stopCommand,
    destroy: destroyCommand,
    console: consoleCommand,
    pages: pagesCommand,
    balloon: balloonCommand,
  },
  docs: { brief: "VMs: make, start, stop and look at them, their consoles, their pages" },
});
