// The hosts of `ssihv run --hosts`, as the user writes them: names that ssh knows, each with what
// is to differ from what ssh's own configuration says, and the address that the other hosts use.

import { hostname } from "node:os";

import { SsihvError } from "../base/errors.ts";
import { parseIp } from "../node/join-address.ts";

export interface HostSpec {
  /** As it is called in messages: "alice@b:2222" without its address. */
  readonly name: string;
  /** What ssh is to connect to. */
  readonly host: string;
  readonly user?: string;
  readonly port?: number;
  /** IP address that the other hosts reach it at; absent: as it was reached. */
  readonly address?: string;
}

/** No part may begin with "-": it would be an option of ssh. */
const FORM = /^(?:([\w.][^@=:,\s]*)@)?(?:\[([0-9a-f:.]+)\]|(\w[\w.-]*))(?::(\d{1,5}))?(?:=(.*))?$/i;

const EXAMPLE =
  "--hosts a,alice@b:2222 or, where others use another address, a=10.0.0.1,b=10.0.0.2";

function parseHost(text: string, flag: string): HostSpec {
  const match = FORM.exec(text);
  const port = match?.[4] === undefined ? undefined : Number(match[4]);
  const host = match?.[2] ?? match?.[3];
  const portIsOne = port === undefined || (port >= 1 && port <= 65_535);
  if (host === undefined || !portIsOne) {
    const message = `${flag}: "${text.slice(0, 80)}" is not a host`;
    throw new SsihvError("address_invalid", message, { hint: EXAMPLE });
  }
  const user = match?.[1];
  const address = match?.[5];
  return {
    name: text.split("=")[0] ?? text,
    host,
    ...(user !== undefined && { user }),
    ...(port !== undefined && { port }),
    ...(address !== undefined && { address: parseIp(address, `${flag} ${host}`) }),
  };
}

/** "a,b,c", as a flag has it. */
export function parseHosts(flag: string) {
  return (text: string): readonly HostSpec[] => {
    const hosts = text.split(",").map((each) => parseHost(each.trim(), flag));
    refuseTwice(hosts, flag);
    return hosts;
  };
}

/** Throws where a host is named twice: one host gives one node. */
export function refuseTwice(hosts: readonly HostSpec[], flag: string): void {
  const twice = hosts.find(({ name }, i) => hosts.findIndex((other) => other.name === name) < i);
  if (twice === undefined) return;
  const message = `${flag}: ${twice.name} is there twice: each host is one node`;
  throw new SsihvError("flag_invalid", message, { hint: EXAMPLE });
}

/** Nobody needs ssh to reach the host he is on. */
export function isThisHost({ host, user, port }: HostSpec): boolean {
  if (user !== undefined || port !== undefined) return false;
  const own = hostname();
  return host === "localhost" || host === own || host === own.split(".")[0];
}
