// `make lab`: boots emulated hosts, runs one command on each, streams what they print with the
// host's number in front, and ends with the first non-zero exit status. Ctrl-C ends everything.

import { parseArgs } from "node:util";
import { SsihvError } from "../../src/base/errors.ts";
import { type RunLabOptions, runLab } from "./lab.ts";
import { reap } from "./run-directory.ts";
import { labError } from "./subprocess.ts";

const usage = `Usage: bun test/lab/main.ts --cmd SCRIPT [options]     (make lab HOSTS=2 CMD='...')
Boots emulated x86 hosts with KVM (AMD SVM, software emulation) and runs SCRIPT with bash on each.
In a host: the machine's files (changes are thrown away), /out shared by all hosts and written
through, LABNODE (1..N), LABHOSTS, addresses 10.9.0.N on eth0.
  --hosts N          emulated hosts (1)
  --smp N            CPUs per host (1)
  --parallel-cpus    emulate them in parallel: faster, but guests crash now and then
  --memory MIB       memory per host (2048)
  --limit SECONDS    time limit of the command (300)
  --netem ARGS       tc-netem on every host, or "N:ARGS" for host N; may repeat
  --rdma             load Soft-RoCE, device rxe0 on eth0
  --file PATH        copy PATH to /out first; may repeat
  --keep             keep consoles and logs also on success
  --parallel         do not wait for other labs of this checkout
  --reap             end and remove what earlier labs left, then exit (--all: also running labs)`;

const flags = {
  cmd: { type: "string" },
  hosts: { type: "string" },
  smp: { type: "string" },
  memory: { type: "string" },
  limit: { type: "string" },
  netem: { type: "string", multiple: true },
  file: { type: "string", multiple: true },
  rdma: { type: "boolean" },
  keep: { type: "boolean" },
  parallel: { type: "boolean" },
  "parallel-cpus": { type: "boolean" },
  reap: { type: "boolean" },
  all: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

function whole(name: string, text: string | undefined, standard: number): number {
  if (text === undefined || text === "") return standard;
  if (!/^[1-9][0-9]{0,6}$/.test(text)) {
    throw new SsihvError("flag_invalid", `--${name} takes a whole number above 0, not "${text}"`);
  }
  return Number(text);
}

/** `delay 1ms` for all hosts, `2:delay 1ms` for host 2. */
export function netemPerHost(given: readonly string[], hosts: number): (string | undefined)[] {
  const result = new Array<string | undefined>(hosts).fill(undefined);
  for (const text of given) {
    const match = /^([0-9]+):(.*)$/s.exec(text);
    if (match === null) result.fill(text);
    else if (Number(match[1]) >= 1 && Number(match[1]) <= hosts)
      result[Number(match[1]) - 1] = match[2];
    else throw new SsihvError("flag_invalid", `--netem ${text}: the lab has hosts 1 to ${hosts}`);
  }
  return result;
}

async function main(argv: string[]): Promise<number> {
  const { values } = parseArgs({ args: argv, options: flags, strict: true });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  if (values.reap) {
    const found = reap({ kept: true, inUse: values.all ?? false });
    if (found.directories > 0) {
      console.log(`lab: ended ${found.processes} processes, removed ${found.directories} folders`);
    }
    return 0;
  }
  if (!values.cmd) throw new SsihvError("flag_invalid", "--cmd is missing", { hint: usage });
  const hosts = whole("hosts", values.hosts, 1);
  const print = prefixer(hosts);
  const options: RunLabOptions = {
    hosts,
    command: values.cmd,
    cpus: whole("smp", values.smp, 1),
    memoryMiB: whole("memory", values.memory, 2048),
    limitSeconds: whole("limit", values.limit, 300),
    netem: netemPerHost(values.netem ?? [], hosts),
    files: values.file ?? [],
    rdma: values.rdma ?? false,
    keep: values.keep ?? false,
    parallel: values.parallel ?? false,
    parallelCpus: values["parallel-cpus"] ?? false,
    onHostOutput: print.output,
  };
  const result = await runLab(options);
  print.flush();
  result.hosts.forEach((host, position) => {
    const how = host.timedOut ? "ended at its time limit" : `exit ${host.exitCode}`;
    console.error(`lab: host ${position + 1}: ${how} after ${host.seconds.toFixed(1)} s`);
  });
  if (result.kept) console.error(`lab: consoles and logs are in ${result.kept}`);
  return result.hosts.find((host) => host.exitCode !== 0)?.exitCode ?? 0;
}

// Whole lines with the host's number, as hosts print at the same time; one host needs no number.
function prefixer(hosts: number) {
  const pending = new Map<number, string>();
  const put = (index: number, line: string) =>
    process.stdout.write(hosts === 1 ? `${line}\n` : `${index}| ${line}\n`);
  return {
    output(index: number, text: string): void {
      const lines = ((pending.get(index) ?? "") + text).split("\n");
      pending.set(index, lines.pop() ?? "");
      for (const line of lines) put(index, line);
    },
    flush(): void {
      for (const [index, line] of pending) if (line !== "") put(index, line);
    },
  };
}

if (import.meta.main) {
  // Exiting ends the hosts and removes the run directory (lab.ts); 128 + signal as shells have it.
  process.on("SIGINT", () => process.exit(130));
  process.on("SIGTERM", () => process.exit(143));
  process.on("SIGHUP", () => process.exit(129));
  try {
    process.exitCode = await main(process.argv.slice(2));
  } catch (error) {
    const problem = error instanceof Error ? error : labError(String(error));
    console.error(`lab: ${problem.message}`);
    if (problem instanceof SsihvError && problem.hint) console.error(problem.hint);
    process.exitCode = problem instanceof SsihvError && problem.code === "lab_failed" ? 125 : 2;
  }
}
