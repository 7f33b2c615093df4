// `ssihv coordinator`: the cluster's control plane, until a signal ends it. Guests go on without.

import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { buildCommand, type FlagParametersForType } from "@stricli/core";

import type { CoordinatorOptions } from "../../coordinator/coordinator.ts";
import type { EtcdOptions } from "../../coordinator/etcd-client.ts";
import { SsihvError } from "../base/errors.ts";
import { parseLongMs } from "../config/duration.ts";
import { versionLine } from "../node/build-info.ts";
import { type HostPort, isAnyHost, parseListen } from "../node/join-address.ts";
import { tellReady } from "../service/readiness.ts";
import { certsFolder } from "./certs-folder.ts";
import type { CliContext } from "./context.ts";
import { coordinatorSocket } from "./coordinator-address.ts";
import { path, text } from "./flags.ts";
import { printable } from "./report.ts";
import { durationFlag, wholeNumber } from "./run-options.ts";
import { etcdOf, LEASE_SECONDS, STORE_FLAGS, type StoreFlags } from "./store-flag.ts";

export interface CoordinatorFlags extends StoreFlags {
  readonly listen: HostPort;
  readonly advertise?: string;
  readonly certs?: string;
  readonly state?: string;
  readonly socket?: string;
  readonly heartbeat: number;
  readonly silence: number;
  readonly certLife: number;
  readonly vmPorts: number;
  readonly metrics?: HostPort;
}

const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

/** Where the coordinator or an agent keeps what must outlive it. */
export function stateFolder(what: "coordinator" | "node", env = process.env, uid = ownUid()) {
  if (uid === 0) return `/var/lib/ssihv/${what}`;
  const state = env["XDG_STATE_HOME"] ?? "";
  return join(state === "" ? join(env["HOME"] ?? "/", ".local", "state") : state, "ssihv", what);
}

const LIFE_MS_MIN = 1000;
const LIFE_MS_MAX = 3650 * 86_400_000;

function lifeFlag(value: string): number {
  const ms = parseLongMs(value, "--cert-life");
  if (ms >= LIFE_MS_MIN && ms <= LIFE_MS_MAX) return ms;
  throw new SsihvError("flag_invalid", "--cert-life: from 1s to 3650d", {
    hint: "for example --cert-life 90d",
  });
}

function ownUid(): number {
  return process.getuid?.() ?? 0;
}

async function coordinator(this: CliContext, flags: CoordinatorFlags): Promise<void> {
  if (flags.silence < 2 * flags.heartbeat) {
    throw new SsihvError("flag_invalid", "--silence must be at least twice --heartbeat", {
      hint: "for example --heartbeat 1s --silence 5s",
    });
  }
  const { host, port } = flags.listen;
  const say = (line: string) => this.process.stderr.write(`ssihv: ${printable(line)}\n`);
  const etcd = etcdOf(flags);
  const options: CoordinatorOptions = {
    version: versionLine(),
    ...{ host, port },
    advertise: flags.advertise ?? (isAnyHost(host) ? hostname() : host),
    certs: flags.certs ?? certsFolder(process.env, ownUid()),
    hostCertificateMs: flags.certLife,
    stateFolder: resolve(flags.state ?? stateFolder("coordinator")),
    adminSocket: resolve(flags.socket ?? coordinatorSocket()),
    heartbeatMs: Math.ceil(flags.heartbeat / 1000),
    silenceMs: Math.ceil(flags.silence / 1000),
    portBase: flags.vmPorts,
    ...(flags.metrics !== undefined && { metrics: flags.metrics }),
    say,
  };
  if (etcd !== undefined) return await oneOfSeveral(options, etcd, flags.lease ?? LEASE_SECONDS);
  const { Coordinator } = await import("../../coordinator/coordinator.ts");
  const running = await Coordinator.start(options);
  const { apiPort, agentPort, joinPort } = running;
  say(`coordinator: API on port ${apiPort}, agents ${agentPort}, joining hosts ${joinPort}`);
  tellReady(say);
  const signal = await endingSignal();
  await running.close();
  say(`coordinator: ended by ${signal}; VMs go on`);
}

/** Ends with a signal, or rejects where it cannot go on. */
async function oneOfSeveral(options: CoordinatorOptions, etcd: EtcdOptions, leaseSeconds: number) {
  const { EtcdCoordinator } = await import("../../coordinator/etcd-coordinator.ts");
  const running = new EtcdCoordinator({ ...options, etcd, leaseSeconds });
  tellReady(options.say);
  const signal = await Promise.race([endingSignal(), running.done]);
  await running.close();
  options.say(`coordinator: ended by ${signal}; VMs go on`);
}

async function endingSignal(): Promise<NodeJS.Signals> {
  const ended = Promise.withResolvers<NodeJS.Signals>();
  for (const signal of ENDING) process.on(signal, ended.resolve);
  const signal = await ended.promise;
  for (const each of ENDING) process.off(each, ended.resolve);
  return signal;
}

/** `ssihv install coordinator` keeps them for the service. */
export const COORDINATOR_FLAGS: FlagParametersForType<CoordinatorFlags, CliContext> = {
  listen: {
    kind: "parsed",
    parse: (value: string) => parseListen(value, "--listen"),
    default: "0.0.0.0:7780",
    brief: "address and first of three ports",
    placeholder: "HOST:PORT",
  },
  advertise: {
    kind: "parsed",
    parse: text,
    optional: true,
    brief: "what other hosts reach this one by [the --listen address, or this host's name]",
    placeholder: "HOST",
  },
  certs: {
    kind: "parsed",
    parse: path("--certs"),
    optional: true,
    brief: "folder of ssihv certs init [/etc/ssihv/certs]",
    placeholder: "FOLDER",
  },
  state: {
    kind: "parsed",
    parse: path("--state"),
    optional: true,
    brief: "folder of what must outlive it [/var/lib/ssihv/coordinator]",
    placeholder: "FOLDER",
  },
  socket: {
    kind: "parsed",
    parse: path("--socket"),
    optional: true,
    brief: "the local admin socket [where ssihv on this host looks for it]",
    placeholder: "FILE",
  },
  ...STORE_FLAGS,
  certLife: {
    kind: "parsed",
    parse: lifeFlag,
    default: "365d",
    brief: "how long hosts' certificates are valid; they are renewed after two thirds of it",
    placeholder: "TIME",
  },
  heartbeat: {
    kind: "parsed",
    parse: durationFlag("--heartbeat"),
    default: "1s",
    brief: "how often agents say that they live",
    placeholder: "TIME",
  },
  silence: {
    kind: "parsed",
    parse: durationFlag("--silence"),
    default: "5s",
    brief: "a host that is not heard for so long is reported silent",
    placeholder: "TIME",
  },
  metrics: {
    kind: "parsed",
    parse: (value: string) => parseListen(value, "--metrics"),
    optional: true,
    brief: "serve metrics there without TLS, /metrics for Prometheus [only on the API]",
    placeholder: "ADDRESS:PORT",
  },
  vmPorts: {
    kind: "parsed",
    parse: wholeNumber("--vm-ports", 1024, 49_000),
    default: "20000",
    brief: "VMs use this port of their hosts and those after it, 16 for each",
    placeholder: "PORT",
  },
};

export const coordinatorCommand = buildCommand<CoordinatorFlags, [], CliContext>({
  func: coordinator,
  docs: {
    brief: "run the cluster's coordinator",
    fullDescription: `Keeps which hosts and VMs there are, places and starts VMs, and answers
operators. It may be ended, killed and started again at any time: VMs go on meanwhile, and agents
come back by themselves.

Three ports in a row are used: the API (TLS with a certificate of the cluster's CA, roles operator
and read-only; GET /openapi.json describes it), agents (role node), and hosts that join with a
token. On this host the API is on a Unix socket that only its user can open, too.

With --store etcd=.. several may run, each on a host of its own: one leads, the others stand by
and say who does, and when it dies another leads within --lease. Each needs the whole folder of
ssihv certs, brought there by a safe way, also after ssihv certs rotate; a leader without ca.key
lets no host join and renews none. Without etcd's quorum nothing can be asked or changed; VMs go
on. The etcd begins empty: ssihv cluster import brings what a file of --state holds there.

Examples:
  ssihv certs init
  ssihv coordinator --listen 10.0.0.1:7780
  ssihv cluster token                             ... on this host, from another shell
  ssihv install coordinator                       the same as a systemd service

Exit status: 0 ended by a signal, 2 wrong flags or certificates, 10 the state cannot be used.`,
  },
  parameters: { flags: COORDINATOR_FLAGS },
});
