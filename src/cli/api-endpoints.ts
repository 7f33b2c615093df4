// The coordinators that a command may ask: one of several leads. Whoever led last is asked first.
// A reading request that finds it gone, or standing by, goes to whoever leads by then, once; what
// changes something does not, since it may have been done.

import type { ApiError } from "../../coordinator/api-schemas.ts";
import { type ErrorCode, isErrorCode, SsihvError } from "../base/errors.ts";

export interface ApiEndpoint {
  /** For messages. */
  readonly where: string;
  readonly base: string;
  readonly options: BunFetchRequestInit;
}

/** Who of several leads is asked of all at once, and one of them may be switched off. */
const PROBE_MS = 5000;
/** Of one that stands by; of one that leads and lacks an agent's answer, too. */
const UNAVAILABLE = 503;
/** Why one of several does not answer for the cluster: other reasons say more. */
const SAYS_LITTLE: readonly ErrorCode[] = ["leader_elsewhere", "coordinator_unreachable"];

export class ApiEndpoints {
  private readonly all: readonly ApiEndpoint[];
  private current: ApiEndpoint | undefined;

  constructor(first: ApiEndpoint, ...others: readonly ApiEndpoint[]) {
    this.all = [first, ...others];
    if (others.length === 0) this.current = first;
  }

  /** Throws what says most where none of several answers for the cluster. */
  async find(): Promise<ApiEndpoint> {
    this.current ??= await leading(this.all);
    return this.current;
  }

  /** An answer of any status; throws `coordinator_unreachable` where there is none. */
  async ask(path: string, init: BunFetchRequestInit): Promise<Response> {
    const endpoint = await this.find();
    const answer = await send(endpoint, path, init).catch((error: SsihvError) => error);
    const isLost = answer instanceof SsihvError || answer.status === UNAVAILABLE;
    if (isLost && this.all.length > 1) {
      if (this.current === endpoint) this.current = undefined;
      if (init.method === "GET" && init.signal?.aborted !== true) {
        const now = await this.find();
        // The one that leads may itself say that something is unavailable.
        if (now !== endpoint) return await send(now, path, init);
      }
    }
    if (answer instanceof SsihvError) throw answer;
    return answer;
  }

  /** As ask(), with an error's answer thrown as the error it tells of. */
  async call(path: string, init: BunFetchRequestInit): Promise<Response> {
    const answer = await this.ask(path, init);
    if (answer.ok) return answer;
    throw await errorIn(answer, this.current?.where ?? "another place");
  }
}

/** The one that answers for the cluster. */
async function leading(all: readonly ApiEndpoint[]): Promise<ApiEndpoint> {
  const enough = new AbortController();
  const signal = AbortSignal.any([enough.signal, AbortSignal.timeout(PROBE_MS)]);
  const probe = async (endpoint: ApiEndpoint) => {
    const answer = await send(endpoint, "/v1/status", { method: "GET", signal });
    if (!answer.ok) throw await errorIn(answer, endpoint.where);
    return endpoint;
  };
  try {
    return await Promise.any(all.map(probe));
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

async function send(
  { where, base, options }: ApiEndpoint,
  path: string,
  init: BunFetchRequestInit,
): Promise<Response> {
  try {
    return await fetch(`${base}${path}`, { ...options, ...init });
  } catch (cause) {
    throw new SsihvError("coordinator_unreachable", `the coordinator at ${where} does not answer`, {
      hint:
        "is it running, is the address right, and the certificate of its CA? " +
        "VMs of this host are seen without it: ssihv vm list --local",
      cause,
    });
  }
}

async function errorIn(response: Response, where: string): Promise<SsihvError> {
  const body = (await response.json().catch(() => ({}))) as Partial<ApiError>;
  const { code = "", message, hint } = body.error ?? {};
  const words = message ?? `the coordinator at ${where} answered with status ${response.status}`;
  return new SsihvError(isErrorCode(code) ? code : "coordinator_unreachable", words, {
    ...(hint !== undefined && { hint }),
  });
}
