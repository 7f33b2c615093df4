// The coordinator put together: state, hosts, VMs, and the four ways in: operators' API over mTLS,
// agents over mTLS, the door for hosts that join, and the API on a Unix socket of this host.
// Running guests do not need it: it may be killed and started again at any time.

import { rmSync } from "node:fs";
import { dirname } from "node:path";

import type { CoordinatorPlace } from "../src/control/messages.ts";
import { MetricsServer } from "../src/telemetry/metrics-server.ts";
import { MtlsListener } from "../src/tls/mtls.ts";
import { PkiFolder, secretFolder } from "../src/tls/pki-folder.ts";
import { buildApi, metricsOf } from "./api.ts";
import { Consoles } from "./consoles.ts";
import { Events } from "./events.ts";
import { Gateway, type HttpServer, serveUnix } from "./gateway.ts";
import { HostCertificates } from "./host-certificates.ts";
import { Hosts } from "./hosts.ts";
import { JoinDoor } from "./join-door.ts";
import { Numbers } from "./numbers.ts";
import { ownCredentials, watchCertificate } from "./own-certificate.ts";
import { TypedStore } from "./records.ts";
import { SqliteStore, stateFile } from "./sqlite-store.ts";
import type { Store } from "./store.ts";
import { Tokens } from "./tokens.ts";
import { Vms } from "./vms.ts";

export interface CoordinatorOptions {
  readonly version: string;
  /** An address of this host. Agents use the next port, joining hosts the one after; 0: any. */
  readonly host: string;
  readonly port: number;
  /** What other hosts reach this one by. */
  readonly advertise: string;
  /** Folder of `ssihv certs`, with coordinator.pem. */
  readonly certs: string;
  /** How long hosts' certificates are valid. */
  readonly hostCertificateMs: number;
  readonly stateFolder: string;
  /** Path of the local admin socket. */
  readonly adminSocket: string;
  readonly heartbeatMs: number;
  readonly silenceMs: number;
  readonly portBase: number;
  /** Where metrics are served without TLS, too; absent: on the API alone. */
  readonly metrics?: { readonly host: string; readonly port: number };
  /** Lines for the log. */
  say(text: string): void;
}

/** Of a coordinator that leads others, which stand by. */
export interface Shared {
  readonly store: Store;
  /** Where agents reach all of them. */
  coordinators(): readonly CoordinatorPlace[];
}

export class Coordinator {
  readonly apiPort: number;
  readonly agentPort: number;
  readonly joinPort: number;
  private readonly parts: Running;

  private constructor(parts: Running) {
    this.parts = parts;
    this.apiPort = parts.api.port;
    this.agentPort = parts.agents.port;
    this.joinPort = parts.door.port;
  }

  /** Absent `shared`: the only one, its state in a file of this host. */
  static async start(options: CoordinatorOptions, shared?: Shared): Promise<Coordinator> {
    return new Coordinator(await startAll(options, shared));
  }

  /** What `Shared.coordinators` gives is another list now. */
  tellCoordinators(): void {
    this.parts.hosts.tellCoordinators();
  }

  async close(): Promise<void> {
    const { api, agents, door, gateway, local, hosts, store, timer, adminSocket } = this.parts;
    clearInterval(timer);
    this.parts.metrics?.close();
    api.close();
    agents.close();
    hosts.close();
    await door.close();
    await gateway.close();
    await local.stop(true);
    rmSync(adminSocket, { force: true });
    store.close();
  }
}

interface Running {
  readonly store: Store;
  readonly hosts: Hosts;
  readonly api: MtlsListener;
  readonly agents: MtlsListener;
  readonly door: JoinDoor;
  readonly gateway: Gateway;
  readonly local: HttpServer;
  readonly adminSocket: string;
  readonly metrics: MetricsServer | undefined;
  readonly timer: ReturnType<typeof setInterval>;
}

function ownStore(stateFolder: string): Store {
  secretFolder(stateFolder);
  return new SqliteStore(stateFile(stateFolder));
}

async function startAll(options: CoordinatorOptions, shared?: Shared): Promise<Running> {
  const { host, port, say } = options;
  const pki = PkiFolder.open(options.certs);
  const load = () => ownCredentials(pki);
  let credentials = load();
  // Opened first: it is locked, so all that follows is the only coordinator's of this state.
  const store = shared?.store ?? ownStore(options.stateFolder);
  const events = new Events();
  const typed = new TypedStore(store);
  const certificates = new HostCertificates(pki, options.hostCertificateMs, say);
  const hosts = new Hosts(typed, events, {
    ...{ ...options, certificates },
    coordinators: () => shared?.coordinators() ?? [],
  });
  const vms = new Vms(typed, hosts, events, options);
  hosts.watcher = vms;

  const refused = (what: string) => (from: string, why: string) =>
    say(`${what}: turned away ${from}: ${why}`);
  const next = (offset: number) => (port === 0 ? 0 : port + offset);
  const agents = await MtlsListener.open({
    ...{ hostname: host, port: next(1), credentials, roles: ["node"] },
    onConnection: (connection) => hosts.attach(connection),
    onRefused: refused("agents"),
  });
  const door: JoinDoor = new JoinDoor(host, next(2), credentials, (asked) => tokens.redeem(asked));
  const tokens = new Tokens(typed, events, {
    certificates,
    onJoined: (host) => hosts.onJoined(host),
    holdRenewals: (host) => hosts.holdRenewals(host),
    agentPort: agents.port,
    joinHost: options.advertise,
    joinPort: door.port,
  });
  const parts = {
    ...{ hosts, vms, tokens, events, version: options.version },
    consoles: new Consoles(vms),
    numbers: new Numbers(vms),
    startedAt: new Date().toISOString(),
    certificateExpires: () => credentials.expires,
  };
  const operator = buildApi(parts, "operator");
  const readOnly = buildApi(parts, "read-only");
  const { adminSocket } = options;
  // Whoever may open a socket in there is an operator: this user alone.
  secretFolder(dirname(adminSocket));
  const gateway = new Gateway(adminSocket, { operator, "read-only": readOnly });
  const api = await MtlsListener.open({
    ...{ hostname: host, port, credentials, roles: ["operator", "read-only"] },
    onConnection: (connection) => gateway.pass(connection),
    onRefused: refused("API"),
  });
  const local = serveUnix(adminSocket, operator);
  const metrics = options.metrics && MetricsServer.open(options.metrics, () => metricsOf(parts));
  const timer = watchCertificate(
    pki,
    () => {
      credentials = load();
      for (const listener of [api, agents]) listener.replaceCredentials(credentials);
      hosts.tellTrust();
      say(`new certificate, valid until ${credentials.expires.toISOString()}`);
    },
    say,
  );
  return {
    ...{ store, hosts, api, agents, door, gateway, local, timer, adminSocket, metrics },
  };
}
