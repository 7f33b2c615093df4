// The coordinator put together: state, hosts, VMs, and the four ways in: operators' API over mTLS,
// agents over mTLS, the door for hosts that join, and the API on a Unix socket of this host.
// Running guests do not need it: it may be killed and started again at any time.

import { rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";

import { SsihvError } from "../src/base/errors.ts";
import { MetricsServer } from "../src/telemetry/metrics-server.ts";
import { type Credentials, loadCredentials, readPem } from "../src/tls/credentials.ts";
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
import { TypedStore } from "./records.ts";
import { SqliteStore } from "./sqlite-store.ts";
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

/** Name of its certificate in the folder. */
const OWN = "coordinator";
/** New certificates are looked for this often. */
const LOOK_MS = 2000;

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

  static async start(options: CoordinatorOptions): Promise<Coordinator> {
    return new Coordinator(await startAll(options));
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
  readonly store: SqliteStore;
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

async function startAll(options: CoordinatorOptions): Promise<Running> {
  const { host, port, say } = options;
  const pki = PkiFolder.open(options.certs);
  const load = () => ownCredentials(pki);
  let credentials = load();
  secretFolder(options.stateFolder);
  // Opened first: it is locked, so all that follows is the only coordinator's of this state.
  const store = new SqliteStore(join(options.stateFolder, "state.sqlite"));
  const events = new Events();
  const typed = new TypedStore(store);
  const certificates = new HostCertificates(pki, options.hostCertificateMs, say);
  const hosts = new Hosts(typed, events, { ...options, certificates });
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
  const door: JoinDoor = new JoinDoor(host, next(2), credentials, () => tokens);
  const tokens = new Tokens(typed, events, {
    certificates,
    onJoined: (host) => hosts.onJoined(host),
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

function ownCredentials(pki: PkiFolder): Credentials {
  const file = pki.fileOf(OWN);
  const credentials = loadCredentials(file, pki.caFile);
  if (credentials.identity.role === "coordinator") return credentials;
  throw new SsihvError("certificate_invalid", `${file} is not a coordinator's certificate`, {
    hint: "ssihv certs init makes one",
  });
}

/** By what the files say, not by notification: they may lie on any file system. */
function watchCertificate(
  pki: PkiFolder,
  onChange: () => void,
  say: (text: string) => void,
): ReturnType<typeof setInterval> {
  const stamp = () => `${statSync(pki.fileOf(OWN)).ino} ${readPem(pki.caFile, false).length}`;
  let seen = stamp();
  return setInterval(() => {
    try {
      const now = stamp();
      if (now === seen) return;
      onChange();
      seen = now;
    } catch (error) {
      // The old certificate is still good: it is tried again, and told each time.
      say(`new certificate: ${error instanceof Error ? error.message : String(error)}`);
    }
  }, LOOK_MS);
}
