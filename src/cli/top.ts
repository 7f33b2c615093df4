// `ssihv top`: what the nodes of the VMs do right now, live on a terminal, line by line elsewhere.

import { buildCommand } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { askHeat, askStats, findVm, type RunningVm, runningVms } from "../node/admin-client.ts";
import { ADMIN_FOLDER_HELP } from "../node/admin-folder.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { durationFlag, wholeNumber } from "./run-options.ts";
import { compare, type Look, topTable } from "./top-table.ts";
import { vmNames } from "./vm-names.ts";

interface TopFlags {
  readonly interval?: number;
  readonly count?: number;
  readonly json: boolean;
}

const INTERVAL_US = 1_000_000;
const INTERVAL_US_MIN = 100_000;
/** Cursor home, and then the rest of the line and of the screen away (ECMA-48). */
const HOME = "\x1b[H";
const END_OF_LINE = "\x1b[K";
const END_OF_SCREEN = "\x1b[J";
const CLEAR = "\x1b[2J";

async function lookAt(vm: RunningVm): Promise<Look> {
  const at = () => performance.now();
  try {
    if (vm.listing === null) return { label: vm.label, at: at(), sample: null };
    const [sample, heat] = await Promise.all([askStats(vm), askHeat(vm)]);
    return { label: vm.label, at: at(), sample, heat };
  } catch (error) {
    // It ended meanwhile, or is stuck: the next look tells which.
    if (error instanceof SsihvError) return { label: vm.label, at: at(), sample: null };
    throw error;
  }
}

async function lookAtAll(name: string | undefined): Promise<Look[]> {
  const vms = name === undefined ? (await runningVms()).vms : [await findVm(name)];
  return await Promise.all(vms.map(lookAt));
}

async function top(this: CliContext, flags: TopFlags, name?: string): Promise<void> {
  const interval = (flags.interval ?? INTERVAL_US) / 1000;
  if (interval * 1000 < INTERVAL_US_MIN) {
    throw new SsihvError("flag_invalid", "--interval is shorter than 100ms", {
      hint: "the engines are asked each time: ssihv top --interval 1s",
    });
  }
  const { stdout } = this.process;
  const live = process.stdout.isTTY === true && !flags.json;
  let before = await lookAtAll(name);
  if (live) stdout.write(CLEAR);
  for (let shown = 0; shown < (flags.count ?? Number.POSITIVE_INFINITY); shown++) {
    await Bun.sleep(interval);
    const after = await lookAtAll(name);
    const vms = compare(before, after);
    before = after;
    if (flags.json) {
      stdout.write(`${JSON.stringify(vms)}\n`);
      continue;
    }
    const body = vms.length === 0 ? "no VM of this user runs on this host\n" : topTable(vms);
    if (live) stdout.write(HOME + body.replaceAll("\n", `${END_OF_LINE}\n`) + END_OF_SCREEN);
    else stdout.write(`${shown === 0 ? "" : "\n"}${body}`);
  }
}

export const topCommand = buildCommand<TopFlags, [name?: string], CliContext>({
  func: top,
  docs: {
    brief: "what the nodes of the VMs on this host do, live",
    fullDescription: `Shows each node's exits, faults, remote faults with their median and p99 time,
the share of its vCPUs' time lost to them, the age of the oldest fault in flight, what it sends and
receives, what is evicted, and how much of other nodes' memory lies there: all since the line
before. Below are the blocks of guest memory (2 MiB, more where a VM has more than 8 GiB) with the
most remote faults meanwhile, the home of each, and which nodes had them. The command that leads a
VM knows all its nodes; a host that joined knows its own. Ctrl-C ends it.

Examples:
  ssihv top
  ssihv top demo --interval 5s
  ssihv top --count 1 --json | jq '.[].nodes[] | {node, stalled: .rates.stalledShare}'

${ADMIN_FOLDER_HELP}

Exit status: 0 shown, 2 wrong flags or no such VM, 10 the VM named did not answer.`,
    customUsage: ["[NAME] [--interval TIME] [--count N] [--json]"],
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        {
          ...{ parse: text, optional: true, brief: "the VM; absent: all", placeholder: "NAME" },
          proposeCompletions: vmNames,
        },
      ],
    },
    flags: {
      interval: {
        kind: "parsed",
        parse: durationFlag("--interval"),
        optional: true,
        brief: "time between two looks [1s]",
        placeholder: "TIME",
      },
      count: {
        kind: "parsed",
        parse: wholeNumber("--count", 1, 1_000_000_000),
        optional: true,
        brief: "end after so many [never]",
        placeholder: "N",
      },
      json: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "a line of JSON each time: [{name, state, nodes: [..], hotBlocks: [..]}]",
      },
    },
  },
});
