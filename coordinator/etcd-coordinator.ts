// One of several coordinators over one etcd: it stands by until it leads, leads until it is deposed
// or ended, and stands by again. Guests and engines notice nothing of any of that; agents and
// operators go to the one that leads.

import { randomBytes } from "node:crypto";

import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../src/base/errors.ts";
import { CoordinatorPlace } from "../src/control/messages.ts";
import { Coordinator, type CoordinatorOptions } from "./coordinator.ts";
import { EtcdClient, type EtcdOptions, EtcdSilent } from "./etcd-client.ts";
import { Leadership } from "./etcd-leader.ts";
import { EtcdStore, recordKey } from "./etcd-store.ts";
import { cutImport, IMPORT_ID, IMPORTER } from "./import.ts";
import { Standby } from "./standby.ts";

export interface EtcdCoordinatorOptions extends CoordinatorOptions {
  readonly etcd: EtcdOptions;
  /** Whoever is not heard by etcd for so long does not lead any more. */
  readonly leaseSeconds: number;
}

const MEMBERS_MS = 1000;
/** As many as an agent takes. */
const MEMBERS_MAX = 16;
/** Looks at who leads in the time of one lease. */
const LOOKS_PER_LEASE = 10;

export class EtcdCoordinator {
  /** Rejects where it cannot go on: a port is taken, certificates cannot be used. */
  readonly done: Promise<void>;
  private readonly options: EtcdCoordinatorOptions;
  private readonly client: EtcdClient;
  private readonly ending = Promise.withResolvers<undefined>();
  private closed = false;
  private registered = false;
  /** Who leads, as far as it is known; or why it is not. */
  private leader: string | undefined;
  private trouble: SsihvError | undefined;
  /** The same in words. */
  private standing = "";
  private told = "";

  constructor(options: EtcdCoordinatorOptions) {
    this.options = options;
    this.client = new EtcdClient(options.etcd);
    this.done = this.run();
  }

  async close(): Promise<void> {
    this.closed = true;
    this.ending.resolve(undefined);
    await this.done;
  }

  private get api(): string {
    const { advertise, port } = this.options;
    return `${advertise.includes(":") ? `[${advertise}]` : advertise}:${port}`;
  }

  private async run(): Promise<void> {
    while (!this.closed) {
      const led = (await this.campaign()) ?? (await this.standBy());
      if (led === undefined) return;
      try {
        await this.lead(led);
      } finally {
        await led.resign();
      }
    }
  }

  private async standBy(): Promise<Leadership | undefined> {
    const standby = await Standby.open(this.options, () => this.elsewhere());
    const pauseMs = (this.options.leaseSeconds * 1000) / LOOKS_PER_LEASE;
    try {
      while (!this.closed) {
        // Told once its ports are open: whoever reads it may ask there.
        this.tell(`coordinator: stands by; ${this.standing}`);
        await Promise.race([Bun.sleep(pauseMs), this.ending.promise]);
        const led = await this.campaign();
        if (led !== undefined) return led;
      }
      return undefined;
    } finally {
      await standby.close();
    }
  }

  private async campaign(): Promise<Leadership | undefined> {
    if (this.closed) return undefined;
    const { etcd, leaseSeconds, say } = this.options;
    try {
      // Before it can lead: a leader that could not go on would keep its lease, and all others out.
      await this.register();
      const found = await Leadership.campaign({
        ...{ client: this.client, prefix: etcd.prefix, leaseSeconds, say },
        member: { api: this.api, id: randomBytes(8).toString("hex") },
        // Whoever led with half of a state would tell the parts of all other VMs to stop.
        unless: recordKey(etcd.prefix, "import", IMPORT_ID),
      });
      this.trouble = found === "barred" ? cutImport() : undefined;
      if (found instanceof Leadership) return found;
      this.leader = found === "barred" ? undefined : found?.api;
      this.standing = this.trouble?.message ?? `${this.leader ?? "nobody"} leads`;
    } catch (error) {
      if (!(error instanceof EtcdSilent)) throw error;
      this.trouble = error;
      this.standing = error.message;
    }
    return undefined;
  }

  private async lead(led: Leadership): Promise<void> {
    const { etcd } = this.options;
    const store = new EtcdStore(this.client, etcd.prefix, led.fence, () => {
      led.depose("another one leads");
    });
    let places: readonly CoordinatorPlace[] = [];
    /** Whether they are others than before; they stay as they are while etcd is away. */
    const look = async () => {
      const before = JSON.stringify(places);
      places = await this.members().catch(() => places);
      return JSON.stringify(places) !== before;
    };
    await look();
    const running = await Coordinator.start(this.options, { store, coordinators: () => places });
    const timer = setInterval(async () => {
      if (await look()) running.tellCoordinators();
    }, MEMBERS_MS);
    this.tell(`coordinator: leads; API on port ${running.apiPort}`);
    const why = await Promise.race([led.lost, this.ending.promise]);
    clearInterval(timer);
    if (why !== undefined) this.tell(`coordinator: leads no more: ${why}`);
    await running.close();
  }

  /** For good: where it is reached is worth knowing while it is down, too. */
  private async register(): Promise<void> {
    if (this.registered) return;
    const { advertise: host, port } = this.options;
    const place: CoordinatorPlace = { host, port: port + 1 };
    await this.client.transact(
      [],
      [{ put: `${this.folder}${this.api}`, value: JSON.stringify(place) }],
    );
    this.registered = true;
  }

  /** All that ever ran over this etcd, this one too. */
  private async members(): Promise<CoordinatorPlace[]> {
    const found = await this.client.list(this.folder);
    // The newest first: addresses that are used no more are not taken away.
    const places: unknown[] = found
      .toSorted((a, b) => b.modRevision - a.modRevision)
      .map(({ value }) => JSON.parse(value));
    return places.filter((place) => Value.Check(CoordinatorPlace, place)).slice(0, MEMBERS_MAX);
  }

  private get folder(): string {
    return `${this.options.etcd.prefix}/member/`;
  }

  private elsewhere(): SsihvError {
    if (this.trouble !== undefined) return this.trouble;
    if (this.leader === IMPORTER) {
      return new SsihvError("leader_elsewhere", "this coordinator stands by: an import leads", {
        hint: "try again in some seconds",
      });
    }
    if (this.leader === undefined || this.leader === this.api) {
      return new SsihvError("leader_elsewhere", "this coordinator stands by, and none leads yet", {
        hint: "try again in some seconds",
      });
    }
    return new SsihvError("leader_elsewhere", `this coordinator stands by: ${this.leader} leads`, {
      hint: `--coordinator ${this.leader}; or name all of them, with commas between`,
    });
  }

  private tell(text: string): void {
    if (text !== this.told) this.options.say(text);
    this.told = text;
  }
}
