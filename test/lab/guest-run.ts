// Running `ssihv run` inside a lab host, as tests do it: where the pieces are, the command line,
// and what its output says. Kernels and initramfs are read where the checkout has them; the binary
// comes from /out, where a fresh build is never stale.

import { type GuestKernel, guestInitrd, guestKernel, guestRun } from "./guest-image.ts";
import { checkout } from "./paths.ts";

export interface GuestRun {
  readonly kernel: GuestKernel;
  readonly cpus: number;
  readonly memory: string;
  readonly nodes?: number;
  /** Runs in the guest, which then powers off; absent: a shell on the console. */
  readonly script?: string;
  readonly cmdline?: string;
  readonly flags?: string;
  readonly initrd?: string;
  /** Seconds after which the run counts as hung. */
  readonly limit: number;
}

/** The binary under test, copied into the lab at its start. */
export const BINARY = `${checkout}/dist/ssihv`;

/** A shell command for LabHost.run; stdin is the console. */
export async function runCommand(run: GuestRun): Promise<string> {
  const kernel = await guestKernel(run.kernel);
  const initrd = run.initrd ?? (await guestInitrd());
  const script = run.script === undefined ? "" : guestRun(run.script);
  const words = ["quiet", run.cmdline ?? "", script].filter((word) => word !== "").join(" ");
  return [
    `timeout ${run.limit} /out/ssihv run --kernel '${kernel}' --initrd '${initrd}'`,
    `--cpus ${run.cpus} --memory ${run.memory} --nodes ${run.nodes ?? 1}`,
    `--cmdline '${words}' ${run.flags ?? ""}`,
  ].join(" ");
}

export interface LastLine {
  readonly seconds: number;
  readonly exits: number;
  readonly typescript: number;
  readonly remoteFaults: number;
  readonly mismatches: number;
}

/** The numbers of the run's last line; undefined when it is missing. */
export function lastLine(log: string): LastLine | undefined {
  const pattern =
    /ran ([\d.]+) s.*?(\d+) exits \((\d+) by TypeScript\), (\d+) remote faults.*?(\d+) mismatches/s;
  const found = pattern.exec(log);
  if (found === null) return undefined;
  const [seconds, exits, typescript, remoteFaults, mismatches] = found.slice(1).map(Number);
  return {
    seconds: seconds ?? 0,
    exits: exits ?? 0,
    typescript: typescript ?? 0,
    remoteFaults: remoteFaults ?? 0,
    mismatches: mismatches ?? 0,
  };
}

/** What no console of a healthy guest shows. */
export const TROUBLE =
  /soft lockup|hard LOCKUP|rcu.*stall|self-detected stall|BUG:|Oops|Kernel panic|Call Trace/;

/** What tells most of a bad run: the checks' verdicts, trouble, and the command's own words. */
const TELLING = /FAILED|mismatch|ssihv|exit \d|Out of memory|Killed/;

/** One line: its exit code and the last lines of its log that tell something. */
export function howItEnded(exitCode: number, log: string): string {
  const lines = log.split(/\r?\n/).map((line) => line.trim());
  const telling = lines.filter((line) => TROUBLE.test(line) || TELLING.test(line));
  const words = (telling.length > 0 ? telling : lines).slice(-6).join(" | ");
  return `exit code ${exitCode}: ${words}`;
}

/** Throws what went wrong, in one line, unless the script ended well and without trouble. */
export function assertHealthy({ exitCode, log }: { exitCode: number; log: string }): void {
  const bad = exitCode !== 0 || TROUBLE.test(log) || /FAILED/.test(log);
  if (bad || !log.includes("ssihv-guest: exit 0")) throw new Error(howItEnded(exitCode, log));
}
