// `ssihv cluster apply`: makes the coordinator's record of VMs what a file declares. All that can
// be refused is refused before anything is changed, and applying the same file again changes
// nothing.

import { buildCommand } from "@stricli/core";

import { demandsOf } from "../../coordinator/placement.ts";
import { SsihvError } from "../base/errors.ts";
import { type DeclaredVm, loadDeclaredVms, parseDeclaredVms } from "../config/declared-vms.ts";
import { ApiClient, type Vm } from "./api-client.ts";
import { API_FLAGS, API_HELP, API_STATUSES, jsonFlag } from "./api-flags.ts";
import { type Change, isAtRest, planChanges, planText } from "./apply-plan.ts";
import type { CliContext } from "./context.ts";
import { path } from "./flags.ts";
import { printable } from "./report.ts";
import { startAndWait, type WaitFlags, wait } from "./vm-orders.ts";

interface ApplyFlags extends WaitFlags {
  readonly file?: string;
  readonly dryRun: boolean;
  readonly start: boolean;
}

/** Puts where the VM is declared before what was wrong with it. */
async function at<T>({ at: place }: DeclaredVm, act: () => T | Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    throw new SsihvError(error.code, `${place}: ${error.message}`, {
      ...(error.hint !== undefined && { hint: error.hint }),
      cause: error.cause,
    });
  }
}

async function declaredIn(file: string | undefined): Promise<DeclaredVm[]> {
  if (file === undefined) {
    throw new SsihvError("flag_invalid", "--file is missing: what is the cluster to be?", {
      hint: "ssihv cluster apply -f cluster-config.yaml; ssihv cluster apply --help shows one",
    });
  }
  const declared =
    file === "-" ? parseDeclaredVms(await Bun.stdin.text(), "stdin") : loadDeclaredVms(file);
  // Whether the memory of each adds up, as the coordinator will ask.
  for (const each of declared) await at(each, () => demandsOf(each.spec));
  return declared;
}

/** A host that joins later is no mistake. */
async function tellUnknownHosts(
  context: CliContext,
  declared: readonly DeclaredVm[],
  api: ApiClient,
): Promise<void> {
  const named = declared.flatMap(({ hosts }) => hosts);
  if (named.length === 0) return;
  const known = new Set((await api.hosts()).map(({ name }) => name));
  for (const { host, at: place } of named) {
    if (known.has(host)) continue;
    const words = `${place}: no host ${host} has joined the cluster yet`;
    context.process.stderr.write(`ssihv: ${printable(words)}\n`);
  }
}

/** Nothing is changed where something cannot be. */
function refuseBlocked(changes: readonly Change[]): void {
  const blocked = changes.filter(({ action }) => action === "blocked");
  if (blocked.length === 0) return;
  const lines = blocked.map(({ declared, vm, state, differences }) => {
    const keys = differences.map(({ key }) => key).join(", ");
    return `${declared.at}: VM ${vm} is ${state}, so this cannot be changed: ${keys}`;
  });
  const names = blocked.map(({ vm }) => vm).join("; ssihv vm stop ");
  throw new SsihvError("vm_busy", `${lines.join("\n")}\nnothing was changed`, {
    hint: `ssihv vm stop ${names}; then apply again`,
  });
}

async function carryOut(changes: readonly Change[], api: ApiClient): Promise<void> {
  for (const { action, declared } of changes) {
    if (action === "create") await at(declared, () => api.create(declared.spec));
    if (action === "change") await at(declared, () => api.change(declared.spec));
  }
}

function show(
  context: CliContext,
  { json, dryRun }: ApplyFlags,
  changes: readonly Change[],
  onRecord: readonly Vm[],
): void {
  const { stdout } = context.process;
  if (json) {
    const told = changes.map(({ declared, ...change }) => ({ ...change, at: declared.at }));
    stdout.write(`${JSON.stringify({ dryRun, changes: told })}\n`);
    return;
  }
  stdout.write(printable(planText(changes, onRecord)));
  if (dryRun) stdout.write("nothing was changed (--dry-run)\n");
}

async function apply(this: CliContext, flags: ApplyFlags): Promise<void> {
  const declared = await declaredIn(flags.file);
  const api = await ApiClient.open(flags);
  const onRecord = await api.vms();
  const changes = planChanges(declared, onRecord);
  await tellUnknownHosts(this, declared, api);
  show(this, flags, changes, onRecord);
  refuseBlocked(changes);
  if (flags.dryRun) return;
  await carryOut(changes, api);
  if (!flags.start) return;
  for (const { vm, state, declared: where } of changes) {
    if (state !== undefined && !isAtRest(state)) continue;
    await at(where, () => startAndWait(this, flags, api, vm));
  }
}

export const applyCommand = buildCommand<ApplyFlags, [], CliContext>({
  func: apply,
  docs: {
    brief: "make the VMs on the coordinator's record what a file declares",
    fullDescription: `VMs of the file that are absent are created, those that differ and do not run
are changed, and all others are left alone: to apply a file again changes nothing. Where one that
runs differs, what cannot be changed is told, and nothing is. Prints what each VM needed:

  create   web (2 node(s), 4 vCPU(s), 2048 MiB)
  change   db (stopped)
             nodes[1].memory: 1024M -> 2048M
  same     demo (running)

The file is a cluster-config.yaml with a list of VMs, each as ssihv vm create takes it; a VM that
nodes and vm of such a file describe for ssihv run is one too, under the cluster's name:

  cluster: prod
  vms:
    - name: web
      nodes: [{ cpus: 2, memory: 1G, host: host-a }, { cpus: 2, memory: 1G }]
      kernel: /srv/vm/vmlinuz
    - { name: db, nodes: [{ cpus: 4, memory: 8G }], kernel: /srv/vm/vmlinuz }

Examples:
  ssihv cluster apply -f cluster-config.yaml --dry-run
  ssihv cluster apply -f cluster-config.yaml --start

${API_HELP}

${API_STATUSES}
2 too where a VM that runs differs. A mistake in the file is told with file:line:column.`,
    customUsage: ["-f FILE [--dry-run] [--start] [flags]"],
  },
  parameters: {
    flags: {
      ...API_FLAGS,
      file: {
        kind: "parsed",
        parse: path("--file"),
        optional: true,
        brief: "YAML file, - for stdin",
        placeholder: "FILE",
      },
      dryRun: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "only tell what would be done",
      },
      start: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "start those of the file that do not run, too",
      },
      wait: wait("runs", "120s"),
      json: jsonFlag("one JSON object: {dryRun, changes: [{vm, action, state, differences, at}]}"),
    },
    aliases: { f: "file" },
  },
});
