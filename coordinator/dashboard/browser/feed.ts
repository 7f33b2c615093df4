// What the page knows of the cluster, asked for once a second while somebody sees it, and the
// events as they happen. A page that is hidden asks nothing.
// Invariant: whatever goes wrong is told in words, and tried again.

import type { HeatAnswer } from "../../../src/control/vm-answers.ts";
import type { ApiError, Host, Status, Vm } from "../../api-schemas.ts";
import type { ClusterEvent } from "../../events.ts";
import type { VmNumbers } from "../../number-schemas.ts";

export interface Snapshot {
  readonly status: Status;
  readonly hosts: readonly Host[];
  readonly vms: readonly Vm[];
  readonly numbers: readonly VmNumbers[];
  /** Of the VM that is looked at, if it runs. */
  readonly heat: HeatAnswer | undefined;
}

export interface FeedHooks {
  /** Which VM's heat is wanted. */
  wanted(): string | undefined;
  onSnapshot(snapshot: Snapshot): void;
  onEvent(event: ClusterEvent): void;
  /** What is shown is out of date. */
  onFailure(words: string): void;
}

const PERIOD_MS = 1000;
/** After a failure, so that a coordinator that comes back is seen soon. */
const AGAIN_MS = 1500;
const ANSWER_MS = 5000;
const UNAUTHORIZED = 401;

class Refused extends Error {}

async function refusal(response: Response): Promise<Refused> {
  if (response.status === UNAUTHORIZED) {
    return new Refused("this page's session is over: open the link that ssihv dashboard prints");
  }
  const body = (await response.json().catch(() => ({}))) as Partial<ApiError>;
  return new Refused(body.error?.message ?? `status ${response.status}`);
}

function wordsOf(error: unknown): string {
  if (error instanceof Refused) return error.message;
  if (error instanceof DOMException && error.name === "TimeoutError") {
    return `no answer within ${ANSWER_MS / 1000} s`;
  }
  return "nobody answers at this address";
}

export class Feed {
  private readonly hooks: FeedHooks;
  private running: AbortController | undefined;
  private lastEvent: string | undefined;
  private following = false;

  constructor(hooks: FeedHooks) {
    this.hooks = hooks;
  }

  start(): void {
    if (this.running !== undefined) return;
    this.running = new AbortController();
    void this.poll(this.running.signal);
  }

  stop(): void {
    this.running?.abort();
    this.running = undefined;
  }

  private async poll(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      let pause = PERIOD_MS;
      const snapshot = await this.look(signal).catch((error: unknown) => wordsOf(error));
      if (signal.aborted) return;
      if (typeof snapshot === "string") {
        this.hooks.onFailure(snapshot);
        pause = AGAIN_MS;
      } else {
        this.show(snapshot);
        if (!this.following) void this.follow(signal);
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  private show(snapshot: Snapshot): void {
    try {
      this.hooks.onSnapshot(snapshot);
    } catch (error) {
      // A defect of the page: for its console, and not to be taken for a silent coordinator.
      reportError(error);
      this.hooks.onFailure("this page has a defect, which the browser's console tells");
    }
  }

  private async look(signal: AbortSignal): Promise<Snapshot> {
    const get = async <T>(path: string): Promise<T> => {
      const limit = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
      const response = await fetch(path, { signal: limit });
      if (!response.ok) throw await refusal(response);
      return (await response.json()) as T;
    };
    const wanted = this.hooks.wanted();
    const [status, hosts, vms, numbers, heat] = await Promise.all([
      get<Status>("/v1/status"),
      get<Host[]>("/v1/hosts"),
      get<Vm[]>("/v1/vms"),
      get<VmNumbers[]>("/v1/numbers"),
      wanted === undefined ? undefined : this.heat(wanted, get),
    ]);
    return { status, hosts, vms, numbers, heat };
  }

  /** One that has just ended, or does not answer, has none: the rest is told all the same. */
  private async heat(
    vm: string,
    get: <T>(path: string) => Promise<T>,
  ): Promise<HeatAnswer | undefined> {
    return await get<HeatAnswer>(`/v1/vms/${encodeURIComponent(vm)}/heat`).catch(
      (error: unknown) => {
        if (error instanceof Refused) return undefined;
        throw error;
      },
    );
  }

  /** Server-sent events, by hand: so one sees why there are none, and says where one left off. */
  private async follow(signal: AbortSignal): Promise<void> {
    this.following = true;
    try {
      const headers = this.lastEvent === undefined ? {} : { "last-event-id": this.lastEvent };
      const response = await fetch("/v1/events", { signal, headers });
      if (!response.ok || response.body === null) return;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop() ?? "";
        for (const block of blocks) this.take(block);
      }
    } catch {
      // It ended: the next look that succeeds follows again, and one that fails tells why.
    } finally {
      this.following = false;
    }
  }

  private take(block: string): void {
    const data = block
      .split("\n")
      .filter((line) => line.startsWith("data:"))
      .map((line) => line.slice(5).trim())
      .join("\n");
    // A sign of life carries none.
    if (!data.startsWith("{")) return;
    const event = JSON.parse(data) as ClusterEvent;
    this.lastEvent = event.id;
    this.hooks.onEvent(event);
  }
}
