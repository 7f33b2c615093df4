// The executable: hands the command line to src/cli with the real host behind it, and turns
// whatever still goes wrong into a message and a status.

import { main } from "./cli/app.ts";
import type { HostAccess } from "./cli/context.ts";
import { EXIT } from "./cli/exit-status.ts";
import { formatError } from "./cli/report.ts";
import { hostFacts, kvmOpenError } from "./node/host-facts.ts";
import { probeHost, sharedPages } from "./node/local.ts";

const args = process.argv.slice(2);

const HOST: HostAccess = {
  facts: hostFacts,
  probe: probeHost,
  sharedPages,
  kvmOpenError,
  runEngine: async (memoryOnly, sandbox) => {
    const { runEngineProcess } = await import("./engine/engine.ts");
    await runEngineProcess(memoryOnly, sandbox);
  },
};

/** A defect: said like any error; the exit listeners put the terminal back and end the engines. */
function onDefect(error: unknown): void {
  const debug = process.env["SSIHV_DEBUG"] !== undefined;
  process.stderr.write(`${formatError(error, { json: args.includes("--json"), debug })}\n`);
  process.exit(EXIT.defect);
}

process.on("uncaughtException", onDefect);
process.on("unhandledRejection", onDefect);
// A reader that went away is no defect; whoever writes learns it from the write.
process.stdout.on("error", () => undefined);
process.stderr.on("error", () => undefined);

const status = await main(args, process, HOST);
// The engine goes on after its command returned: its channel and its doorbell keep it alive.
if (args[0] === "engine" && status === EXIT.ok) process.exitCode = EXIT.ok;
else process.exit(status);
