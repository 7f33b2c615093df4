// `ssihv top`: what the nodes of the VMs do right now, live on a terminal, line by line elsewhere:
// of the cluster by its coordinator, or of this host.

import { buildCommand } from "@stricli/core";

import { type ErrorCode, SsihvError } from "../base/errors.ts";

import { askHeat, askStats, findVm, type RunningVm, runningVms } from "../node/admin-client.ts";
import { ADMIN_FOLDER_HELP } from "../node/admin-folder.ts";
import type { HeatShown, VmSample } from "../node/vm-view.ts";
import type { ApiClient, Vm } from "./api-client.ts";
import { API_FLAGS } from "./api-flags.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { durationFlag, wholeNumber } from "./run-options.ts";
import { compare, type Look, topTable } from "./top-table.ts";
import { vmNames } from "./vm-names.ts";
import { ask, LOCAL, WHERE_HELP, type WhereFlags } from "./where.ts";

interface TopFlags extends WhereFlags {
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

/** What runs where the command looks: all of it, or the VM of that name. */
type Source = (name: string | undefined) => Promise<Look[]>;

async function lookAt(vm: RunningVm): Promise<Look> {
  if (vm.listing === null) return { label: vm.label, at: performance.now(), sample: null };
  return await lookOf(vm.label, Promise.all([askStats(vm), askHeat(vm)]));
}

/** Without a sample: it ended meanwhile, or is stuck: the next look tells which. */
async function lookOf(
  label: string,
  asked: Promise<readonly [VmSample, HeatShown]>,
): Promise<Look> {
  try {
    const [sample, heat] = await asked;
    return { label, at: performance.now(), sample, heat };
  } catch (error) {
    if (error instanceof SsihvError) return { label, at: performance.now(), sample: null };
    throw error;
  }
}

const ofThisHost: Source = async (name) => {
  const vms = name === undefined ? (await runningVms()).vms : [await findVm(name)];
  return await Promise.all(vms.map(lookAt));
};

/** The lead calls its own host null: here that would be another. */
function onHosts({ places }: Vm, look: Look): Look {
  if (look.sample === null) return look;
  const hostOf = new Map(places.map(({ node, host }) => [node, host]));
  const nodes = look.sample.nodes.map((node) => ({
    ...node,
    host: hostOf.get(node.node) ?? node.host,
  }));
  return { ...look, sample: { ...look.sample, nodes } };
}

function ofCluster(api: ApiClient): Source {
  return async (name) => {
    const vms = name === undefined ? await api.vms() : [await api.vm(name)];
    const looks = vms.map(async (vm): Promise<Look | undefined> => {
      // Only one that was asked for by name is told as not running.
      if (vm.since === null && name === undefined) return undefined;
      const asked = Promise.all([api.stats(vm.name), api.heat(vm.name)]);
      if (vm.since === null) await asked;
      return onHosts(vm, await lookOf(vm.name, asked));
    });
    return (await Promise.all(looks)).filter((look) => look !== undefined);
  };
}

/** No coordinator answers for the cluster. */
const AWAY: readonly ErrorCode[] = ["coordinator_unreachable", "leader_elsewhere"];

/** That is not the end of what one sees: it may come back, or another may lead. */
async function lookAgain(source: Source, name: string | undefined, before: readonly Look[]) {
  try {
    return await source(name);
  } catch (error) {
    if (!(error instanceof SsihvError) || !AWAY.includes(error.code)) throw error;
    return before.map(({ label }) => ({ label, at: performance.now(), sample: null }));
  }
}

async function firstLook(context: CliContext, flags: TopFlags, name: string | undefined) {
  const from = async (source: Source) => ({ source, looks: await source(name) });
  return await ask(
    context,
    flags,
    (api) => from(ofCluster(api)),
    () => from(ofThisHost),
  );
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
  const { source, looks } = await firstLook(this, flags, name);
  let before = looks;
  if (live) stdout.write(CLEAR);
  for (let shown = 0; shown < (flags.count ?? Number.POSITIVE_INFINITY); shown++) {
    await Bun.sleep(interval);
    const after = await lookAgain(source, name, before);
    const vms = compare(before, after);
    before = after;
    if (flags.json) {
      stdout.write(`${JSON.stringify(vms)}\n`);
      continue;
    }
    const none = source === ofThisHost ? "no VM of this user runs on this host" : "no VM runs";
    const body = vms.length === 0 ? `${none}\n` : topTable(vms);
    if (live) stdout.write(HOME + body.replaceAll("\n", `${END_OF_LINE}\n`) + END_OF_SCREEN);
    else stdout.write(`${shown === 0 ? "" : "\n"}${body}`);
  }
}

export const topCommand = buildCommand<TopFlags, [name?: string], CliContext>({
  func: top,
  docs: {
    brief: "what the nodes of the VMs of the cluster, or of this host, do, live",
    fullDescription: `Shows each node's exits, faults, remote faults with their median and p99 time,
the share of its vCPUs' time lost to them (remote stall), the age of the oldest fault in flight; of
its links what it sends and receives, what peers have yet to take, and how often a connection was
made again; what is evicted, and how much of other nodes' memory lies there: all since the line
before. Below are the blocks of guest memory (2 MiB, more where a VM has more than 8 GiB) with the
most remote faults meanwhile, the home of each, and which nodes had them. With --local, the command
that leads a VM knows all its nodes; a host that joined knows its own. Ctrl-C ends it.

Examples:
  ssihv top
  ssihv top demo --interval 5s
  ssihv top --count 1 --json | jq '.[].nodes[] | {node, stalled: .rates.stalledShare}'

${WHERE_HELP}

${ADMIN_FOLDER_HELP}

Exit status: 0 shown, 2 wrong flags or no such VM, 10 the coordinator or the VM named did not
answer.`,
    customUsage: ["[NAME] [--interval TIME] [--count N] [--local] [--json]"],
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
      ...{ ...API_FLAGS, local: LOCAL },
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
