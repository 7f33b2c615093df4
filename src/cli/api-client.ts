// The coordinator's API as commands call it: over its local socket, or over mTLS with the user's
// certificate. Types are those of the API's own schemas; an error comes back as the SsihvError it
// was there.

import { dirname, join } from "node:path";

import type { ApiError, Host, Place, Status, Token, Vm } from "../../coordinator/api-schemas.ts";
import { type ErrorCode, isErrorCode, SsihvError } from "../base/errors.ts";
import type { BalloonAnswer, HeatAnswer, StatsAnswer } from "../control/vm-answers.ts";
import type { VmSpec } from "../control/vm-spec.ts";
import { formatAddress } from "../node/join-address.ts";
import type { PagesShown, VmShown } from "../node/vm-view.ts";
import { defaultCertsFolder } from "./certs-folder.ts";
import { type CoordinatorAddress, findCoordinator } from "./coordinator-address.ts";

export type { Host, Place, Status, Token, Vm };

export interface ApiFlags {
  readonly coordinator?: CoordinatorAddress;
  readonly cert?: string;
}

/** Who of several leads is asked of all at once, and one of them may be switched off. */
const PROBE_MS = 5000;
/** Starting a VM may take as long as its hosts take to accept. */
const ANSWER_MS = 60_000;

export interface ConsoleStream {
  readonly body: ReadableStream<Uint8Array>;
  /** Undefined: this console can only be read. */
  readonly writer: string | undefined;
}

export class ApiClient {
  /** For messages. */
  readonly where: string;
  private readonly base: string;
  private readonly options: BunFetchRequestInit;

  private constructor(where: string, base: string, options: BunFetchRequestInit) {
    this.where = where;
    this.base = base;
    this.options = options;
  }

  /** Undefined: none is named, and none is here. */
  static async find(flags: ApiFlags): Promise<ApiClient | undefined> {
    const address = findCoordinator(flags.coordinator);
    return address === undefined ? undefined : await ApiClient.at(address, flags.cert);
  }

  /** Throws `coordinator_unreachable` where none is named and none is here. */
  static async open(flags: ApiFlags): Promise<ApiClient> {
    const api = await ApiClient.find(flags);
    if (api !== undefined) return api;
    throw new SsihvError("coordinator_unreachable", "no coordinator runs on this host", {
      hint: "start one (ssihv coordinator), or name one: --coordinator HOST:PORT",
    });
  }

  static async at(address: CoordinatorAddress, cert?: string): Promise<ApiClient> {
    if (address.kind === "unix") {
      return new ApiClient(address.path, "http://coordinator", { unix: address.path });
    }
    const { loadCredentials } = await import("../tls/credentials.ts");
    const { clientTls } = await import("../tls/mtls.ts");
    const own = process.env["SSIHV_CERT"] ?? "";
    const file = cert ?? (own === "" ? join(defaultCertsFolder(), "admin.pem") : own);
    const credentials = loadCredentials(file, join(dirname(file), "ca.pem"));
    const { target, others = [] } = address;
    const clients = [target, ...others].map(({ host, port }) => {
      const where = formatAddress(host, port);
      return new ApiClient(where, `https://${where}`, { tls: clientTls(credentials) });
    });
    return await leading(clients);
  }

  status(): Promise<Status> {
    return this.json("GET", "/v1/status");
  }

  /** Resolves where it answers for the cluster. */
  async probe(signal: AbortSignal): Promise<ApiClient> {
    await this.call("GET", "/v1/status", undefined, signal);
    return this;
  }

  hosts(): Promise<Host[]> {
    return this.json("GET", "/v1/hosts");
  }

  async removeHost(name: string): Promise<void> {
    await this.call("DELETE", `/v1/hosts/${encodeURIComponent(name)}`);
  }

  token(seconds: number, host: string | undefined, rejoin: boolean): Promise<Token> {
    const wish = { seconds, ...(host !== undefined && { host }), ...(rejoin && { rejoin }) };
    return this.json("POST", "/v1/tokens", wish);
  }

  vms(): Promise<Vm[]> {
    return this.json("GET", "/v1/vms");
  }

  vm(name: string): Promise<Vm> {
    return this.json("GET", vmPath(name));
  }

  create(spec: VmSpec): Promise<Vm> {
    return this.json("POST", "/v1/vms", spec);
  }

  change(spec: VmSpec): Promise<Vm> {
    return this.json("PUT", vmPath(spec.name), spec);
  }

  start(name: string): Promise<Vm> {
    return this.json("POST", `${vmPath(name)}/start`);
  }

  stop(name: string): Promise<Vm> {
    return this.json("POST", `${vmPath(name)}/stop`);
  }

  async destroy(name: string, force: boolean): Promise<void> {
    await this.call("DELETE", `${vmPath(name)}${force ? "?force=true" : ""}`);
  }

  /** Numbers of a running VM's engines. */
  engines(name: string): Promise<VmShown> {
    return this.json("GET", `${vmPath(name)}/engines`);
  }

  /** Every counter of a running VM's engines. */
  stats(name: string): Promise<StatsAnswer> {
    return this.json("GET", `${vmPath(name)}/stats`);
  }

  heat(name: string): Promise<HeatAnswer> {
    return this.json("GET", `${vmPath(name)}/heat`);
  }

  balloon(name: string, bytes: number): Promise<BalloonAnswer> {
    return this.json("PUT", `${vmPath(name)}/balloon`, { bytes });
  }

  pages(name: string, gpa: number, count: number): Promise<PagesShown> {
    return this.json("GET", `${vmPath(name)}/pages?gpa=${gpa}&count=${count}`);
  }

  async openConsole(name: string, write: boolean): Promise<ConsoleStream> {
    const path = `${vmPath(name)}/console${write ? "?write=true" : ""}`;
    const response = await this.call("GET", path, undefined, null);
    const writer = response.headers.get("x-ssihv-writer") ?? undefined;
    return { body: response.body ?? new ReadableStream(), writer };
  }

  async type(name: string, writer: string, bytes: Uint8Array): Promise<void> {
    const data = Buffer.from(bytes).toString("base64");
    await this.call("POST", `${vmPath(name)}/console`, { writer, data });
  }

  /** An answer as it comes, an error's too; whoever asks ends it. */
  async read(
    path: string,
    options: { readonly lastEventId?: string; readonly signal: AbortSignal },
  ): Promise<Response> {
    const { lastEventId, signal } = options;
    try {
      return await fetch(`${this.base}${path}`, {
        ...this.options,
        ...(lastEventId !== undefined && { headers: { "last-event-id": lastEventId } }),
        ...{ signal, timeout: false },
      });
    } catch (cause) {
      throw unreachable(this.where, cause);
    }
  }

  private async json<T>(method: string, path: string, body?: unknown): Promise<T> {
    return (await (await this.call(method, path, body)).json()) as T;
  }

  private async call(
    method: string,
    path: string,
    body?: unknown,
    limit: AbortSignal | null = AbortSignal.timeout(ANSWER_MS),
  ): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(`${this.base}${path}`, {
        ...this.options,
        method,
        ...(body !== undefined && {
          body: JSON.stringify(body),
          headers: { "content-type": "application/json" },
        }),
        ...(limit === null ? { timeout: false } : { signal: limit }),
      });
    } catch (cause) {
      throw unreachable(this.where, cause);
    }
    if (response.ok) return response;
    throw await errorIn(response, this.where);
  }
}

/** Why one of several does not answer for the cluster: other reasons say more. */
const SAYS_LITTLE: readonly ErrorCode[] = ["leader_elsewhere", "coordinator_unreachable"];

/** The one that answers for the cluster; throws what says most where none does. */
async function leading(clients: readonly ApiClient[]): Promise<ApiClient> {
  const [only] = clients;
  if (clients.length === 1 && only !== undefined) return only;
  const enough = new AbortController();
  const limit = AbortSignal.any([enough.signal, AbortSignal.timeout(PROBE_MS)]);
  try {
    return await Promise.any(clients.map((client) => client.probe(limit)));
  } catch (error) {
    const { errors } = error as AggregateError;
    // The one that leads knows most; those that stand by may not know yet that it does not.
    const rank = (each: unknown) =>
      each instanceof SsihvError ? SAYS_LITTLE.indexOf(each.code) : SAYS_LITTLE.length;
    throw errors.toSorted((a, b) => rank(a) - rank(b))[0];
  } finally {
    enough.abort();
  }
}

function vmPath(name: string): string {
  return `/v1/vms/${encodeURIComponent(name)}`;
}

function unreachable(where: string, cause: unknown): SsihvError {
  return new SsihvError("coordinator_unreachable", `the coordinator at ${where} does not answer`, {
    hint:
      "is it running, is the address right, and the certificate of its CA? " +
      "VMs of this host are seen without it: ssihv vm list --local",
    cause,
  });
}

async function errorIn(response: Response, where: string): Promise<SsihvError> {
  const body = (await response.json().catch(() => ({}))) as Partial<ApiError>;
  const { code = "", message, hint } = body.error ?? {};
  const words = message ?? `the coordinator at ${where} answered with status ${response.status}`;
  return new SsihvError(isErrorCode(code) ? code : "coordinator_unreachable", words, {
    ...(hint !== undefined && { hint }),
  });
}
