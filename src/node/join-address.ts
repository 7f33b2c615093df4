// Addresses of the join: "10.0.0.1:7700", "[2001:db8::1]:7700", and "name:7700" where a name may
// be looked up. The lead listens for hosts on its port and for lanes on the ports after it, one
// per node.

import { isIP, isIPv6 } from "node:net";

import { SsihvError } from "../base/errors.ts";

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

const FORM = /^(?:\[([^[\]]*)\]|([^:[\]]*)):(\d{1,5})$/;
const NAME = /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/i;

function invalid(what: string, text: string, why: string, hint: string): SsihvError {
  return new SsihvError("address_invalid", `${what}: "${text.slice(0, 80)}" ${why}`, { hint });
}

function parse(text: string, what: string, example: string): HostPort {
  const match = FORM.exec(text);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3] ?? 0);
  const isHost = match?.[1] === undefined ? isIP(host) === 4 || NAME.test(host) : isIPv6(host);
  if (match === null || !isHost) throw invalid(what, text, "is not host:port", example);
  if (port < 1 || port > 65_535) {
    throw invalid(what, text, "has no port from 1 to 65535", example);
  }
  return { host, port };
}

/** Where a host joins: names are looked up when it connects. */
export function parseTarget(text: string, what: string): HostPort {
  return parse(text, what, "ssihv join 10.0.0.1:7700 --key-file vm.key");
}

/** Where the lead listens: an address of its own, since the engines take no names. */
export function parseListen(text: string, what: string): HostPort {
  const example = `${what} 10.0.0.1:7700, an address of this host`;
  const address = parse(text, what, example);
  if (isIP(address.host) === 0) throw invalid(what, text, "names a host, not its address", example);
  return address;
}

/** An address without port, as --lane takes it. */
export function parseIp(text: string, what: string): string {
  const bare = text.replace(/^\[(.*)\]$/, "$1");
  if (isIP(bare) !== 0) return bare;
  throw invalid(what, text, "is not an IP address", `${what} 10.0.0.2`);
}

export function formatAddress(host: string, port: number): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Any address of a host, in the family of `like`. */
export function anyHost(like: string): string {
  return isIPv6(like) ? "::" : "0.0.0.0";
}

/** Nobody can connect to "any address": what to show or hand out is another. */
export function isAnyHost(host: string): boolean {
  return host === "0.0.0.0" || host === "::";
}

/** The port a node's lanes listen on. */
export function lanePort(listenPort: number, node: number): number {
  return listenPort + 1 + node;
}
