// etcd over the JSON gateway of its own port (v3): ranges, transactions and leases, at whichever of
// its members answers. What may be asked again is the caller's to know: a request that failed may
// have been carried out.
// Names and bodies: etcd's rpc.proto; bytes are base64 and 64-bit numbers are text in its JSON.

import { messageOf, SsihvError } from "../src/base/errors.ts";
import { readPem } from "../src/tls/credentials.ts";

export interface EtcdOptions {
  /** Of the members: http://HOST:PORT or https://HOST:PORT. */
  readonly endpoints: readonly string[];
  /** Files, as etcdctl's --cert, --key and --cacert. */
  readonly cert?: string;
  readonly key?: string;
  readonly cacert?: string;
  /** Before all keys; ends without a slash. */
  readonly prefix: string;
}

export interface KeyValue {
  readonly key: string;
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
}

export interface Compare {
  readonly key: string;
  /** Of the key as it is; 0: there is none. */
  readonly target: "MOD" | "CREATE";
  readonly revision: number;
}

export type Operation =
  | { readonly put: string; readonly value: string; readonly lease?: string }
  | { readonly remove: string }
  | { readonly get: string };

/** One member's time to answer, an election of etcd's own included in all of them. */
const ATTEMPT_MS = 2000;
const PAGE = 256;

interface WireKeyValue {
  readonly key: string;
  readonly value?: string;
  readonly create_revision: string;
  readonly mod_revision: string;
}

interface WireRange {
  readonly header?: { readonly revision?: string };
  readonly kvs?: readonly WireKeyValue[];
  readonly more?: boolean;
}

const encode = (text: string) => Buffer.from(text, "utf8").toString("base64");
const decode = (text: string | undefined) => Buffer.from(text ?? "", "base64").toString("utf8");

function keyValue(wire: WireKeyValue): KeyValue {
  return {
    key: decode(wire.key),
    value: decode(wire.value),
    createRevision: Number(wire.create_revision),
    modRevision: Number(wire.mod_revision),
  };
}

/** The first key behind all that begin with `prefix`, which ends with a slash. */
function endOf(prefix: string): string {
  return `${prefix.slice(0, -1)}0`;
}

/** No member answers, or none has a quorum; what was asked for may have been done. */
export class EtcdSilent extends SsihvError {
  constructor(reasons: readonly string[]) {
    super("store_failed", `etcd does not answer (${reasons.join("; ")})`, {
      hint: "does etcd run, and most of its members? VMs go on; the rest does when it is back",
    });
  }
}

/** It answered that this cannot be done: no other member would say otherwise. */
class Refused extends Error {}

export class EtcdClient {
  private readonly endpoints: readonly string[];
  private readonly files: readonly (readonly ["cert" | "key" | "ca", string])[];
  /** As read last. */
  private tls: BunFetchRequestInitTLS | undefined;
  /** The member that answered last. */
  private at = 0;

  /** Throws `certificate_invalid` where a file cannot be read. */
  constructor({ endpoints, cert, key, cacert }: EtcdOptions) {
    this.endpoints = endpoints;
    const named = [["cert", cert] as const, ["key", key] as const, ["ca", cacert] as const];
    this.files = named.flatMap(([what, file]) => (file === undefined ? [] : [[what, file]]));
    this.tls = this.readFiles();
  }

  private readFiles(): BunFetchRequestInitTLS | undefined {
    if (this.files.length === 0) return undefined;
    try {
      return Object.fromEntries(this.files.map(([what, file]) => [what, readPem(file, false)]));
    } catch (cause) {
      const message = messageOf(cause);
      throw new SsihvError("certificate_invalid", message, {
        hint: "--store-cert, --store-key and --store-cacert name files for clients of that etcd",
        cause,
      });
    }
  }

  /** Read for each request: they may have been renewed. */
  private tlsNow(): BunFetchRequestInitTLS | undefined {
    try {
      this.tls = this.readFiles();
    } catch (error) {
      // In the midst of being replaced; those read before are good for as long as they last.
      if (!(error instanceof SsihvError)) throw error;
    }
    return this.tls;
  }

  async get(key: string): Promise<KeyValue | undefined> {
    const { kvs = [] } = (await this.post("/v3/kv/range", { key: encode(key) })) as WireRange;
    return kvs[0] && keyValue(kvs[0]);
  }

  /** All whose keys begin with `prefix`, which ends with a slash, as of one moment; by key. */
  async list(prefix: string): Promise<KeyValue[]> {
    const found: KeyValue[] = [];
    let from = prefix;
    let revision: string | undefined;
    for (;;) {
      const page = (await this.post("/v3/kv/range", {
        ...{ key: encode(from), range_end: encode(endOf(prefix)), limit: String(PAGE) },
        ...(revision !== undefined && { revision }),
      })) as WireRange;
      found.push(...(page.kvs ?? []).map(keyValue));
      const last = found.at(-1);
      if (page.more !== true || last === undefined) return found;
      revision = page.header?.revision;
      from = `${last.key}\0`;
    }
  }

  /** Whether all compares held; `read`: what the operations of that branch got, in their order. */
  async transact(
    compares: readonly Compare[],
    success: readonly Operation[],
    failure: readonly Operation[] = [],
  ): Promise<{ succeeded: boolean; read: (KeyValue | undefined)[]; revision: number }> {
    const answer = (await this.post("/v3/kv/txn", {
      compare: compares.map(({ key, target, revision }) => ({
        ...{ key: encode(key), target, result: "EQUAL" },
        [target === "MOD" ? "mod_revision" : "create_revision"]: String(revision),
      })),
      success: success.map(wireOperation),
      failure: failure.map(wireOperation),
    })) as {
      header?: { revision?: string };
      succeeded?: boolean;
      responses?: { response_range?: WireRange }[];
    };
    const read = (answer.responses ?? []).map(({ response_range }) => {
      const first = response_range?.kvs?.[0];
      return first && keyValue(first);
    });
    const revision = Number(answer.header?.revision ?? 0);
    return { succeeded: answer.succeeded ?? false, read, revision };
  }

  /** Its id; keys under it go when it is not kept alive for so long. */
  async grantLease(seconds: number): Promise<string> {
    const { ID } = (await this.post("/v3/lease/grant", { TTL: String(seconds) })) as { ID: string };
    return ID;
  }

  /** False: it has ended. */
  async keepLease(id: string): Promise<boolean> {
    const { result } = (await this.post("/v3/lease/keepalive", { ID: id })) as {
      result?: { TTL?: string };
    };
    return Number(result?.TTL ?? 0) > 0;
  }

  async endLease(id: string): Promise<void> {
    await this.post("/v3/lease/revoke", { ID: id });
  }

  /** Each member in turn, from the one that answered last. Throws `store_failed`. */
  private async post(path: string, body: object): Promise<unknown> {
    const reasons: string[] = [];
    for (let i = 0; i < this.endpoints.length; i++) {
      const at = (this.at + i) % this.endpoints.length;
      const endpoint = this.endpoints[at] ?? "";
      try {
        const answer = await this.postTo(endpoint, path, body);
        this.at = at;
        return answer;
      } catch (error) {
        if (error instanceof Refused) throw refusal(endpoint, error);
        reasons.push(`${endpoint}: ${wordsOf(error)}`);
      }
    }
    throw new EtcdSilent(reasons);
  }

  private async postTo(endpoint: string, path: string, body: object): Promise<unknown> {
    const tls = this.tlsNow();
    const response = await fetch(`${endpoint}${path}`, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "content-type": "application/json" },
      signal: AbortSignal.timeout(ATTEMPT_MS),
      ...(tls !== undefined && { tls }),
    });
    const text = await response.text();
    if (response.ok) return JSON.parse(text);
    const why = errorIn(text) ?? `status ${response.status}`;
    // gRPC's UNAVAILABLE and DEADLINE_EXCEEDED come as 503 and 504: without a leader, or ending.
    if (response.status >= 500) throw new Error(why);
    throw new Refused(why);
  }
}

function refusal(endpoint: string, { message }: Error): SsihvError {
  const hint = /user|auth|permission/i.test(message)
    ? "its JSON gateway does not take a certificate for a user: let etcd ask for certificates only"
    : "is it an etcd 3.4 or newer, with its JSON gateway on?";
  return new SsihvError("store_failed", `etcd at ${endpoint} refused: ${message}`, { hint });
}

function errorIn(text: string): string | undefined {
  try {
    const { message, error } = JSON.parse(text) as { message?: unknown; error?: unknown };
    return String(message ?? error);
  } catch {
    // A proxy's page, or nothing.
    return undefined;
  }
}

function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "TimeoutError") return "no answer in time";
  const code = "code" in error ? String(error.code) : "";
  return code === "ConnectionRefused" || code === "ECONNREFUSED" ? "nobody listens" : error.message;
}

function wireOperation(operation: Operation): object {
  if ("put" in operation) {
    const { put, value, lease } = operation;
    const leased = lease === undefined ? {} : { lease };
    return { request_put: { key: encode(put), value: encode(value), ...leased } };
  }
  if ("remove" in operation) return { request_delete_range: { key: encode(operation.remove) } };
  return { request_range: { key: encode(operation.get) } };
}
