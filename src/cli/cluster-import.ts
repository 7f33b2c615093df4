// `ssihv cluster import`: from one coordinator with its state in a file to several over an etcd.

import { resolve } from "node:path";
import { buildCommand } from "@stricli/core";

import type { CliContext } from "./context.ts";
import { stateFolder } from "./coordinator.ts";
import { path } from "./flags.ts";
import { printable } from "./report.ts";
import { ETCD_FLAGS, type EtcdFlags, etcdOf, LEASE_SECONDS } from "./store-flag.ts";

interface ImportFlags extends EtcdFlags {
  readonly state?: string;
}

function count(value: number, one: string): string {
  return `${value} ${one}${value === 1 ? "" : "s"}`;
}

async function importState(this: CliContext, flags: ImportFlags): Promise<void> {
  const { importIntoEtcd } = await import("../../coordinator/etcd-import.ts");
  const folder = resolve(flags.state ?? stateFolder("coordinator"));
  const { hosts, vms, tokens, written } = await importIntoEtcd({
    ...{ etcd: etcdOf(flags), stateFolder: folder, leaseSeconds: LEASE_SECONDS },
    say: (line) => this.process.stderr.write(`ssihv: ${printable(line)}\n`),
  });
  const records = [count(hosts, "host"), count(vms, "VM")];
  if (tokens > 0) records.push(count(tokens, "join token"));
  const where =
    written === 0 && hosts + vms + tokens > 0 ? "in this etcd already" : "in this etcd now";
  this.process.stdout.write(
    printable(`${records.join(", ")}: ${where}; ${folder} is as it was.\n${NEXT}`),
  );
}

const NEXT = `\
Next: ssihv coordinator --store .. with the --listen and the folder of ssihv certs that it had; when
its hosts are up, the others, with the same folder. None may run without --store any more.
`;

export const importCommand = buildCommand<ImportFlags, [], CliContext>({
  func: importState,
  docs: {
    brief: "bring the state of one coordinator into an etcd, for several",
    fullDescription: `For a coordinator that ran without --store, and is to be one of several. It is
ended first; VMs run on. Its hosts, VMs, which of them run and where, and join tokens that have not
expired are written to an etcd that has no state yet. Its own file stays as it is, and may not be
used any more: a coordinator that starts with it tells VMs that it does not know to stop.

Doing it again does no harm. An import that was cut goes on where it was, and until then no
coordinator leads there. Where the etcd has a state of its own, such as one that was brought there
and has changed since, nothing is written.

Examples, on the coordinator's host:
  systemctl stop ssihv-coordinator
  ssihv cluster import --store etcd=https://10.0.0.1:2379,https://10.0.0.2:2379 \\
    --store-cert etcd.pem --store-key etcd.key --store-cacert etcd-ca.pem
  ssihv cluster import --store etcd=http://127.0.0.1:2379 --state ~/.local/state/ssihv/coordinator

Exit status: 0 all of it is there, 2 wrong flags or certificates, 10 the file or the etcd cannot be
used, a coordinator runs with either, or the etcd has a state of its own.`,
    customUsage: ["--store etcd=URL,URL [--state FOLDER] [flags]"],
  },
  parameters: {
    flags: {
      ...ETCD_FLAGS,
      state: {
        kind: "parsed",
        parse: path("--state"),
        optional: true,
        brief: "folder of the coordinator's state [/var/lib/ssihv/coordinator]",
        placeholder: "FOLDER",
      },
    },
  },
});
