// `ssihv engine`: the child process that is a VM on this host. Started by `ssihv run`, never by
// hand; its label is only there to be seen in `ps`.

import { buildCommand } from "@stricli/core";

import type { CliContext } from "./context.ts";
import { SANDBOX_FLAG, type SandboxFlags } from "./flags.ts";

interface EngineFlags extends SandboxFlags {
  readonly memoryOnly: boolean;
  readonly user?: number;
}

async function engine(this: CliContext, flags: EngineFlags): Promise<void> {
  const { memoryOnly, sandbox: mode, user } = flags;
  await this.host.runEngine(memoryOnly, { mode, user });
}

export const engineCommand = buildCommand<EngineFlags, [label?: string], CliContext>({
  func: engine,
  docs: { brief: "one VM on this host (internal: started by ssihv run)" },
  parameters: {
    flags: {
      memoryOnly: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "the engine of a memory node: no vCPUs, no KVM",
      },
      ...SANDBOX_FLAG,
      user: {
        kind: "parsed",
        parse: Number,
        optional: true,
        brief: "the user to become when everything is open",
        placeholder: "UID",
      },
    },
    positional: {
      kind: "tuple",
      parameters: [
        {
          parse: (text: string) => text,
          optional: true,
          brief: "VM and node, for ps",
          placeholder: "vm/node",
        },
      ],
    },
  },
});
