// Which of several coordinators leads: whoever has put the leader's key under its lease into etcd.
// The lease is kept alive; one that is not (its coordinator died, hangs, or is cut off from etcd)
// ends, the key goes with it, and another puts its own.
// Invariants: a coordinator that did not hear from etcd for a lease's time, counted from when it
// asked, takes itself for deposed, before etcd lets another lead; what it writes is fenced besides
// (etcd-store.ts), so clocks decide nothing about the state.

import { messageOf, SsihvError } from "../src/base/errors.ts";
import type { EtcdClient } from "./etcd-client.ts";
import type { Fence } from "./etcd-store.ts";

/** What the leader's key says. */
export interface Member {
  /** Where its API is reached: HOST:PORT. */
  readonly api: string;
  /** Told apart by chance: of one campaign. */
  readonly id: string;
}

export interface LeaderOptions {
  readonly client: EtcdClient;
  readonly prefix: string;
  readonly member: Member;
  readonly leaseSeconds: number;
  /** A key: while it is there, nobody who names it leads. */
  readonly unless?: string;
  say(text: string): void;
}

/** Keep-alives and looks at the leader's key in the time of one lease. */
const LOOKS_PER_LEASE = 5;

export class Leadership {
  readonly fence: Fence;
  /** Resolves, with the reason, once this coordinator leads no more. */
  readonly lost: Promise<string>;
  private readonly options: LeaderOptions;
  private readonly lease: string;
  private readonly ended = Promise.withResolvers<string>();
  private readonly timer: ReturnType<typeof setInterval>;
  private readonly leaseMs: number;
  private readonly everyMs: number;
  private heardAt: number;
  private asking = false;
  private over = false;

  private constructor(options: LeaderOptions, lease: string, fence: Fence, heardAt: number) {
    this.options = options;
    this.lease = lease;
    this.fence = fence;
    this.heardAt = heardAt;
    this.lost = this.ended.promise;
    this.leaseMs = options.leaseSeconds * 1000;
    this.everyMs = this.leaseMs / LOOKS_PER_LEASE;
    this.timer = setInterval(() => void this.look(), this.everyMs);
  }

  /** Tries once; else who leads, where it is known; barred by `unless`. Throws `store_failed`. */
  static async campaign(
    options: LeaderOptions,
  ): Promise<Leadership | Member | "barred" | undefined> {
    const { client, prefix, member, leaseSeconds, unless } = options;
    const key = leaderKey(prefix);
    const there = await client.get(key);
    if (there !== undefined) return memberIn(there.value);
    if (unless !== undefined && (await client.get(unless)) !== undefined) return "barred";
    const heardAt = performance.now();
    const lease = await client.grantLease(leaseSeconds);
    const value = JSON.stringify(member);
    const absent = unless === undefined ? [key] : [key, unless];
    const { succeeded, read, revision } = await client.transact(
      absent.map((each) => ({ key: each, target: "CREATE", revision: 0 })),
      [{ put: key, value, lease }],
      [{ get: key }],
    );
    if (succeeded)
      return new Leadership(options, lease, { key, createRevision: revision }, heardAt);
    // It was asked twice, since the first answer was lost: it is ours then.
    const [other] = read;
    if (other?.value === value) {
      const fence = { key, createRevision: other.createRevision };
      return new Leadership(options, lease, fence, heardAt);
    }
    await client.endLease(lease);
    return other && memberIn(other.value);
  }

  /** Another coordinator leads, as etcd says. */
  depose(why: string): void {
    if (this.over) return;
    this.over = true;
    clearInterval(this.timer);
    this.ended.resolve(why);
  }

  /** In order: another may lead at once. */
  async resign(): Promise<void> {
    this.depose("it was ended");
    try {
      await this.options.client.endLease(this.lease);
    } catch (error) {
      // It has ended already, or its time runs out by itself.
      if (!(error instanceof SsihvError)) throw error;
    }
  }

  private async look(): Promise<void> {
    const silentMs = performance.now() - this.heardAt;
    const { client } = this.options;
    // The next look might be too late.
    if (silentMs > this.leaseMs - this.everyMs) {
      return this.depose(`etcd was not heard for ${(silentMs / 1000).toFixed(1)} s`);
    }
    if (this.asking) return;
    this.asking = true;
    const askedAt = performance.now();
    try {
      if (!(await client.keepLease(this.lease))) return this.depose("its lease in etcd has ended");
      const there = await client.get(this.fence.key);
      if (there?.createRevision !== this.fence.createRevision) {
        return this.depose("its key in etcd is gone");
      }
      this.heardAt = askedAt;
    } catch (error) {
      this.options.say(`leader: ${messageOf(error)}`);
    } finally {
      this.asking = false;
    }
  }
}

export function leaderKey(prefix: string): string {
  return `${prefix}/leader`;
}

function memberIn(value: string): Member | undefined {
  try {
    const { api, id } = JSON.parse(value) as Partial<Member>;
    return typeof api === "string" && typeof id === "string" ? { api, id } : undefined;
  } catch {
    // Not put there by a coordinator.
    return undefined;
  }
}
