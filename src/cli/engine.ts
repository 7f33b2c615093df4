// `ssihv engine`: the child process that is a VM on this host. Started by `ssihv run`, never by
// hand; its argument is only there to be seen in `ps`.

import { buildCommand } from "@stricli/core";

import type { CliContext } from "./context.ts";

async function engine(this: CliContext): Promise<void> {
  await this.host.runEngine();
}

export const engineCommand = buildCommand<Record<never, never>, [label?: string], CliContext>({
  func: engine,
  docs: { brief: "one VM on this host (internal: started by ssihv run)" },
  parameters: {
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
