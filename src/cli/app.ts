// The command line of ssihv: which commands there are, how errors of all of them are said, and
// which exit status they end with. `main` is the whole program but for process.exit.

import {
  type Application,
  buildApplication,
  buildRouteMap,
  ExitCode,
  proposeCompletions,
  run,
  type StricliProcess,
  text_en,
} from "@stricli/core";

import { buildInfo, versionLine } from "../node/build-info.ts";
import { acpiCommands } from "./acpi.ts";
import { certsCommands } from "./certs.ts";
import { checkCommand } from "./check.ts";
import { clusterCommands } from "./cluster.ts";
import { completionCommand, proposalLines } from "./completion.ts";
import type { CliContext, HostAccess } from "./context.ts";
import { coordinatorCommand } from "./coordinator.ts";
import { dashboardCommand } from "./dashboard.ts";
import { engineCommand } from "./engine.ts";
import { EXIT, exitStatusOf } from "./exit-status.ts";
import { installCommands, uninstallCommands } from "./install.ts";
import { joinCommand } from "./join.ts";
import { nodeCommand } from "./node.ts";
import { partCommand } from "./part.ts";
import { formatError } from "./report.ts";
import { runCommand } from "./run.ts";
import { topCommand } from "./top.ts";
import { unknownCommand, usageError } from "./usage-error.ts";
import { vmCommands } from "./vm.ts";

type Command =
  | ("run" | "join" | "vm" | "top" | "cluster" | "coordinator" | "node" | "dashboard")
  | ("install" | "uninstall" | "certs" | "check" | "acpi" | "completion" | "engine" | "part");

const ROOT = buildRouteMap<Command, CliContext>({
  routes: {
    run: runCommand,
    join: joinCommand,
    vm: vmCommands,
    top: topCommand,
    cluster: clusterCommands,
    coordinator: coordinatorCommand,
    node: nodeCommand,
    install: installCommands,
    uninstall: uninstallCommands,
    dashboard: dashboardCommand,
    certs: certsCommands,
    check: checkCommand,
    acpi: acpiCommands,
    completion: completionCommand,
    engine: engineCommand,
    part: partCommand,
  },
  docs: {
    brief: "Joins several x86-64 Linux hosts into one virtual machine.",
    fullDescription: `Joins several x86-64 Linux hosts into one virtual machine, on unmodified KVM.

Examples:
  ssihv check                                     is this host fit?
  ssihv run --kernel /vmlinuz --initrd /initrd.img
  ssihv run --kernel bzImage --initrd test.cpio --nodes 2 --cpus 2 --memory 1G
  ssihv run --config cluster-config.yaml
  ssihv run --kernel bzImage --nodes 2 --listen 10.0.0.1:7700 --key-file vm.key
  ssihv join 10.0.0.1:7700 --key-file vm.key      on the other host
  ssihv run --hosts a,b --kernel bzImage          the same by ssh, in one command
  ssihv certs init                                a CA for the cluster
  ssihv install node --join TOKEN                 this host's agent as a service
  ssihv vm show                                   how is the VM that runs here?
  ssihv top                                       what do its nodes do?
  ssihv dashboard                                 the cluster in a web browser`,
    hideRoute: { engine: true, part: true },
  },
});

function application(json: boolean, debug: boolean): Application<CliContext> {
  const format = (error: unknown) => formatError(error, { json, debug });
  return buildApplication(ROOT, {
    name: "ssihv",
    versionInfo: { currentVersion: buildInfo().version },
    scanner: { caseStyle: "allow-kebab-for-camel" },
    documentation: {
      disableAnsiColor: true,
      caseStyle: "convert-camel-to-kebab",
      onlyRequiredInUsageLine: true,
    },
    determineExitCode: exitStatusOf,
    localization: {
      text: {
        ...text_en,
        noCommandRegisteredForInput: ({ input, corrections }) =>
          format(unknownCommand(input, corrections)),
        exceptionWhileParsingArguments: (error) => format(usageError(error)),
        exceptionWhileLoadingCommandFunction: format,
        exceptionWhileLoadingCommandContext: format,
        exceptionWhileRunningCommand: format,
        commandErrorResult: format,
      },
    },
  });
}

/** The parser's own codes are negative. */
function statusOf(code: number): number {
  if (code >= 0) return code;
  const usage = code === ExitCode.UnknownCommand || code === ExitCode.InvalidArgument;
  return usage ? EXIT.usage : EXIT.defect;
}

export interface MainStreams {
  readonly stdout: { write(text: string): unknown };
  readonly stderr: { write(text: string): unknown };
}

/** Runs one command line to its end; the exit status. */
export async function main(
  args: readonly string[],
  streams: MainStreams,
  host: HostAccess,
): Promise<number> {
  if (args.length === 1 && (args[0] === "--version" || args[0] === "-v")) {
    streams.stdout.write(`${versionLine()}\n`);
    return EXIT.ok;
  }
  const process: StricliProcess = {
    stdout: { write: (text) => void streams.stdout.write(text) },
    stderr: { write: (text) => void streams.stderr.write(text) },
    env: {},
  };
  const context: CliContext & { process: StricliProcess } = { process, host, status: EXIT.ok };
  if (args[0] === "complete" && args[1] === "--") {
    const proposals = await proposeCompletions(application(false, false), args.slice(2), context);
    streams.stdout.write(proposalLines(proposals));
    return EXIT.ok;
  }
  const debug = globalThis.process.env["SSIHV_DEBUG"] !== undefined;
  await run(application(args.includes("--json"), debug), args, context);
  const status = statusOf(Number(process.exitCode ?? 0));
  return status === EXIT.ok ? context.status : status;
}
