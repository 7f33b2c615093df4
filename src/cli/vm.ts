// `ssihv vm list|show|pages`: looks at the VMs of this user that run here, through the admin
// sockets of their commands.

import { buildCommand, buildRouteMap, type FlagParametersForType } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { askPages, askShow, findVm, type RunningVm, runningVms } from "../node/admin-client.ts";
import { ADMIN_FOLDER_HELP } from "../node/admin-folder.ts";
import { PAGES_AT_ONCE_MAX } from "../node/vm-view.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { printable } from "./report.ts";
import { wholeNumber } from "./run-options.ts";
import { listTable, pagesText, showText } from "./vm-tables.ts";

interface JsonFlag {
  readonly json: boolean;
}

interface PagesFlags extends JsonFlag {
  readonly vm?: string;
  readonly gpa?: number;
  readonly count: number;
}

const EXIT_STATUSES = `Exit status: 0 answered, 2 wrong flags, no such VM or no such address,
10 the VM did not answer.`;

function jsonFlag(brief: string): FlagParametersForType<JsonFlag, CliContext>["json"] {
  return { kind: "boolean", default: false, withNegated: false, brief };
}

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

async function list(this: CliContext, { json }: JsonFlag): Promise<void> {
  const { vms, refused } = await runningVms();
  for (const why of refused)
    this.process.stderr.write(`ssihv: not looked into ${printable(why)}\n`);
  this.process.stdout.write(json ? `${JSON.stringify(vms.map(listJson))}\n` : listTable(vms));
}

async function show(this: CliContext, { json }: JsonFlag, name?: string): Promise<void> {
  const vm = await findVm(name);
  const shown = await askShow(vm);
  this.process.stdout.write(json ? `${JSON.stringify(shown)}\n` : showText(vm.label, shown));
}

async function pages(this: CliContext, { json, vm, gpa, count }: PagesFlags): Promise<void> {
  if (gpa === undefined) {
    throw new SsihvError("flag_invalid", "--gpa is missing: which page?", {
      hint: "ssihv vm pages --gpa 0x1000000 --count 4",
    });
  }
  const found = await askPages(await findVm(vm), gpa, count);
  this.process.stdout.write(json ? `${JSON.stringify(found)}\n` : pagesText(found));
}

const listCommand = buildCommand<JsonFlag, [], CliContext>({
  func: list,
  docs: {
    brief: "the VMs of this user that run on this host",
    fullDescription: `Lists VMs, and nodes of VMs that this host joined (NAME/NODE).

${ADMIN_FOLDER_HELP}

Examples:
  ssihv vm list
  ssihv vm list --json | jq -r '.[] | select(.state == "running") | .name'

In --json, "state" is missing and "silent" tells why where a command did not answer.`,
  },
  parameters: {
    flags: { json: jsonFlag("one JSON array: [{name, vm, role, node, state, nodes, pid, ..}]") },
  },
});

const showCommand = buildCommand<JsonFlag, [name?: string], CliContext>({
  func: show,
  docs: {
    brief: "state and numbers of a VM and its nodes, as of now",
    fullDescription: `Asks every engine of the VM for its numbers. OLDEST-FAULT-US (in --json
.nodes[].stats.oldest_fault_us) is the age of the oldest fault in flight on a node, 0 when there is
none: when a guest hangs, the node where it grows is where to look. kill -USR1 the VM's command
then: its engines tell on stderr what is open.

Examples:
  ssihv vm show                                   the only one that runs
  ssihv vm show demo
  ssihv vm show demo --json | jq '.nodes[].stats.oldest_fault_us'

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
        },
      ],
    },
    flags: { json: jsonFlag("one JSON object: {name, state, uptimeSeconds, nodes: [{..}], ..}") },
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

${EXIT_STATUSES}`,
    customUsage: ["--gpa ADDRESS [--vm NAME] [--count N] [--json]"],
  },
  parameters: {
    flags: {
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

export const vmCommands = buildRouteMap<"list" | "show" | "pages", CliContext>({
  routes: { list: listCommand, show: showCommand, pages: pagesCommand },
  docs: { brief: "look at running VMs: list them, their numbers, where their pages are" },
});
