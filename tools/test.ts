// Runs the test suites and ends with `N passed, N failed, N skipped`. Quick ones first; those that
// nothing in the machine's timing can change two at a time, on two cores, then the others one by
// one. Each has a time budget that is shown and a limit at which it is killed, so that nothing
// hangs a CI run. With CI=true a skipped test is a failure: that machine has everything.
// Usage: bun tools/test.ts --suite check|all|NAME... (names: --list)

import { existsSync, readdirSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  add,
  type Counts,
  countsOf,
  type Dialect,
  failures,
  lastLine,
  none,
  skippedNames,
} from "./test-counts.ts";

const checkout = resolve(import.meta.dir, "..");
const bun = process.execPath;
const bin = `${checkout}/node_modules`;

interface Suite {
  readonly name: string;
  /** Seconds it may take on a two-core machine. */
  readonly budget: number;
  /** Seconds after which it is killed; eight times the budget unless said. */
  readonly limit?: number;
  readonly dialect: Dialect;
  readonly command: readonly string[];
  /** Part of `make check`. */
  readonly fast: boolean;
  /** Its threads race or its processes wait for each other: it wants the machine for itself. */
  readonly alone: boolean;
  /** Print all, as it runs where it is alone; otherwise only what failed. */
  readonly live?: boolean;
  /** Run after a kill: ends what the suite could not end itself. */
  readonly cleanUp?: readonly string[];
}

function zig(): string {
  const folder = readdirSync(`${checkout}/.tools`).find((name) => /^zig-[\d.]+$/.test(name));
  return `${checkout}/.tools/${folder}/ziglang/zig`;
}

const testFile = /\.test\.ts$/;

/** Test files below `folders`, those below `except` left out. */
function testFiles(folders: readonly string[], except: readonly string[] = []): string[] {
  return folders
    .filter((folder) => existsSync(`${checkout}/${folder}`))
    .flatMap((folder) =>
      readdirSync(`${checkout}/${folder}`, { recursive: true, encoding: "utf8" })
        .filter((name) => testFile.test(name))
        .map((name) => `./${folder}/${name}`),
    )
    .filter((path) => !except.some((folder) => path.startsWith(`./${folder}/`)))
    .sort();
}

function bunSuite(name: string, budget: number, fast: boolean, files: readonly string[]): Suite[] {
  if (files.length === 0) return [];
  // One test may be a whole boot: its own limits are tighter and say more than bun's.
  const command = [bun, "test", "--timeout", String(fast ? 60_000 : 900_000), ...files];
  return [{ name, budget, dialect: "bun", fast, alone: true, live: !fast, command }];
}

function allSuites(): Suite[] {
  const status = (name: string, budget: number, command: string[]): Suite => ({
    ...{ name, budget, dialect: "status", fast: true, alone: false },
    command,
  });
  const slow = ["test/e2e", "test/lab", "test/bench"];
  return [
    status("types", 20, [bun, `${bin}/typescript/bin/tsc`, "--noEmit"]),
    status("page types", 20, [
      ...[bun, `${bin}/typescript/bin/tsc`, "--noEmit"],
      ...["--project", "coordinator/dashboard/browser"],
    ]),
    status("lint", 20, [bun, `${bin}/@biomejs/biome/bin/biome`, "ci", "--colors=off"]),
    status("zig format", 10, [zig(), "fmt", "--check", "zig"]),
    {
      ...{ name: "zig unit", budget: 90, dialect: "zig", fast: true, alone: false },
      command: [zig(), "test", "zig/tests.zig", "-lc", "--test-runner", "zig/test_runner.zig"],
    },
    {
      // Optimised: 100,000 schedules of a simulated cluster.
      ...{ name: "sim", budget: 300, dialect: "zig", fast: false, alone: false, live: true },
      command: [
        ...[zig(), "test", "-O", "safe", "zig/tests_sim.zig", "-lc"],
        ...["--test-runner", "zig/test_runner.zig"],
      ],
    },
    {
      // Optimised, because it walks hundreds of thousands of states.
      ...{ name: "explorer", budget: 240, dialect: "zig", fast: true, alone: false, live: true },
      command: [
        ...[zig(), "test", "-O", "safe", "zig/tests_explorer.zig", "-lc"],
        ...["--test-runner", "zig/test_runner.zig"],
      ],
    },
    {
      // Optimised, because races want speed. Needs userfaultfd, no KVM.
      ...{ name: "memory", budget: 60, dialect: "zig", fast: true, alone: true },
      command: [
        ...[zig(), "test", "-O", "safe", "zig/tests_memory.zig", "-lc"],
        ...["--test-runner", "zig/test_runner.zig"],
      ],
    },
    {
      // Optimised: a million hostile inputs, and thousands of cuts under load.
      ...{ name: "lanes", budget: 90, dialect: "zig", fast: true, alone: true, live: true },
      command: [
        ...[zig(), "test", "-O", "safe", "zig/tests_lanes.zig", "-lc"],
        ...["--test-runner", "zig/test_runner.zig"],
      ],
    },
    ...bunSuite("unit", 90, true, testFiles(["src", "acpi", "coordinator", "tools", "test"], slow)),
    {
      // Needs KVM. Static and for any x86-64: payload guests run functions of the program itself.
      ...{ name: "kvm memory", budget: 300, dialect: "zig", fast: false, alone: true, live: true },
      command: [
        ...[zig(), "test", "-O", "safe", "-target", "x86_64-linux-musl", "zig/tests_kvm.zig"],
        ...["-lc", "--test-runner", "zig/test_runner.zig"],
        ...["--test-filter", "engine.kvm_", "--test-filter", "engine.test_"],
      ],
    },
    ...bunSuite("e2e", 400, false, testFiles(["test/e2e"])),
    ...bunSuite("lab", 1500, false, testFiles(["test/lab"])).map((suite) => ({
      ...suite,
      limit: 4500,
      cleanUp: [bun, "test/lab/main.ts", "--reap", "--all"],
    })),
  ];
}

/** Runs a suite; its output is kept, and shown at once when `live`. */
async function capture(suite: Suite): Promise<{ output: string; exitCode: number }> {
  const child = Bun.spawn([...suite.command], {
    cwd: checkout,
    env: { ...process.env, FORCE_COLOR: "0", NO_COLOR: "1" },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const limit = suite.limit ?? suite.budget * 8;
  const ms = Math.min(limit * 1000, 2 ** 31 - 1);
  const timer = setTimeout(() => {
    console.log(`-- ${suite.name}: ended after ${limit} s, its limit`);
    child.kill("SIGKILL");
    if (suite.cleanUp !== undefined) Bun.spawnSync([...suite.cleanUp], { cwd: checkout });
  }, ms);
  let output = "";
  const read = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      const text = decoder.decode(chunk, { stream: true });
      output += text;
      if (suite.live && suite.alone) process.stdout.write(text);
    }
  };
  await Promise.all([read(child.stdout), read(child.stderr)]);
  const exitCode = await child.exited;
  clearTimeout(timer);
  return { output, exitCode };
}

/** A quiet suite's output without the lines of what went well. */
function withoutPasses(output: string): string {
  return output
    .split("\n")
    .filter((line) => !line.startsWith("(pass)"))
    .join("\n")
    .replace(/\n{3,}/g, "\n\n");
}

/** Of an error's line; it may quote a whole console. */
const WORDS_MAX = 600;

/** A line per failed test and one for its error; a suite that names none is itself the line. */
function whatFailed(suite: Suite, output: string): string[] {
  const failed = failures(output);
  if (failed.length === 0) return [`-- failed: ${suite.name}`];
  return failed.flatMap(({ name, error }) => [
    `-- failed: ${suite.name}: ${name}`,
    ...(error === undefined ? [] : [`   ${error.slice(0, WORDS_MAX)}`]),
  ]);
}

/** What one suite did; `failures` are the lines that the end of the run repeats. */
interface Outcome {
  readonly counts: Counts;
  readonly failures: readonly string[];
}

async function runSuite(suite: Suite, strict: boolean): Promise<Outcome> {
  const started = performance.now();
  if (suite.live && suite.alone) console.log(`-- ${suite.name}`);
  const { output, exitCode } = await capture(suite);
  if (suite.live && !suite.alone) console.log(`-- ${suite.name}\n${output}`);
  let counts = countsOf(suite.dialect, output, exitCode);
  if (counts.failed > 0 && !suite.live) console.log(withoutPasses(output));
  for (const name of skippedNames(output)) console.log(`-- ${suite.name}: skipped ${name}`);
  if (strict && counts.skipped > 0) {
    console.log(`-- ${suite.name}: skipped tests count as failed here (CI=true)`);
    counts = { ...counts, failed: counts.failed + counts.skipped, skipped: 0 };
  }
  const seconds = (performance.now() - started) / 1000;
  const over = seconds > suite.budget ? ", OVER BUDGET" : "";
  const time = `${seconds.toFixed(1)} s of ${suite.budget} s${over}`;
  console.log(`-- ${suite.name}: ${lastLine(counts)} (${time})`);
  return { counts, failures: counts.failed === 0 ? [] : whatFailed(suite, output) };
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      suite: { type: "string", multiple: true },
      list: { type: "boolean" },
      // For long repetition (make soak).
      "no-limit": { type: "boolean", default: false },
    },
  });
  const suites = allSuites().map((suite) =>
    values["no-limit"] ? { ...suite, limit: Number.POSITIVE_INFINITY } : suite,
  );
  if (values.list) {
    for (const { name, budget } of suites) console.log(`${name} (${budget} s)`);
    return 0;
  }
  const wanted = values.suite ?? ["all"];
  const chosen = suites.filter(({ name, fast }) =>
    wanted.some((word) => word === "all" || word === name || (word === "check" && fast)),
  );
  if (chosen.length === 0) {
    console.error(`no suite "${wanted.join(", ")}"; there are: check, all, or one of --list`);
    return 2;
  }
  let total = none;
  const failed: string[] = [];
  const runAll = async (queue: Suite[]) => {
    for (let suite = queue.shift(); suite !== undefined; suite = queue.shift()) {
      const outcome = await runSuite(suite, process.env["CI"] === "true");
      total = add(total, outcome.counts);
      failed.push(...outcome.failures);
    }
  };
  const together = chosen.filter(({ alone }) => !alone);
  await Promise.all([runAll(together), runAll(together)]);
  await runAll(chosen.filter(({ alone }) => alone));
  // Last, because of a long log only the end may be kept.
  for (const line of failed) console.log(line);
  console.log(lastLine(total));
  return total.failed === 0 ? 0 : 1;
}

process.exitCode = await main();
