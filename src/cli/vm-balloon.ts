// `ssihv vm balloon`: another size for the balloon of a VM that runs.

import { buildCommand } from "@stricli/core";

import type { BalloonAnswer } from "../control/vm-answers.ts";
import { askBalloon, findVm } from "../node/admin-client.ts";
import { API_FLAGS, jsonFlag } from "./api-flags.ts";
import type { CliContext } from "./context.ts";
import { text } from "./flags.ts";
import { sizeOrNoneFlag } from "./run-options.ts";
import { vmNames } from "./vm-names.ts";
import { balloonWords } from "./vm-tables.ts";
import { ask, LOCAL, type LookFlags, WHERE_HELP } from "./where.ts";

async function balloon(
  this: CliContext,
  flags: LookFlags,
  name: string,
  size: bigint,
): Promise<void> {
  const bytes = Number(size);
  const found = await ask<BalloonAnswer>(
    this,
    flags,
    (api) => api.balloon(name, bytes),
    async () => askBalloon(await findVm(name), bytes),
  );
  this.process.stdout.write(`${flags.json ? JSON.stringify(found) : balloonWords(found)}\n`);
}

export const balloonCommand = buildCommand<LookFlags, [name: string, size: bigint], CliContext>({
  func: balloon,
  docs: {
    brief: "take memory from a running guest, or let it have it again",
    fullDescription: `Tells the guest of a running VM that has a balloon (ssihv run --balloon, or
balloon in its file) how much of its RAM that is to have from now on. The answer is what was known
at that moment: the guest gives or takes pages in its own time, and takes some back when it runs
out of memory. ssihv vm show tells how far it is.

${WHERE_HELP}

Examples:
  ssihv vm balloon demo 2G
  ssihv vm balloon demo 0                         all of it is the guest's again

Exit status: 0 told, 2 wrong flags, no such VM or none with a balloon, 10 the VM did not answer.`,
    customUsage: ["NAME SIZE [--local] [--json]"],
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        { parse: text, brief: "the VM", placeholder: "NAME", proposeCompletions: vmNames },
        { parse: sizeOrNoneFlag("SIZE"), brief: "512M, 2G, 0", placeholder: "SIZE" },
      ],
    },
    flags: {
      ...{ ...API_FLAGS, local: LOCAL },
      json: jsonFlag("one JSON object: {target, actual, inflated, reported}, in bytes"),
    },
  },
});
