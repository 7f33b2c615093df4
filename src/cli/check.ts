// `ssihv check`: is this host fit? One line per subject, with the fix where it is not good.

import { buildCommand } from "@stricli/core";

import { type CheckLine, checkHost, type HostCheck } from "../node/host-check.ts";
import type { CliContext } from "./context.ts";
import { EXIT } from "./exit-status.ts";

const MARKS = { good: "good", degraded: "degraded", missing: "MISSING", not_run: "not tested" };
const VERDICTS = {
  fit: "This host is fit.",
  degraded: "This host is fit, with the losses named above.",
  unfit: "This host cannot run a VM before the required things above are fixed.",
};

function formatLine({ state, title, detail, fix }: CheckLine): string {
  const head = `${MARKS[state].padEnd(11)} ${title}: ${detail}`;
  return fix === undefined ? head : `${head}\n${" ".repeat(12)}fix: ${fix}`;
}

export function formatCheck(check: HostCheck): string {
  return `${check.lines.map(formatLine).join("\n")}\n\n${VERDICTS[check.verdict]}\n`;
}

export function checkStatus(check: HostCheck): number {
  return check.verdict === "unfit" ? EXIT.hostUnfit : EXIT.ok;
}

async function check(this: CliContext, flags: { readonly json: boolean }): Promise<void> {
  const result = checkHost(await this.host.probe(), this.host.facts());
  const text = flags.json ? `${JSON.stringify(result)}\n` : formatCheck(result);
  this.process.stdout.write(text);
  this.status = checkStatus(result);
}

export const checkCommand = buildCommand<{ readonly json: boolean }, [], CliContext>({
  func: check,
  docs: {
    brief: "tell whether this host is fit to run VMs, and what to fix",
    fullDescription: `Tries what the engine relies on with a small guest of its own and looks at the
host's limits. Takes a few seconds and changes nothing.

Examples:
  ssihv check
  ssihv check --json | jq -r '.lines[] | select(.state != "good") | .fix'

Exit status: 0 the host is fit (perhaps with losses: "verdict" is "fit" or "degraded" in --json),
4 something required is missing.`,
  },
  parameters: {
    flags: {
      json: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "one JSON object: {lines: [{id, title, state, detail, fix, required}], verdict}",
      },
    },
  },
});
