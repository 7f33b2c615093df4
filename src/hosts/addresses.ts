// At which address and port the lead of a VM over hosts listens: what the user said, else where the
// way to it arrived. Pure.

import { isIPv6 } from "node:net";

import { SsihvError } from "../base/errors.ts";
import { type HostPort, isAnyHost } from "../node/join-address.ts";
import { PORT_BLOCKS, PORTS_PER_VM } from "./part-messages.ts";

/** What is known of a host once it is reached. */
export interface Reached {
  readonly name: string;
  /** As the user gave it, or the way there. */
  readonly address?: string;
  /** It was the user. */
  readonly isChosen?: boolean;
  /** It is the one that the user's command runs on. */
  readonly here: boolean;
  readonly reachedAt?: string;
  readonly reachedFrom?: string;
  readonly freePorts: readonly number[];
}

export function isLoopback(address: string): boolean {
  return address === "::1" || address.startsWith("127.") || address.startsWith("::ffff:127.");
}

/**
 * `own`: addresses of this host. What others saw us come from is one of them, unless a jump host
 * was between.
 */
function addressOf(lead: Reached, others: readonly Reached[], own: readonly string[]) {
  if (lead.address !== undefined) return lead.address;
  if (!lead.here) return lead.reachedAt;
  return others.flatMap(({ reachedFrom }) => reachedFrom ?? []).find((seen) => own.includes(seen));
}

function unknown({ name }: Reached, why: string): SsihvError {
  const message = `host ${name}: ${why}`;
  return new SsihvError("address_invalid", message, {
    hint: `say at which address the others reach it: --hosts ${name}=10.0.0.1,...`,
  });
}

export function leadAddress(
  lead: Reached,
  others: readonly Reached[],
  own: readonly string[],
): string {
  const address = addressOf(lead, others, own);
  if (address === undefined || isAnyHost(address)) {
    throw unknown(lead, "no address is known at which the other hosts reach it");
  }
  const far = others.find(({ here, address = "", reachedAt = address }) => {
    return !here && !isLoopback(reachedAt);
  });
  if (isLoopback(address) && lead.isChosen !== true && far !== undefined) {
    throw unknown(lead, `it was reached at ${address}, where ${far.name} would reach itself`);
  }
  return address;
}

/** A port from which on a VM's ports are free on all hosts. */
export function commonPort(hosts: readonly Reached[]): number {
  const first = PORT_BLOCKS.find((port) =>
    hosts.every(({ freePorts }) => freePorts.includes(port)),
  );
  if (first !== undefined) return first;
  const last = (PORT_BLOCKS.at(-1) ?? 0) + PORTS_PER_VM - 1;
  const range = `from ${PORT_BLOCKS[0]} to ${last}`;
  const message = `no ${PORTS_PER_VM} ports in a row ${range} are free on all hosts`;
  throw new SsihvError("address_invalid", message, {
    hint: "end VMs there that are not needed, or name others: --listen 10.0.0.1:9000",
  });
}

export function listenAt(
  given: HostPort | undefined,
  hosts: readonly [Reached, ...Reached[]],
  own: readonly string[],
): HostPort {
  if (given !== undefined) return given;
  const [lead, ...others] = hosts;
  const host = leadAddress(lead, others, own);
  return { host: isIPv6(host) ? host.replace(/%.*$/, "") : host, port: commonPort(hosts) };
}
