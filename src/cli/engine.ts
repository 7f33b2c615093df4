// `ssihv engine`: the child process that is a VM on this host. Started by `ssihv run`, never by
// hand; its label is only there to be seen in `ps`.

import { buildCommand } from "@stricli/core";

import type { CliContext } from "./context.ts";

interface EngineFlags {
  readonly memoryOnly: boolean;
}

async function engine(this: CliContext, { memoryOnly }: EngineFlags): Promise<void> {
  await this.host.runEngine(memoryOnly);
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
