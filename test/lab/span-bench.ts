// Boots one Linux over two engines on one lab host, once for each variant, and prints a table: what
// a guest option or a flag of `ssihv run` changes. It reports; nothing is judged. See --help.

import { parseArgs } from "node:util";
import { spanCheck } from "../guest/build.ts";
import { type GuestKernel, guestInitrd } from "./guest-image.ts";
import { BINARY, lastLine, runCommand, TROUBLE } from "./guest-run.ts";
import { startLab } from "./lab.ts";

export interface Variant {
  readonly name: string;
  /** Guest command line behind the defaults. */
  readonly options: string;
  /** Flags of `ssihv run`. */
  readonly flags: string;
}

/** `name=guest options@run flags`; without options or flags: the defaults. */
export function variantOf(text: string): Variant {
  const [name = "", rest = ""] = splitOnce(text, "=");
  const [options = "", flags = ""] = splitOnce(rest, "@");
  return { name, options: options.trim(), flags: flags.trim() };
}

function splitOnce(text: string, at: string): string[] {
  const place = text.indexOf(at);
  return place < 0 ? [text] : [text.slice(0, place), text.slice(place + 1)];
}

const usage = `Usage: bun test/lab/span-bench.ts [options] NAME=GUEST OPTIONS@RUN FLAGS ...
  --kernel cloud|generic  (cloud)
  --memory SIZE           (256M)
  --nodes N               (2)
  --dilation N            guest clock (50)
  --script S              runs in the guest ("true")
  --rounds N              times each variant runs, interleaved (1)
  --limit SECONDS         of one boot (420)
  --binary PATH           a file called ssihv (dist/ssihv)
  --log                   print the guest's output too`;

async function main(argv: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      kernel: { type: "string", default: "cloud" },
      memory: { type: "string", default: "256M" },
      nodes: { type: "string", default: "2" },
      dilation: { type: "string", default: "50" },
      script: { type: "string", default: "true" },
      rounds: { type: "string", default: "1" },
      limit: { type: "string", default: "420" },
      binary: { type: "string", default: BINARY },
      log: { type: "boolean", default: false },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const variants = (positionals.length > 0 ? positionals : ["default"]).map(variantOf);
  const program = await Bun.file(await spanCheck()).bytes();
  const initrd = await guestInitrd([{ path: "bin/span_check", bytes: program }]);
  const lab = await startLab({ memoryMiB: 3072, files: [values.binary] });
  const nodes = Number(values.nodes);
  let failures = 0;
  try {
    for (let round = 1; round <= Number(values.rounds); round++) {
      for (const variant of variants) {
        const command = await runCommand({
          kernel: values.kernel as GuestKernel,
          ...{ cpus: nodes, memory: values.memory, nodes, initrd },
          ...{ limit: Number(values.limit), script: values.script, cmdline: variant.options },
          flags: `--clock-dilation ${values.dilation} --peer-timeout 30s ${variant.flags}`,
        });
        const result = await lab.host(1).run(`${command} </dev/null 2>&1`, {
          limitSeconds: Number(values.limit) + 20,
        });
        if (values.log) console.log(result.log);
        const good = result.exitCode === 0 && !TROUBLE.test(result.log);
        if (!good) {
          failures++;
          console.log(result.log.split("\n").slice(-30).join("\n"));
        }
        const line = JSON.stringify(lastLine(result.log));
        const detail = /median .*$/m.exec(result.log)?.[0] ?? "";
        console.log(`${round} ${variant.name}: ${good ? "ok" : "FAILED"} ${line} ${detail}`);
      }
    }
  } finally {
    await lab.close({ keep: failures > 0 });
  }
  return failures === 0 ? 0 : 1;
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)));
