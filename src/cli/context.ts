// What every command gets besides its flags: the streams, the host, and where its exit status goes.
// Tests put stand-ins here; src/main.ts puts the real ones.

import type { CommandContext } from "@stricli/core";
import type { ParentPage } from "../node/engine-process.ts";
import type { HostFacts } from "../node/host-facts.ts";
import type { probeHost } from "../node/local.ts";
import type { SandboxWish } from "../node/sandbox.ts";

export interface HostAccess {
  readonly facts: () => HostFacts;
  readonly probe: typeof probeHost;
  readonly sharedPages: () => Promise<() => ParentPage>;
  /** errno name of opening /dev/kvm, undefined when it opens. */
  readonly kvmOpenError: () => string | undefined;
  /** Replaces the executable that `engine` children run. */
  readonly engineCommand?: readonly string[];
  /** Main of the hidden `engine` command. */
  readonly runEngine: (memoryOnly: boolean, sandbox: SandboxWish) => Promise<void>;
}

export interface CliContext extends CommandContext {
  readonly host: HostAccess;
  /** Set by a command that ends with a status of its own. */
  status: number;
}
