// A lab: N emulated hosts on one segment, kept up while commands run in them. `startLab` for many
// checks in one boot, `runLab` for one command. Everything a lab starts or writes ends with
// `close`, except the run directory when something failed: consoles and logs are then the evidence.

import { cp } from "node:fs/promises";
import { basename } from "node:path";
import { hostImage } from "./host-image.ts";
import { type CommandOptions, type CommandResult, LabHost } from "./lab-host.ts";
import { lockLab } from "./lock.ts";
import {
  createRunDirectory,
  keepRunDirectory,
  reap,
  recordProcess,
  removeRunDirectory,
} from "./run-directory.ts";
import { hubArguments } from "./segment.ts";
import { labError } from "./subprocess.ts";
import { findTool, type Tool } from "./tools.ts";
import { tscKhz } from "./tsc-rate.ts";

export interface LabOptions {
  hosts?: number;
  /** Emulated CPUs per host. */
  cpus?: number;
  /**
   * Emulate the CPUs of a host in parallel: about 1.5 times as fast, and not reliable. Of 31 boots
   * of a four-vCPU guest on two parallel CPUs 4 failed (a guest triple fault, a panic of the host,
   * two unrecorded), of 15 with the CPUs taking turns none (2 cores, Nov 2026). Suspected, not
   * proved: QEMU changes a CPU's pending-interrupt word without a lock on SVM entry and exit.
   */
  parallelCpus?: boolean;
  memoryMiB?: number;
  bootLimitSeconds?: number;
  /** Files or folders copied to /out of all hosts before boot. */
  files?: readonly string[];
  /** netem arguments (`delay 1ms loss 1%`) for all hosts or, as an array, host by host. */
  netem?: string | readonly (string | undefined)[];
  /** Load Soft-RoCE and give every host an rxe0 on the segment. */
  rdma?: boolean;
  /** Run beside other labs of this checkout instead of waiting for them. */
  parallel?: boolean;
}

export class Lab {
  readonly hosts: readonly LabHost[];
  readonly directory: string;
  /** This machine's path of what the hosts see as /out. */
  readonly out: string;
  readonly bootSeconds: number;
  readonly #release: () => Promise<void>;

  constructor(parts: {
    hosts: readonly LabHost[];
    directory: string;
    bootSeconds: number;
    release: () => Promise<void>;
  }) {
    this.hosts = parts.hosts;
    this.directory = parts.directory;
    this.out = `${parts.directory}/out`;
    this.bootSeconds = parts.bootSeconds;
    this.#release = parts.release;
  }

  /** The host with this 1-based number. */
  host(index: number): LabHost {
    const host = this.hosts[index - 1];
    if (host === undefined) throw new RangeError(`the lab has no host ${index}`);
    return host;
  }

  /** The same script (or one per host) on all hosts at once. */
  async run(
    script: string | readonly string[],
    options: CommandOptions & { onHostOutput?: (index: number, text: string) => void } = {},
  ): Promise<CommandResult[]> {
    const { onHostOutput } = options;
    return Promise.all(
      this.hosts.map((host, position) => {
        const own = typeof script === "string" ? script : script[position];
        if (own === undefined) throw new RangeError(`no script for host ${host.index}`);
        const onOutput = onHostOutput && ((text: string) => onHostOutput(host.index, text));
        return host.run(own, onOutput === undefined ? options : { ...options, onOutput });
      }),
    );
  }

  /** Ends all hosts; `keep` leaves the run directory with consoles and logs in place. */
  async close(options: { keep?: boolean } = {}): Promise<void> {
    await this.#release();
    if (options.keep) keepRunDirectory(this.directory);
    else removeRunDirectory(this.directory);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

export async function startLab(options: LabOptions = {}): Promise<Lab> {
  const count = options.hosts ?? 1;
  if (!Number.isInteger(count) || count < 1 || count > 64) {
    throw labError(`a lab has 1 to 64 hosts, not ${count}`);
  }
  const image = await hostImage();
  const qemu = await findTool("qemu-system-x86_64");
  const tsc = await tscKhz();
  const unlock = options.parallel ? async () => undefined : await lockLab();
  reap();
  const directory = createRunDirectory();
  const children = new Children(directory);
  const release = async () => {
    await children.end();
    await unlock();
  };
  try {
    const began = performance.now();
    for (const file of options.files ?? []) {
      await cp(file, `${directory}/out/${basename(file)}`, { recursive: true });
    }
    startHub(count, qemu, children);
    const hosts = Array.from({ length: count }, (_, position) => {
      const cpus = options.cpus ?? 1;
      const memoryMiB = options.memoryMiB ?? 2048;
      const index = position + 1;
      const parallelCpus = options.parallelCpus ?? false;
      const shape = { index, hosts: count, cpus, parallelCpus, memoryMiB };
      return children.add(new LabHost({ ...shape, tscKhz: tsc, directory, image, qemu }));
    });
    const ready = Promise.all(hosts.map((host) => host.ready));
    await within(options.bootLimitSeconds ?? 120, ready, hosts);
    const bootSeconds = (performance.now() - began) / 1000;
    const lab = new Lab({ hosts, directory, bootSeconds, release });
    await prepare(lab, options);
    return lab;
  } catch (error) {
    await release();
    keepRunDirectory(directory);
    throw error;
  }
}

interface Child {
  kill: () => void;
  exited: Promise<unknown>;
}

// The processes of one lab. Also ended when this process exits without closing the lab; where even
// that does not happen (SIGKILL), the kernel ends them (setpriv --pdeathsig).
class Children {
  readonly directory: string;
  readonly #children: Child[] = [];
  readonly #atExit = (status: number) => {
    for (const child of this.#children) child.kill();
    // Above 128 is how main.ts says that it was told to stop; an error leaves its evidence.
    if (status === 0 || status > 128) removeRunDirectory(this.directory);
    else keepRunDirectory(this.directory);
  };

  constructor(directory: string) {
    this.directory = directory;
    process.on("exit", this.#atExit);
  }

  add<T extends Child>(child: T): T {
    this.#children.push(child);
    return child;
  }

  async end(): Promise<void> {
    process.off("exit", this.#atExit);
    for (const child of this.#children) child.kill();
    await Promise.all(this.#children.map((child) => child.exited));
  }
}

function startHub(hosts: number, qemu: Tool, children: Children): void {
  const hub = hubArguments(hosts);
  if (hub === undefined) return;
  const child = Bun.spawn(["setpriv", "--pdeathsig", "KILL", "--", ...qemu.command, ...hub], {
    cwd: children.directory,
    env: qemu.env,
    stdio: ["ignore", "ignore", "ignore"],
  });
  recordProcess(children.directory, child.pid, "hub");
  children.add({ kill: () => child.kill("SIGKILL"), exited: child.exited });
}

async function within(seconds: number, work: Promise<unknown>, hosts: LabHost[]): Promise<void> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const tails = hosts.map(
      (host) => `host ${host.index} (${host.consolePath}):\n${host.consoleTail()}`,
    );
    late.reject(labError(`the lab did not boot within ${seconds} s\n${tails.join("\n")}`));
  }, seconds * 1000);
  try {
    await Promise.race([work, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

async function prepare(lab: Lab, options: LabOptions): Promise<void> {
  const scripts = lab.hosts.map((_, position) => {
    const lines = [];
    const netem = typeof options.netem === "string" ? options.netem : options.netem?.[position];
    if (netem) lines.push(`modprobe sch_netem; tc qdisc add dev eth0 root netem ${netem}`);
    if (options.rdma)
      lines.push("modprobe rdma_rxe ib_uverbs; rdma link add rxe0 type rxe netdev eth0");
    return `set -e\n${lines.join("\n")}`;
  });
  if (scripts.every((script) => script === "set -e\n")) return;
  const results = await lab.run(scripts, { limitSeconds: 60 });
  const failed = results.findIndex((result) => result.exitCode !== 0);
  if (failed >= 0) throw labError(`lab host ${failed + 1}: set-up failed: ${results[failed]?.log}`);
}

export interface RunLabOptions extends LabOptions {
  command?: string;
  commandPerHost?: readonly string[];
  limitSeconds?: number;
  onHostOutput?: (index: number, text: string) => void;
  keep?: boolean;
}

export interface RunLabResult {
  hosts: CommandResult[];
  bootSeconds: number;
  /** Where consoles and logs are kept, when they are: on failure or on request. */
  kept: string | undefined;
}

/** Boots a lab, runs one command on every host, ends the lab. */
export async function runLab(options: RunLabOptions): Promise<RunLabResult> {
  const lab = await startLab(options);
  let keep = true;
  try {
    const hosts = await lab.run(options.commandPerHost ?? options.command ?? "true", options);
    keep = options.keep === true || hosts.some((host) => host.exitCode !== 0);
    return { hosts, bootSeconds: lab.bootSeconds, kept: keep ? lab.directory : undefined };
  } finally {
    await lab.close({ keep });
  }
}
