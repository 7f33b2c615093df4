// Parsers of flags and checks that several commands share.

import type { FlagParametersForType } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { SANDBOX_MODES, type SandboxMode } from "../node/sandbox.ts";
import type { CliContext, HostAccess } from "./context.ts";

export interface SandboxFlags {
  readonly sandbox: SandboxMode;
}

/** Of all commands that start engines. */
export const SANDBOX_FLAG: FlagParametersForType<SandboxFlags, CliContext> = {
  sandbox: {
    kind: "enum",
    values: SANDBOX_MODES,
    default: "auto",
    brief: "shut engines in: as far as this host allows, not at all, or not to run them otherwise",
  },
};

export function text(value: string): string {
  return value;
}

export function path(flag: string) {
  return (value: string): string => {
    if (value !== "" && !value.includes("\0")) return value;
    throw new SsihvError("flag_invalid", `${flag}: the path is empty`, {
      hint: `${flag} FILE`,
    });
  };
}

const KVM_HINTS: Record<string, string> = {
  ENOENT:
    "modprobe kvm_amd or kvm_intel; in a container start it with --device /dev/kvm; " +
    "ssihv check tells more",
  EACCES: "run as root or join the group that owns /dev/kvm: usermod -aG kvm USER",
};

/** Refuses a host on which no engine could run. */
export function requireKvm(host: HostAccess): void {
  const errno = host.kvmOpenError();
  if (errno === undefined) return;
  throw new SsihvError("host_unfit", `/dev/kvm cannot be opened (${errno})`, {
    hint: KVM_HINTS[errno] ?? "ssihv check tells more",
  });
}
