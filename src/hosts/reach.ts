// A way to start a process on a host with its stdin and stdout here: the one thing that differs
// between hosts reached by ssh and nodes of a Slurm allocation. The way itself is the user's own:
// his ssh, with his configuration, agent and jump hosts.

import { SsihvError } from "../base/errors.ts";
import type { HostSpec } from "./host-list.ts";

export interface Reach {
  /** To try by hand where it does not work. */
  readonly trial: string;
  /** The address at which other hosts reach this one, where the way there tells it. */
  readonly address?: string;
  /** Absent: this process's own. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /**
   * The local command whose stdin and stdout are those of `script`, one line for sh without single
   * quotes. When its stdin ends, so does that of the script.
   */
  command(script: string): string[];
}

/** Words of a command line, with quotes around those that have spaces. */
export function splitWords(text: string, what: string): string[] {
  const words = [...text.matchAll(/(?:[^\s"']|"[^"]*"|'[^']*')+/g)].map(([word]) =>
    word.replaceAll(/"([^"]*)"|'([^']*)'/g, (_, double, single) => double ?? single),
  );
  const rest = text.replaceAll(/(?:[^\s"']|"[^"]*"|'[^']*')+/g, "").trim();
  if (words.length > 0 && rest === "") return words;
  throw new SsihvError("flag_invalid", `${what}: "${text}" is not a command`, {
    hint: `${what} "ssh -F my_config"`,
  });
}

/**
 * No question may be asked, since nobody sees it; a host that is gone is noticed; what the user's
 * configuration forwards is for his shells. A master connection that he has is used, and none made.
 */
const SSH_OPTIONS = [
  "BatchMode=yes",
  "ClearAllForwardings=yes",
  "ConnectTimeout=20",
  "ControlMaster=no",
  "ForwardX11=no",
  "LogLevel=ERROR",
  "RemoteCommand=none",
  "RequestTTY=no",
  "ServerAliveCountMax=3",
  "ServerAliveInterval=5",
].flatMap((option) => ["-o", option]);

/** `ssh`: the user's command, with options of his own. What he sets there wins over ours. */
export function sshReach({ host, user, port }: HostSpec, ssh: readonly string[]): Reach {
  const target = user === undefined ? host : `${user}@${host}`;
  const way = [...(port === undefined ? [] : ["-p", String(port)]), target];
  return {
    trial: `${ssh.join(" ")} -o BatchMode=yes ${way.join(" ")} true`,
    // The user's shell there may be any: in single quotes without any, they all agree.
    command: (script) => [...ssh, ...SSH_OPTIONS, ...way, `exec /bin/sh -c '${script}'`],
  };
}
