// Where the engines of a VM over several hosts listen for lanes and find each other. Pure.
// Lanes are made by the higher-numbered node: it connects, the lower one accepts. So nobody
// connects to the last node, which therefore binds no fixed port; the others listen on the lead's
// port and up, on every address they have, since only others know which one reaches them.

import type { LanePlan } from "../engine/messages.ts";
import { anyHost, formatAddress, type HostPort, lanePort } from "./join-address.ts";

/** How a node's host is reached; both absent for the lead itself. */
export interface LanePlace {
  /** The address that other nodes reach it at. */
  readonly laneHost?: string;
  /** The address at which it reaches the lead. */
  readonly leadHost?: string;
}

function listenOf(listen: HostPort, places: readonly LanePlace[], node: number): string {
  if (node === 0) return formatAddress(listen.host, lanePort(listen.port, 0));
  const own = places[node]?.laneHost ?? listen.host;
  const last = node === places.length - 1;
  return formatAddress(anyHost(own), last ? 0 : lanePort(listen.port, node));
}

/** The lane part of a node's plan but for the key. */
export function remoteLane(
  listen: HostPort,
  places: readonly LanePlace[],
  node: number,
): Omit<LanePlan, "key"> {
  const leadHost = places[node]?.leadHost ?? listen.host;
  const peers = places.flatMap(({ laneHost }, peer) => {
    if (peer === node) return [];
    const host = peer === 0 ? leadHost : (laneHost ?? listen.host);
    return [{ node: peer, address: formatAddress(host, lanePort(listen.port, peer)) }];
  });
  return { listen: listenOf(listen, places, node), peers };
}
