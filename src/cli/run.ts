// `ssihv run`: boots a VM on this host, or leads one that other hosts join, and attaches its
// console.

import { buildCommand } from "@stricli/core";

import { loadClusterConfig } from "../config/cluster-config.ts";
import { parseHosts } from "../hosts/host-list.ts";
import { splitWords } from "../hosts/reach.ts";
import { ADMIN_FOLDER_HELP } from "../node/admin-folder.ts";
import { openAdmin } from "../node/admin-open.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { parseListen } from "../node/join-address.ts";
import { Vm, type VmPlan } from "../node/vm.ts";
import { metricsText } from "../node/vm-metrics.ts";
import { memoryWords, planVm, warnings } from "../node/vm-request.ts";
import { MetricsServer } from "../telemetry/metrics-server.ts";
import { CONSOLE_HELP } from "./console-escape.ts";
import type { CliContext } from "./context.ts";
import { EXIT_HELP } from "./exit-status.ts";
import { path, requireKvm, SANDBOX_FLAG, text } from "./flags.ts";
import { HOSTS_HELP, refuseWithoutHosts, runOnHosts } from "./run-hosts.ts";
import {
  durationFlag,
  RUN_DEFAULTS,
  type RunFlags,
  runRequest,
  sizeFlag,
  sizeOrNoneFlag,
  wholeNumber,
} from "./run-options.ts";
import { EVENTS_HELP, RunOutput } from "./run-output.ts";
import { RunSession } from "./run-session.ts";

async function run(this: CliContext, flags: RunFlags): Promise<void> {
  const config = flags.config === undefined ? undefined : loadClusterConfig(flags.config);
  if (flags.hosts !== undefined) {
    this.status = await runOnHosts(this, flags, flags.hosts, config);
    return;
  }
  refuseWithoutHosts(flags);
  const request = runRequest(flags, config);
  const facts = this.host.facts();
  const wanted = planVm(request, facts);
  requireKvm(this.host);
  const { metrics } = flags;
  let session: RunSession<Vm> | undefined;
  const server =
    metrics && MetricsServer.open(metrics, () => metricsText(session ? [session.vm] : []));
  try {
    session = await openSession(this, wanted, facts, {
      json: flags.json,
      report: flags.report,
      sandbox: flags.sandbox,
      nameChosen: flags.name !== undefined || config?.cluster !== undefined,
    });
    this.status = await session.run();
  } finally {
    server?.close();
  }
}

/** Everything that a VM needs around it, the VM itself not begun. */
async function openSession(
  context: CliContext,
  wanted: VmPlan,
  facts: HostFacts,
  told: Pick<RunFlags, "json" | "report" | "sandbox"> & { readonly nameChosen: boolean },
): Promise<RunSession<Vm>> {
  const createPage = await context.host.sharedPages();
  const admin = await openAdmin({ vm: wanted.name, chosen: told.nameChosen });
  const plan = { ...wanted, name: admin.server?.vm ?? wanted.name };
  const output = new RunOutput({
    name: plan.name,
    json: told.json,
    report: told.report,
    debug: process.env["SSIHV_DEBUG"] !== undefined,
    write: (line) => context.process.stderr.write(line),
  });
  const memory = memoryWords(plan);
  if (memory !== undefined) output.say(`VM ${plan.name}: ${memory}`);
  for (const warning of [...admin.warnings, ...warnings(plan, facts)]) output.say(warning);
  const command = context.host.engineCommand;
  const { sandbox } = told;
  const deps = { createPage, sandbox, ...(command !== undefined && { command }) };
  const session = new RunSession((hooks) => new Vm(plan, hooks, deps), output, admin.server);
  admin.server?.serve(session.vm);
  return session;
}

const EXAMPLES = `Boots a Linux kernel in a VM of one or more nodes: all on this host; with
--listen, on this host and those that join it; with --hosts, on hosts that it reaches by ssh or
within a Slurm allocation. The guest's serial console is on stdin and stdout;
everything ssihv says goes to stderr.

Examples:
  ssihv run --kernel /vmlinuz --initrd /initrd.img --cmdline 'break=top'
  ssihv run --kernel bzImage --initrd test.cpio --cpus 2 --memory 1G --nodes 2
  ssihv run --config cluster-config.yaml --memory 2G
  ssihv run --kernel bzImage --nodes 2 --cpus 2 --listen 10.0.0.1:7700 --key-file vm.key
  ssihv run --kernel bzImage --memory 96G --memory-nodes 2 --copies 2 \\
            --listen 10.0.0.1:7700 --key-file vm.key      one node, two hosts lend memory
  ssihv run --hosts a,root@b --kernel bzImage --cpus 4 --memory 8G   over two hosts, by ssh
  ssihv run --config cluster-config.yaml --metrics 127.0.0.1:9400
  echo 'poweroff -f' | ssihv run --kernel bzImage --initrd shell.cpio --json 2>events.jsonl

${HOSTS_HELP}

Keys, when stdin is a terminal:
${CONSOLE_HELP.replace(/^/gm, "  ")}

Meanwhile, from another shell: ssihv vm list, ssihv vm show, ssihv vm pages. When the VM hangs,
kill -USR1 this command: every engine tells on stderr what is open (faults with their age, requests,
transactions, lanes). ${ADMIN_FOLDER_HELP}

${EXIT_HELP}

${EVENTS_HELP}`;

export const runCommand = buildCommand<RunFlags, [], CliContext>({
  func: run,
  docs: {
    brief: "boot a VM on this host and attach its console",
    fullDescription: EXAMPLES,
    customUsage: ["--kernel FILE [flags]", "--config FILE [flags]"],
  },
  parameters: {
    flags: {
      kernel: {
        kind: "parsed",
        parse: path("--kernel"),
        optional: true,
        brief: "Linux kernel (bzImage)",
        placeholder: "FILE",
      },
      initrd: {
        kind: "parsed",
        parse: path("--initrd"),
        optional: true,
        brief: "initial RAM disk",
        placeholder: "FILE",
      },
      cmdline: {
        kind: "parsed",
        parse: text,
        optional: true,
        inferEmpty: true,
        brief: "kernel options, after the default ones (the last of a kind wins)",
        placeholder: "TEXT",
      },
      cpus: {
        kind: "parsed",
        parse: wholeNumber("--cpus", 1, 512),
        optional: true,
        brief: `vCPUs of the VM, spread over its nodes [${RUN_DEFAULTS.cpus} per node]`,
        placeholder: "N",
      },
      memory: {
        kind: "parsed",
        parse: sizeFlag("--memory"),
        optional: true,
        brief: "RAM of the VM, spread over its nodes: 512M, 4G [512M]",
        placeholder: "SIZE",
      },
      nodes: {
        kind: "parsed",
        parse: wholeNumber("--nodes", 1, 8),
        optional: true,
        brief: `nodes, all on this host without --listen [${RUN_DEFAULTS.nodes}]`,
        placeholder: "N",
      },
      memoryNodes: {
        kind: "parsed",
        parse: wholeNumber("--memory-nodes", 0, 7),
        optional: true,
        brief: "more nodes, which only lend memory: no vCPUs, no KVM [0]",
        placeholder: "N",
      },
      nodeMemory: {
        kind: "parsed",
        parse: sizeFlag("--node-memory"),
        optional: true,
        brief: "what each node's host gives: own pages and cache [what the plan needs]",
        placeholder: "SIZE",
      },
      memoryNodeMemory: {
        kind: "parsed",
        parse: sizeFlag("--memory-node-memory"),
        optional: true,
        brief: "what each memory node's host lends [what the plan needs]",
        placeholder: "SIZE",
      },
      cache: {
        kind: "parsed",
        parse: sizeFlag("--cache"),
        optional: true,
        brief: "of each node: room for other nodes' pages [a sixteenth, at least 64M]",
        placeholder: "SIZE",
      },
      copies: {
        kind: "parsed",
        parse: wholeNumber("--copies", 1, 2),
        optional: true,
        brief: "memory nodes that have each lent page: with 2 one may die [1]",
        placeholder: "N",
      },
      balloon: {
        kind: "parsed",
        parse: sizeOrNoneFlag("--balloon"),
        optional: true,
        brief: "a virtio balloon that takes so much of the guest's RAM; 0: it reports what is free",
        placeholder: "SIZE",
      },
      name: {
        kind: "parsed",
        parse: text,
        optional: true,
        brief: `name of the VM, which no other may have [${RUN_DEFAULTS.name}, or vm-2, ...]`,
        placeholder: "NAME",
      },
      metrics: {
        kind: "parsed",
        parse: (value: string) => parseListen(value, "--metrics"),
        optional: true,
        brief: "serve metrics of the nodes on this host there, /metrics for Prometheus",
        placeholder: "ADDRESS:PORT",
      },
      listen: {
        kind: "parsed",
        parse: (value: string) => parseListen(value, "--listen"),
        optional: true,
        brief: "wait here for the hosts of the other nodes (ssihv join); lanes use the next ports",
        placeholder: "HOST:PORT",
      },
      keyFile: {
        kind: "parsed",
        parse: path("--key-file"),
        optional: true,
        brief: "the key that joining hosts must have: 64 hex characters (openssl rand -hex 32)",
        placeholder: "FILE",
      },
      hosts: {
        kind: "parsed",
        parse: parseHosts("--hosts"),
        optional: true,
        brief: "run over these hosts, a node on each, by ssh; the first leads",
        placeholder: "HOST,HOST",
      },
      memoryHosts: {
        kind: "parsed",
        parse: parseHosts("--memory-hosts"),
        optional: true,
        brief: "more hosts, which only lend memory",
        placeholder: "HOST,HOST",
      },
      ssh: {
        kind: "parsed",
        parse: (value: string) => splitWords(value, "--ssh"),
        optional: true,
        brief: "the ssh command of --hosts, with its options [$SSIHV_SSH or ssh]",
        placeholder: "COMMAND",
      },
      acceptUnfit: {
        kind: "boolean",
        optional: true,
        withNegated: false,
        brief: "try hosts of --hosts that ssihv check finds unfit",
      },
      config: {
        kind: "parsed",
        parse: path("--config"),
        optional: true,
        brief: "cluster-config.yaml; flags win over it",
        placeholder: "FILE",
      },
      reboot: {
        kind: "boolean",
        optional: true,
        withNegated: true,
        brief: "start the guest again when it resets [yes]",
      },
      pageTables: {
        kind: "enum",
        values: ["auto", "strict", "replicated"],
        optional: true,
        brief: `how nodes share the guest's page tables [${RUN_DEFAULTS.pageTables}]`,
      },
      clockDilation: {
        kind: "parsed",
        parse: wholeNumber("--clock-dilation", 1, 1000),
        optional: true,
        brief: "guest clocks run N times slower, for emulated hosts [1]",
        placeholder: "N",
      },
      peerTimeout: {
        kind: "parsed",
        parse: durationFlag("--peer-timeout"),
        optional: true,
        brief: "a node silent for this long is dead [5s]",
        placeholder: "TIME",
      },
      stallFreeze: {
        kind: "parsed",
        parse: durationFlag("--stall-freeze"),
        optional: true,
        brief: "a longer stall stops the whole VM and its clock; 0s: never [300ms x dilation]",
        placeholder: "TIME",
      },
      holdMax: {
        kind: "parsed",
        parse: durationFlag("--hold-max"),
        optional: true,
        brief: "longest time a node keeps a contended page [1ms]",
        placeholder: "TIME",
      },
      pollMax: {
        kind: "parsed",
        parse: durationFlag("--poll-max"),
        optional: true,
        brief: "longest time a node polls for work before it sleeps [200us with a CPU to spare]",
        placeholder: "TIME",
      },
      pager: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "serve the memory of a one-node VM by the pager too",
      },
      ...SANDBOX_FLAG,
      pinVcpus: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "pin every vCPU to a CPU of the host",
      },
      report: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "list the pages that moved most at the end",
      },
      systemMap: {
        kind: "parsed",
        parse: path("--system-map"),
        optional: true,
        brief: "System.map or /proc/kallsyms of the guest, for names in --report",
        placeholder: "FILE",
      },
      json: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "machine-readable events on stderr",
      },
    },
  },
});
