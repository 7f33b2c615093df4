// `make demo`: one Debian kernel over two nodes, in front of the user's eyes. Three rungs, always
// said which one and why: two engines on this host where KVM is fit; else the same inside an
// emulated host of the lab; in a container without the devices, first the flags that would give it
// the first rung. On a terminal the guest's shell is the user's at the end, on every rung.

import { existsSync, readFileSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { ConsoleInputStream } from "../src/cli/terminal.ts";
import { spanCheck } from "../test/guest/build.ts";
import { guestInitrd, guestKernel } from "../test/lab/guest-image.ts";
import { type Lab, startLab } from "../test/lab/lab.ts";
import { labMissing } from "../test/lab/tools.ts";
import {
  chooseRung,
  type DemoOptions,
  demoOptions,
  type GuestPieces,
  type HostFacts,
  type MachineFacts,
  notShown,
  obstacle,
  quoted,
  runWords,
  SHELL_MARK,
  USAGE,
  withLabFlags,
} from "./demo-plan.ts";

const checkout = join(import.meta.dir, "..");
const binary = `${checkout}/dist/ssihv`;

/** In an emulated host, to the end of the checks, on two shared cores: 15 and 130 s (Nov 2026). */
const LAB_SECONDS: Record<number, number> = { 1: 20, 2: 150 };
/** Nobody waits longer for a guest that has nobody at its shell; a user may stay for a day. */
const LIMIT_SECONDS = { unattended: 900, attended: 86_400 };

function say(text: string): void {
  console.log(`demo: ${text}`);
}

function machineFacts(): MachineFacts {
  const found = /^MemAvailable: *(\d+)/m.exec(readFileSync("/proc/meminfo", "utf8"));
  const disk = statfsSync(checkout);
  return {
    arch: process.arch,
    memoryAvailableKib: Number(found?.[1] ?? 0),
    diskFreeBytes: disk.bavail * disk.bsize,
  };
}

function hostFacts(): HostFacts {
  const child = Bun.spawnSync([binary, "check", "--json"]);
  let verdict = "unfit";
  let missing: string[] = [];
  try {
    const report = JSON.parse(child.stdout.toString()) as {
      verdict: string;
      lines: { title: string; state: string; required: boolean }[];
    };
    verdict = report.verdict;
    const lacking = report.lines.filter((line) => line.required && line.state === "missing");
    missing = lacking.map((line) => line.title);
  } catch {
    missing = ["ssihv check gave no answer"];
  }
  const container = existsSync("/.dockerenv") || existsSync("/run/.containerenv");
  const devices = ["kvm", "userfaultfd"].filter((name) => existsSync(`/dev/${name}`));
  const misc = existsSync("/proc/misc") ? readFileSync("/proc/misc", "utf8") : "";
  const offered = [...misc.matchAll(/^ *\d+ (\S+)$/gm)].map(([, name]) => name ?? "");
  return { verdict, missing, container, devices, offered };
}

async function guestPieces(): Promise<GuestPieces> {
  say("getting Debian's kernel and building the guest's initramfs");
  const program = await Bun.file(await spanCheck()).bytes();
  const initrd = await guestInitrd([{ path: "bin/span_check", bytes: program }]);
  return { kernel: await guestKernel("cloud"), initrd };
}

/** Two engines on this host; ssihv itself takes the terminal. */
async function onThisHost(options: DemoOptions): Promise<string | undefined> {
  const pieces = await guestPieces();
  const attended = process.stdin.isTTY === true;
  if (attended) say("the shell is yours afterwards: poweroff -f, or Ctrl-A X, ends it");
  const child = Bun.spawn([binary, ...runWords(pieces, options, attended)], {
    stdio: [attended ? "inherit" : "ignore", "pipe", "inherit"],
  });
  process.on("exit", () => child.kill());
  let output = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    process.stdout.write(chunk);
    output += decoder.decode(chunk, { stream: true });
  }
  const status = await child.exited;
  return status === 0 ? notShown(output, options.nodes) : `ssihv ended with status ${status}`;
}

/** This process's terminal as the keyboard of a command on a lab host, from `attach` on. */
class Keyboard {
  readonly #terminal = new ConsoleInputStream();
  readonly #stream = new TransformStream<Uint8Array, Uint8Array>();
  readonly #writer = this.#stream.writable.getWriter();

  constructor() {
    // Also when a signal or an error ends the demo.
    process.on("exit", () => this.#terminal.restore());
    // What is typed while the command ends goes nowhere, which is no error of the demo.
    this.#writer.closed.catch(() => undefined);
  }

  get keys(): ReadableStream<Uint8Array> {
    return this.#stream.readable;
  }

  attach(): void {
    this.#terminal.enterRaw();
    this.#terminal.start((chunk) => this.#writer.write(chunk).catch(() => this.close()));
  }

  close(): void {
    this.#terminal.close();
  }
}

/** A line now and then on how far it is, as a share of the expected time; returns its end. */
function progressBar(expected: number): () => void {
  const width = 30;
  const began = performance.now();
  const timer = setInterval(() => {
    const seconds = Math.round((performance.now() - began) / 1000);
    const part = Math.min(width - 1, Math.round((seconds / expected) * width));
    const bar = "#".repeat(part) + ".".repeat(width - part);
    say(`[${bar}] ${seconds} s of about ${expected}`);
  }, 10_000);
  return () => clearInterval(timer);
}

/** The guest's console from a lab host: shown as it comes, and the user's once it has a shell. */
async function runInHost(lab: Lab, command: string, endBar: () => void, keyboard?: Keyboard) {
  let seen = "";
  let attached = false;
  const onOutput = (text: string) => {
    process.stdout.write(text);
    seen += text;
    if (attached || !seen.includes(SHELL_MARK)) return;
    attached = true;
    endBar();
    keyboard?.attach();
  };
  if (keyboard === undefined) {
    const limitSeconds = LIMIT_SECONDS.unattended;
    return lab.host(1).run(`${command} </dev/null 2>&1`, { limitSeconds, onOutput });
  }
  const limitSeconds = LIMIT_SECONDS.attended;
  const options = { limitSeconds, onOutput, input: keyboard.keys, terminal: true };
  return lab
    .host(1)
    .run(command, options)
    .finally(() => keyboard.close());
}

/** The same inside an emulated host. */
async function inTheLab(options: DemoOptions): Promise<string | undefined> {
  const lacking = labMissing();
  if (lacking !== undefined) return lacking;
  const pieces = await guestPieces();
  const expected = LAB_SECONDS[options.nodes] ?? 0;
  say(`starting an emulated host; all takes about ${expected} seconds on two cores`);
  const keyboard = process.stdin.isTTY ? new Keyboard() : undefined;
  if (keyboard) say("then the shell is yours: poweroff -f, or Ctrl-A X, ends it; before, Ctrl-C");
  // Without the bar until then: another lab may have to end first, which startLab says.
  const lab = await startLab({ hosts: 1, memoryMiB: 3072, files: [binary] });
  const endBar = progressBar(expected);
  let failed: string | undefined = "the run was cut off";
  try {
    const words = runWords(pieces, withLabFlags(options), keyboard !== undefined);
    const command = ["/out/ssihv", ...words].map(quoted).join(" ");
    const result = await runInHost(lab, command, endBar, keyboard);
    const { exitCode, log } = result;
    failed = exitCode === 0 ? notShown(log, options.nodes) : `ssihv ended with ${exitCode}`;
  } finally {
    endBar();
    await lab.close({ keep: failed !== undefined });
    if (failed !== undefined) say(`consoles and logs are in ${lab.directory}`);
  }
  return failed;
}

const WHERE = { 1: "on this host", 2: "in an emulated host" } as const;

async function main(argv: readonly string[]): Promise<number> {
  if (argv.includes("--help") || argv.includes("-h")) {
    console.log(USAGE);
    return 0;
  }
  const options = demoOptions(argv);
  if (typeof options === "string") {
    console.error(`demo: ${options}\n${USAGE}`);
    return 2;
  }
  // First what stops every rung: ssihv itself does not start on another architecture.
  const machine = machineFacts();
  const never = obstacle(machine, 1);
  const rung = never === undefined ? chooseRung(hostFacts(), options.rung) : undefined;
  if (rung?.flags !== undefined) {
    say(`rung 3: a container without the devices; for rung 1 start it with: ${rung.flags}`);
  }
  const engines = options.nodes === 1 ? "one engine" : "two engines";
  if (rung !== undefined) {
    say(`rung ${rung.rung}: ${engines} ${WHERE[rung.rung]}, because ${rung.why}`);
  }
  const stop = never ?? (rung && obstacle(machine, rung.rung));
  if (rung === undefined || stop !== undefined) {
    say(`failed: ${stop}`);
    return 2;
  }
  const failed = await (rung.rung === 1 ? onThisHost(options) : inTheLab(options));
  const nodes = options.nodes === 1 ? "one node" : "two nodes";
  say(failed === undefined ? `ok: one Linux over ${nodes}, checked` : `failed: ${failed}`);
  return failed === undefined ? 0 : 1;
}

if (import.meta.main) {
  // Exiting ends the guest or the lab, and puts the terminal back; 128 + signal as shells have it.
  process.on("SIGINT", () => process.exit(130));
  process.on("SIGTERM", () => process.exit(143));
  process.on("SIGHUP", () => process.exit(129));
  process.exit(await main(process.argv.slice(2)));
}
