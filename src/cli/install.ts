// `ssihv install node|coordinator` and `ssihv uninstall ...`: the daemons as systemd services. The
// flags of the daemon itself are checked as it would check them, and kept for it as they are.

import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { buildCommand, buildRouteMap, type FlagParametersForType } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { ownCommand } from "../node/engine-process.ts";
import {
  type InstallHost,
  install,
  installHost,
  requireService,
  serviceFiles,
  uninstall,
} from "../service/installer.ts";
import type { Daemon } from "../service/units.ts";
import { certsFolder } from "./certs-folder.ts";
import type { CliContext } from "./context.ts";
import { COORDINATOR_FLAGS } from "./coordinator.ts";
import { path } from "./flags.ts";
import { joinHere, NODE_FLAGS, openState } from "./node.ts";
import { printable } from "./report.ts";

interface PlaceFlags {
  readonly root?: string;
}

interface InstallFlags extends PlaceFlags {
  readonly print: boolean;
  readonly start: boolean;
}

/** What a flag of the daemon was given, as text. */
type Given = Readonly<Record<string, string | boolean | undefined>>;
type NodeInstallFlags = InstallFlags & Given & { readonly join?: string; readonly name?: string };

/** Folders and files: a service has no current folder. */
const PATHS: ReadonlySet<string> = new Set(
  ["state", "certs", "socket"].concat(["storeCert", "storeKey", "storeCacert"]),
);
/** Of this command, not of the daemon. */
const OWN: ReadonlySet<string> = new Set(["root", "print", "start", "join", "name"]);

interface ParsedFlag {
  readonly kind: "parsed" | "enum" | "boolean";
  readonly parse: (this: CliContext, value: string) => unknown;
}

/** A daemon's flags, checked by its own parsers; defaults are left to it. */
function keptFlags(flags: object): FlagParametersForType<Given, CliContext> {
  const kept = Object.entries(flags as Record<string, ParsedFlag>).map(([name, flag]) => {
    const undecided = { default: undefined, optional: true };
    if (flag.kind === "enum") return [name, { ...flag, ...undecided }];
    if (flag.kind !== "parsed") return [name, flag];
    const parse = async function (this: CliContext, value: string): Promise<string> {
      await flag.parse.call(this, value);
      return PATHS.has(name) ? resolve(value) : value;
    };
    return [name, { ...flag, parse, ...undecided }];
  });
  return Object.fromEntries(kept) as FlagParametersForType<Given, CliContext>;
}

/** --memory-only and so on, as the daemon is to get them. */
export function wordsOf(flags: object): string[] {
  return Object.entries(flags).flatMap(([name, value]) => {
    if (OWN.has(name) || value === undefined || value === false) return [];
    const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    return value === true ? [flag] : [flag, String(value)];
  });
}

function hostOf(context: CliContext): InstallHost {
  const command = ownCommand();
  const say = (line: string) => context.process.stderr.write(`ssihv: ${printable(line)}\n`);
  return installHost(command.length === 1 ? command[0] : undefined, say);
}

/** What has to be there before the daemon can run; joins the cluster where a token is given. */
async function prepareNode(flags: NodeInstallFlags, host: InstallHost): Promise<void> {
  const { state: folder, join: token, name, start } = flags;
  const { state } = await openState(typeof folder === "string" ? folder : undefined);
  if (token !== undefined) return await joinHere(state, { join: token, name }, host.say);
  if (!start || state.joined) return;
  throw new SsihvError("host_unknown", "this host has not joined a cluster", {
    hint:
      "ssihv cluster token, where the coordinator runs, then here: " +
      "ssihv install node --join TOKEN",
  });
}

function prepareCoordinator(flags: InstallFlags & Given): void {
  const { certs, start } = flags;
  const folder = typeof certs === "string" ? certs : certsFolder(process.env, 0);
  if (!start || existsSync(join(folder, "coordinator.pem"))) return;
  throw new SsihvError("certificate_invalid", `${folder} has no coordinator's certificate`, {
    hint: "ssihv certs init makes the CA and that; or --certs names another folder",
  });
}

function prepare(daemon: Daemon, flags: NodeInstallFlags, host: InstallHost): Promise<void> | void {
  return daemon === "node" ? prepareNode(flags, host) : prepareCoordinator(flags);
}

async function installDaemon(
  context: CliContext,
  daemon: Daemon,
  flags: NodeInstallFlags,
): Promise<void> {
  const host = hostOf(context);
  const { root, print, start } = flags;
  const request = { daemon, words: wordsOf(flags), start, ...(root !== undefined && { root }) };
  if (print) {
    for (const { path: file, bytes } of serviceFiles(request, host)) {
      context.process.stdout.write(`# ${file}\n${String(bytes)}\n`);
    }
    return;
  }
  if (root === undefined) {
    requireService(`install ${daemon}`, host);
    await prepare(daemon, flags, host);
  }
  install(request, host);
}

const ROOT_FLAG: FlagParametersForType<PlaceFlags, CliContext> = {
  root: {
    kind: "parsed",
    parse: path("--root"),
    optional: true,
    brief: "another root, for packages and images: files only, nothing is started",
    placeholder: "FOLDER",
  },
};

const INSTALL_FLAGS: FlagParametersForType<InstallFlags, CliContext> = {
  ...ROOT_FLAG,
  print: {
    kind: "boolean",
    default: false,
    withNegated: false,
    brief: "print the unit and its options, and change nothing",
  },
  start: {
    kind: "boolean",
    default: true,
    brief: "enable and start the service",
  },
};

const STATUS_HELP = `Exit status: 0 done, 2 wrong flags, not root, or something it needs is
missing, 4 systemd does not run this host, 10 a file or the service cannot be changed.`;

function filesHelp(daemon: Daemon): string {
  return `Writes /etc/systemd/system/ssihv-${daemon}.service, and the options given here to
/etc/default/ssihv-${daemon}; without options, those that are there stay. An ssihv that is run from
elsewhere is copied to /usr/local/bin. May be repeated, to change options or after an upgrade.`;
}

const nodeCommand = buildCommand<NodeInstallFlags, [], CliContext>({
  func(flags) {
    return installDaemon(this, "node", flags);
  },
  docs: {
    brief: "make this host's agent a systemd service",
    fullDescription: `Takes the flags of ssihv node. With --join the host joins the cluster first.

${filesHelp("node")}
An agent that runs goes on as it was, since its VMs end with it: restart it when that suits.

Examples:
  ssihv install node --join TOKEN --name host-b
  ssihv install node --join - --memory 64G --cpus 14 <token.txt
  ssihv install node --print                      what would be written
  ssihv install node --root build/image           for a package

${STATUS_HELP}`,
  },
  parameters: {
    flags: {
      ...keptFlags(NODE_FLAGS),
      ...INSTALL_FLAGS,
    } as FlagParametersForType<NodeInstallFlags, CliContext>,
  },
});

const coordinatorCommand = buildCommand<NodeInstallFlags, [], CliContext>({
  func(flags) {
    return installDaemon(this, "coordinator", flags);
  },
  docs: {
    brief: "make the coordinator a systemd service",
    fullDescription: `Takes the flags of ssihv coordinator.

${filesHelp("coordinator")}
A coordinator that runs is restarted where something has changed: VMs do not notice.

Examples:
  ssihv certs init
  ssihv install coordinator --listen 10.0.0.1:7780
  ssihv install coordinator --print               what would be written

${STATUS_HELP}`,
  },
  parameters: {
    flags: {
      ...keptFlags(COORDINATOR_FLAGS),
      ...INSTALL_FLAGS,
    } as FlagParametersForType<NodeInstallFlags, CliContext>,
  },
});

function uninstallCommand(daemon: Daemon, loss: string) {
  return buildCommand<PlaceFlags, [], CliContext>({
    func({ root }) {
      const host = hostOf(this);
      if (root === undefined) requireService(`uninstall ${daemon}`, host);
      uninstall(daemon, host, root);
    },
    docs: {
      brief: `end and remove the ${daemon}'s service`,
      fullDescription: `Ends the service${loss}, and removes its unit and options. The executable,
/var/lib/ssihv/${daemon} and certificates stay: it may be installed again.

${STATUS_HELP}`,
    },
    parameters: { flags: ROOT_FLAG },
  });
}

export const installCommands = buildRouteMap<Daemon, CliContext>({
  routes: { node: nodeCommand, coordinator: coordinatorCommand },
  docs: { brief: "make the agent or the coordinator a systemd service of this host" },
});

export const uninstallCommands = buildRouteMap<Daemon, CliContext>({
  routes: {
    node: uninstallCommand("node", " and the VMs on this host with it"),
    coordinator: uninstallCommand("coordinator", "; VMs go on"),
  },
  docs: { brief: "take such a service away again" },
});
