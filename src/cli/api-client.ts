// The coordinator's API as commands call it: over its local socket, or over mTLS with the user's
// certificate. Types are those of the API's own schemas; an error comes back as the SsihvError it
// was there.

import { dirname, join } from "node:path";

import type { Host, Place, Status, Token, Vm } from "../../coordinator/api-schemas.ts";
import { SsihvError } from "../base/errors.ts";
import type { BalloonAnswer, HeatAnswer, StatsAnswer } from "../control/vm-answers.ts";
import type { VmSpec } from "../control/vm-spec.ts";
import { formatAddress, type HostPort } from "../node/join-address.ts";
import type { PagesShown, VmShown } from "../node/vm-view.ts";
import { ApiEndpoints } from "./api-endpoints.ts";
import { defaultCertsFolder } from "./certs-folder.ts";
import { type CoordinatorAddress, findCoordinator } from "./coordinator-address.ts";

export type { Host, Place, Status, Token, Vm };

export interface ApiFlags {
  readonly coordinator?: CoordinatorAddress;
  readonly cert?: string;
}

/** Starting a VM may take as long as its hosts take to accept. */
const ANSWER_MS = 60_000;

export interface ConsoleStream {
  readonly body: ReadableStream<Uint8Array>;
  /** Undefined: this console can only be read. */
  readonly writer: string | undefined;
}

export class ApiClient {
  private readonly endpoints: ApiEndpoints;

  private constructor(endpoints: ApiEndpoints) {
    this.endpoints = endpoints;
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
      const options = { unix: address.path };
      const local = { where: address.path, base: "http://coordinator", options };
      return new ApiClient(new ApiEndpoints(local));
    }
    const { loadCredentials } = await import("../tls/credentials.ts");
    const { clientTls } = await import("../tls/mtls.ts");
    const own = process.env["SSIHV_CERT"] ?? "";
    const file = cert ?? (own === "" ? join(defaultCertsFolder(), "admin.pem") : own);
    const credentials = loadCredentials(file, join(dirname(file), "ca.pem"));
    const { target, others = [] } = address;
    const endpointOf = ({ host, port }: HostPort) => {
      const where = formatAddress(host, port);
      return { where, base: `https://${where}`, options: { tls: clientTls(credentials) } };
    };
    const endpoints = new ApiEndpoints(endpointOf(target), ...others.map(endpointOf));
    // Where none of several leads, that is told before anything is made of the request.
    await endpoints.find();
    return new ApiClient(endpoints);
  }

  status(): Promise<Status> {
    return this.json("GET", "/v1/status");
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
  read(
    path: string,
    options: { readonly lastEventId?: string; readonly signal: AbortSignal },
  ): Promise<Response> {
    const { lastEventId, signal } = options;
    return this.endpoints.ask(path, {
      ...{ method: "GET", signal, timeout: false },
      ...(lastEventId !== undefined && { headers: { "last-event-id": lastEventId } }),
    });
  }

  private async json<T>(method: string, path: string, body?: unknown): Promise<T> {
    return (await (await this.call(method, path, body)).json()) as T;
  }

  private call(
    method: string,
    path: string,
    body?: unknown,
    limit: AbortSignal | null = AbortSignal.timeout(ANSWER_MS),
  ): Promise<Response> {
    return this.endpoints.call(path, {
      method,
      ...(body !== undefined && {
        body: JSON.stringify(body),
        headers: { "content-type": "application/json" },
      }),
      ...(limit === null ? { timeout: false } : { signal: limit }),
    });
  }
}

function vmPath(name: string): string {
  return `/v1/vms/${encodeURIComponent(name)}`;
}
