// One emulated host: a QEMU process, its serial console in a file, and orders to the agent inside
// over a virtio-serial port that is QEMU's own stdin and stdout. That choice needs no socket and
// makes the host power itself off when this process dies, however it dies. A second port carries
// what a command reads (host-input.ts). Invariant: every `run` ends, with a status, at its time
// limit, or with the death of the host.

import { closeSync, existsSync, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import type { HostImage } from "./host-image.ts";
import { HostInput } from "./host-input.ts";
import { checkout } from "./paths.ts";
import { recordProcess } from "./run-directory.ts";
import { hostAddress, networkArguments } from "./segment.ts";
import { labError } from "./subprocess.ts";
import type { Tool } from "./tools.ts";

export interface HostOptions {
  index: number;
  hosts: number;
  cpus: number;
  parallelCpus: boolean;
  memoryMiB: number;
  /** This machine's, and so the host's. */
  tscKhz: number;
  directory: string;
  image: HostImage;
  qemu: Tool;
}

export interface CommandOptions {
  limitSeconds?: number;
  /** Called with output as it appears (checked ten times a second, with input fifty times). */
  onOutput?: (text: string) => void;
  /** What the command reads from stdin, for one command of a host at a time; absent: nothing. */
  input?: ReadableStream<Uint8Array>;
  /** Run it on a terminal of the host, its keyboard being `input`. */
  terminal?: boolean;
}

export interface CommandResult {
  /** The command's exit status; 124 when it was ended at its time limit, as timeout(1) has it. */
  exitCode: number;
  timedOut: boolean;
  log: string;
  consolePath: string;
  seconds: number;
}

const timedOutStatus = 124;
const kernelTrouble = /Kernel panic|BUG:|Oops|sysrq:|Out of memory|lockup|stall|lab: cannot/;
const answerGraceMs = 15_000;
const followMs = 100;
/** Somebody types and waits for the echo. */
const followTypingMs = 20;

export class LabHost {
  readonly index: number;
  readonly address: string;
  readonly consolePath: string;
  /** Resolves when the emulated machine is gone, for whatever reason. */
  readonly exited: Promise<number>;
  readonly #directory: string;
  readonly #inputSocket: string;
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #waiting = new Map<string, (status: number) => void>();
  readonly #ready = Promise.withResolvers<void>();
  #jobs = 0;
  #gone: number | undefined;
  #words = "";
  #fed: string | undefined;

  constructor(options: HostOptions) {
    this.index = options.index;
    this.address = hostAddress(options.index);
    this.consolePath = `${options.directory}/console-${options.index}`;
    this.#directory = options.directory;
    this.#process = Bun.spawn(hostCommand(options, this.consolePath), {
      cwd: options.directory,
      env: options.qemu.env,
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    recordProcess(options.directory, this.#process.pid, `host-${options.index}`);
    // By QEMU's own folder, as a socket's path has 107 bytes at most (unix(7)).
    this.#inputSocket = `/proc/${this.#process.pid}/cwd/${inputSocketName(options.index)}`;
    this.#ready.promise.catch(() => undefined); // reported by whoever awaits `ready`
    void this.#listen();
    void this.#collectWords();
    this.exited = this.#process.exited.then((status) => {
      this.#gone = status;
      const error = this.#lost();
      this.#ready.reject(error);
      for (const resolve of this.#waiting.values()) resolve(-1);
      this.#waiting.clear();
      return status;
    });
  }

  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Runs a bash script on the host; the result has its exit code and everything it printed. */
  async run(script: string, options: CommandOptions = {}): Promise<CommandResult> {
    await this.ready;
    const id = `${this.index}-${++this.#jobs}`;
    const base = `${this.#directory}/out/.lab/${id}`;
    const input = this.#feed(id, options.input);
    writeScript(base, id, script, options);
    writeFileSync(`${base}.log`, "");
    const began = performance.now();
    const ended = new Promise<number>((resolve) => this.#waiting.set(id, resolve));
    const stopFollowing = follow(`${base}.log`, options);
    this.#order(input === undefined ? `run ${id}` : `run ${id} input`);
    let timedOut = false;
    let deafTimer: Timer | undefined;
    const timer = setTimeout(
      () => {
        timedOut = true;
        this.#order(`kill ${id}`);
        // A host that does not even answer this is stuck; its end ends the wait below.
        deafTimer = setTimeout(() => this.kill(), answerGraceMs);
      },
      (options.limitSeconds ?? 300) * 1000,
    );
    const status = await ended;
    clearTimeout(timer);
    clearTimeout(deafTimer);
    stopFollowing();
    await input?.stop();
    if (input !== undefined) this.#fed = undefined;
    if (this.#gone !== undefined && status === -1) throw this.#lost();
    return {
      exitCode: timedOut ? timedOutStatus : status,
      timedOut,
      log: readFileSync(`${base}.log`, "utf8"),
      consolePath: this.consolePath,
      seconds: (performance.now() - began) / 1000,
    };
  }

  /** Ends the machine at once, as a power cut would. */
  kill(): void {
    if (this.#gone === undefined) this.#process.kill("SIGKILL");
  }

  /** What the serial console says last, and before that what sounds like a reason. */
  consoleTail(lines = 5): string {
    if (!existsSync(this.consolePath)) return "";
    const text = readFileSync(this.consolePath, "utf8").replaceAll("\r", "").trimEnd().split("\n");
    const reasons = text.slice(0, -lines).filter((line) => kernelTrouble.test(line));
    return [...reasons.slice(0, lines), ...text.slice(-lines)].join("\n");
  }

  #feed(id: string, stream: CommandOptions["input"]): HostInput | undefined {
    if (stream === undefined) return undefined;
    if (this.#fed !== undefined) {
      throw labError(`lab host ${this.index} has one input, which command ${this.#fed} reads`);
    }
    this.#fed = id;
    return new HostInput(this.#inputSocket, id, stream);
  }

  #lost(): Error {
    // QEMU warns about a segment with a single host, which is as meant.
    const words = this.#words.split("\n").filter((line) => !/warning: hub 0|^$/.test(line));
    return labError(
      `lab host ${this.index} is gone (QEMU status ${this.#gone}); its last words:\n` +
        `${[...words, this.consoleTail()].join("\n")}\nits console: ${this.consolePath}`,
    );
  }

  #order(line: string): void {
    if (this.#gone !== undefined) return;
    this.#process.stdin.write(`${line}\n`);
    this.#process.stdin.flush();
  }

  async #listen(): Promise<void> {
    const decoder = new TextDecoder();
    let pending = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (pending + decoder.decode(chunk, { stream: true })).split("\n");
      pending = lines.pop() ?? "";
      for (const line of lines) this.#hear(line.trim());
    }
  }

  #hear(line: string): void {
    const [verb, id, status] = line.split(" ");
    if (verb === "ready") this.#ready.resolve();
    if (verb !== "exit" || id === undefined) return;
    this.#waiting.get(id)?.(Number(status));
    this.#waiting.delete(id);
  }

  async #collectWords(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#process.stderr) {
      this.#words = (this.#words + decoder.decode(chunk, { stream: true })).slice(-4096);
    }
  }
}

// script(1) makes a terminal, passes its own stdin on as keys and ends with the command's status.
function writeScript(base: string, id: string, script: string, options: CommandOptions): void {
  if (options.terminal) {
    writeFileSync(`${base}.on-terminal`, script);
    const command = `/bin/bash /out/.lab/${id}.on-terminal`;
    writeFileSync(`${base}.sh`, `exec script -qefc '${command}' /dev/null\n`);
  } else {
    writeFileSync(`${base}.sh`, script);
  }
}

function inputSocketName(index: number): string {
  return `input-${index}`;
}

// Output is a file of the shared folder: reading it here costs the emulated host nothing.
function follow(path: string, { onOutput, input }: CommandOptions): () => void {
  if (onOutput === undefined) return () => undefined;
  const file = openSync(path, "r");
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(65536);
  const drain = () => {
    for (;;) {
      const count = readSync(file, buffer, 0, buffer.length, null);
      if (count === 0) return;
      onOutput(decoder.decode(buffer.subarray(0, count), { stream: true }));
    }
  };
  const timer = setInterval(drain, input === undefined ? followMs : followTypingMs);
  return () => {
    clearInterval(timer);
    drain();
    closeSync(file);
  };
}

function hostCommand(options: HostOptions, consolePath: string): string[] {
  const { directory, image, index } = options;
  const share = (tag: string, path: string, more: string) => [
    "-fsdev",
    `local,id=${tag},path=${path},security_model=none,multidevs=remap${more}`,
    "-device",
    `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`,
  ];
  const kernelLine = [
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off tsc=reliable no_timer_check",
    `tsc_early_khz=${options.tscKhz}`,
    "random.trust_cpu=on",
    `lab.node=${index} lab.hosts=${options.hosts} lab.checkout=${checkout}`,
    `lab.modules=${image.modules}`,
  ];
  return [
    // The kernel ends QEMU with us, also when we are killed hard.
    "setpriv",
    "--pdeathsig",
    "KILL",
    "--",
    ...options.qemu.command,
    "-accel",
    `tcg,thread=${options.parallelCpus ? "multi" : "single"}`,
    "-cpu",
    "max",
    "-smp",
    `${options.cpus}`,
    "-m",
    `${options.memoryMiB}`,
    "-display",
    "none",
    "-no-reboot",
    "-nodefaults",
    "-serial",
    `file:${consolePath}`,
    "-chardev",
    "stdio,id=lab,signal=off",
    "-device",
    "virtio-serial-pci",
    "-device",
    "virtserialport,chardev=lab,name=ssihv.lab",
    "-chardev",
    `socket,id=input,path=${inputSocketName(index)},server=on,wait=off`,
    "-device",
    "virtserialport,chardev=input,name=ssihv.input",
    ...networkArguments(index, options.hosts),
    ...share("root", "/", ",readonly=on"),
    ...share("out", `${directory}/out`, ""),
    "-kernel",
    image.kernel,
    "-initrd",
    image.initrd,
    "-append",
    kernelLine.join(" "),
  ];
}
