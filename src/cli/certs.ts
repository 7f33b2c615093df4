// `ssihv certs init|issue|rotate|list`: the cluster's own CA and the certificates it makes. The
// library behind it is loaded when one of them runs: no other command waits for it.

import { isIP } from "node:net";
import { join } from "node:path";
import { buildCommand, buildRouteMap, type FlagParametersForType } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import type { Role } from "../tls/identity.ts";
import type { Listed, PkiFolder } from "../tls/pki-folder.ts";
import { defaultCertsFolder } from "./certs-folder.ts";
import type { CliContext } from "./context.ts";
import { path, text } from "./flags.ts";
import { printable } from "./report.ts";
import { wholeNumber } from "./run-options.ts";
import { table } from "./vm-tables.ts";

interface FolderFlags {
  readonly dir?: string;
  readonly json: boolean;
}

interface MakeFlags extends FolderFlags {
  readonly host?: readonly string[];
  readonly days: number;
}

interface IssueFlags extends MakeFlags {
  readonly role: Role;
}

interface RotateFlags extends FolderFlags {
  readonly ca: boolean;
  readonly dropOld: boolean;
  readonly force: boolean;
}

const DNS_NAME = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/i;

export function hostFlag(value: string): string {
  if (isIP(value) !== 0 || DNS_NAME.test(value)) return value;
  throw new SsihvError("flag_invalid", `--host: "${value.slice(0, 80)}" is no host`, {
    hint: "--host 10.0.0.1 or --host coordinator.example",
  });
}

const HEAD = ["NAME", "ROLE", "EXPIRES", "DAYS", "HOSTS"];

async function shown(listed: readonly Listed[]) {
  const { dateText, daysLeft } = await import("../tls/credentials.ts");
  return listed.map(({ file, identity, notAfter, hosts, fingerprint }) => ({
    name: identity?.name ?? "ca",
    role: identity?.role ?? "ca",
    expires: dateText(notAfter),
    days: daysLeft(notAfter),
    hosts,
    fingerprint,
    file,
  }));
}

async function print(
  context: CliContext,
  json: boolean,
  folder: PkiFolder,
  list: readonly Listed[],
) {
  const rows = await shown(list);
  if (json) {
    const body = rows.map(({ file, ...row }) => ({ ...row, file: join(folder.path, file) }));
    context.process.stdout.write(`${JSON.stringify(body)}\n`);
    return;
  }
  const cells = rows.map(({ name, role, expires, days, hosts }) => {
    return [name, role, expires, String(days), hosts.length === 0 ? "-" : hosts.join(",")];
  });
  context.process.stdout.write(table(HEAD, cells, new Set(["DAYS"])));
}

async function pki(flags: FolderFlags, open: "open" | "create"): Promise<PkiFolder> {
  const { PkiFolder } = await import("../tls/pki-folder.ts");
  return PkiFolder[open](flags.dir ?? defaultCertsFolder());
}

async function init(this: CliContext, flags: MakeFlags): Promise<void> {
  const { json, host = [], days } = flags;
  const folder = await pki(flags, "create");
  const first = [
    await folder.issue({ name: "coordinator", role: "coordinator", hosts: host, days }),
    await folder.issue({ name: "admin", role: "operator", hosts: [], days }),
  ];
  await print(this, json, folder, [...folder.cas(), ...first]);
}

async function issue(this: CliContext, flags: IssueFlags, name: string): Promise<void> {
  const { role, days, host = [], json } = flags;
  const folder = await pki(flags, "open");
  const made = await folder.issue({ name, role, hosts: host, days });
  await print(this, json, folder, [made]);
  if (json) return;
  const words = `bring ${folder.fileOf(name)} and ${folder.caFile} to its holder, by a safe way`;
  this.process.stderr.write(`ssihv: ${printable(words)}\n`);
}

async function rotate(this: CliContext, flags: RotateFlags, name?: string): Promise<void> {
  const { ca, dropOld, json } = flags;
  if (name !== undefined && (ca || dropOld)) {
    throw new SsihvError("flag_invalid", "--ca and --drop-old are about all certificates", {
      hint: "leave the name out",
    });
  }
  if (ca && dropOld && !flags.force) {
    throw new SsihvError("flag_invalid", "--ca and --drop-old are two steps: hosts are between", {
      hint: "ssihv certs rotate --ca, and --drop-old once all hosts have changed over",
    });
  }
  const folder = await pki(flags, "open");
  if ((ca || dropOld) && !flags.force) {
    const { refuseWhileNeeded } = await import("./ca-guard.ts");
    const say = (line: string) => this.process.stderr.write(`ssihv: ${printable(line)}\n`);
    await refuseWhileNeeded(dropOld, say);
  }
  if (ca) await folder.rotateCa();
  if (dropOld) folder.dropOldCas();
  const done = await folder.rotate(name);
  await print(this, json, folder, [...(ca || dropOld ? folder.cas() : []), ...done]);
}

async function list(this: CliContext, flags: FolderFlags): Promise<void> {
  const folder = await pki(flags, "open");
  const all = [...folder.cas(), ...folder.list()];
  await print(this, flags.json, folder, all);
  if (flags.json) return;
  const { expiryWarning } = await import("../tls/credentials.ts");
  for (const { file, notAfter } of all) {
    const warning = expiryWarning(join(folder.path, file), notAfter);
    if (warning !== undefined) this.process.stderr.write(`ssihv: ${printable(warning)}\n`);
  }
}

const FILES_HELP = `The folder is --dir, else $SSIHV_CERTS, else /etc/ssihv/certs (root) or
~/.config/ssihv/certs. In it: ca.key, for coordinators' hosts alone; ca.pem, which every host and
user gets; NAME.pem, a certificate with its private key, for its holder alone (mode 600).

Exit status: 0 done, 2 wrong flags, a folder or file that cannot be used.`;

const dirFlag: FlagParametersForType<FolderFlags, CliContext> = {
  dir: {
    kind: "parsed",
    parse: path("--dir"),
    optional: true,
    brief: "folder of the CA and the certificates",
    placeholder: "FOLDER",
  },
  json: {
    kind: "boolean",
    default: false,
    withNegated: false,
    brief: "one JSON array: [{name, role, expires, days, hosts, fingerprint, file}]",
  },
};

const makeFlags: FlagParametersForType<Omit<MakeFlags, keyof FolderFlags>, CliContext> = {
  host: {
    kind: "parsed",
    parse: hostFlag,
    optional: true,
    variadic: true,
    brief: "DNS name or IP address in the certificate, for clients that are not ssihv",
    placeholder: "HOST",
  },
  days: {
    kind: "parsed",
    parse: wholeNumber("--days", 1, 3650),
    default: "365",
    brief: "how long it is valid",
    placeholder: "N",
  },
};

const initCommand = buildCommand<MakeFlags, [], CliContext>({
  func: init,
  docs: {
    brief: "make a CA, the coordinator's certificate and an operator's (admin)",
    fullDescription: `Makes the cluster's own CA. Nothing is overwritten.

Examples:
  ssihv certs init
  ssihv certs init --dir ./certs --host coordinator.example

${FILES_HELP}`,
  },
  parameters: { flags: { ...dirFlag, ...makeFlags } },
});

const issueCommand = buildCommand<IssueFlags, [name: string], CliContext>({
  func: issue,
  docs: {
    brief: "make a certificate for an operator, a reader or a node",
    fullDescription: `Makes NAME.pem. A role says what its holder may do: operator everything,
read-only look, node run engines (hosts that join with a token get theirs by themselves).

Examples:
  ssihv certs issue alice --role operator
  ssihv certs issue grafana --role read-only --days 90

${FILES_HELP}`,
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [{ parse: text, brief: "a name of a-z, 0-9 and '-'", placeholder: "NAME" }],
    },
    flags: {
      ...dirFlag,
      ...makeFlags,
      role: {
        kind: "enum",
        values: ["operator", "read-only", "node", "coordinator"],
        brief: "what its holder may do",
      },
    },
  },
});

const rotateCommand = buildCommand<RotateFlags, [name?: string], CliContext>({
  func: rotate,
  docs: {
    brief: "replace certificates, or the CA, by new ones while everything runs",
    fullDescription: `Makes new keys and certificates for the same holders, in the same files; a
coordinator that runs takes its own within seconds, and what is connected stays connected.

--ca makes a new CA. It is also signed by the old one, so whoever has the old ca.pem goes on until
he has the new one. Hosts that are connected take it within seconds by themselves (CERT in ssihv
cluster status); users need theirs brought. Once all have it, --drop-old ends the old CA for good:
whoever still has one of its certificates is locked out. Both are refused while hosts are not over.

Examples:
  ssihv certs rotate                              all certificates that were made here
  ssihv certs rotate alice
  ssihv certs rotate --ca                         ... bring users ca.pem and their files ...
  ssihv certs rotate --drop-old

${FILES_HELP}`,
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        { parse: text, optional: true, brief: "only this certificate", placeholder: "NAME" },
      ],
    },
    flags: {
      ...dirFlag,
      ca: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "make a new CA first, believed through the old one",
      },
      dropOld: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "believe the newest CA only",
      },
      force: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "though hosts are locked out by it, and must join again",
      },
    },
  },
});

const listCommand = buildCommand<FolderFlags, [], CliContext>({
  func: list,
  docs: {
    brief: "the CA and the certificates in the folder, and when they expire",
    fullDescription: `Lists what ssihv certs made here; warns 30 days before an end.

${FILES_HELP}`,
  },
  parameters: { flags: dirFlag },
});

export const certsCommands = buildRouteMap<"init" | "issue" | "rotate" | "list", CliContext>({
  routes: {
    init: initCommand,
    issue: issueCommand,
    rotate: rotateCommand,
    list: listCommand,
  },
  docs: { brief: "the cluster's own CA and certificates: make, renew, list" },
});
