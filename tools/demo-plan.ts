// What the demo decides, as pure functions: its flags, whether this machine can run it at all, on
// which rung, the command line, and whether what the guest printed is what was promised.

import { parseArgs } from "node:util";
import { messageOf } from "../src/base/errors.ts";
import { guestRun } from "../test/lab/guest-image.ts";

export const USAGE = `Usage: bun tools/demo.ts [flags]     (make demo ARGS='...')
Boots one Debian kernel over two nodes and checks memory and counters across them; on a terminal
the guest's shell is yours at the end. Rung 1: two engines on this host, where KVM is fit. Rung 2:
the same inside an emulated host, in minutes. In a container without the devices, first the flags
that would give it rung 1.
  --rung N    take rung 1 or 2, whatever the host is fit for
  --nodes N   1 or 2 nodes (2); 1 shows the same guest without a span, quicker
  --run-flags='FLAGS'
              more flags for ssihv run, such as '--clock-dilation 50' on an emulated host`;

export type RungNumber = 1 | 2;

export interface DemoOptions {
  readonly rung?: RungNumber;
  readonly nodes: number;
  readonly runFlags: readonly string[];
}

const flags = {
  rung: { type: "string" },
  nodes: { type: "string" },
  "run-flags": { type: "string" },
} as const;

/** The options, or what is wrong with them. */
export function demoOptions(argv: readonly string[]): DemoOptions | string {
  try {
    const { values } = parseArgs({ args: [...argv], options: flags });
    const { rung, nodes, "run-flags": given = "" } = values;
    const runFlags = given.split(/\s+/).filter((word) => word !== "");
    for (const [name, text] of Object.entries({ rung, nodes })) {
      if (text !== undefined && text !== "1" && text !== "2") {
        return `--${name} is 1 or 2, not "${text}"`;
      }
    }
    const chosen = rung && { rung: rung === "1" ? (1 as const) : (2 as const) };
    return { ...chosen, nodes: nodes === "1" ? 1 : 2, runFlags };
  } catch (error) {
    return messageOf(error);
  }
}

/**
 * MiB. Rung 1: both engines may hold a copy of each of the guest's 512 MiB, and the guest's kernel
 * is unpacked. Rung 2: an emulated host of 3 GiB, the host's kernel and perhaps QEMU are unpacked.
 */
const NEEDS = {
  1: { memory: 1536, disk: 512 },
  2: { memory: 4096, disk: 3072 },
} as const;

export interface MachineFacts {
  readonly arch: string;
  readonly memoryAvailableKib: number;
  readonly diskFreeBytes: number;
}

/** Why this machine cannot run that rung; undefined when it can. */
export function obstacle(facts: MachineFacts, rung: RungNumber): string | undefined {
  if (facts.arch !== "x64") return `this machine is ${facts.arch}; SSI-HV runs on x86-64`;
  const need = NEEDS[rung];
  const memory = Math.floor(facts.memoryAvailableKib / 1024);
  const disk = Math.floor(facts.diskFreeBytes / 2 ** 20);
  if (memory < need.memory) {
    return `${memory} MiB of memory available, rung ${rung} needs ${need.memory}`;
  }
  if (disk < need.disk) {
    return `${disk} MiB of disk free in the checkout, rung ${rung} needs ${need.disk}`;
  }
  return undefined;
}

export interface HostFacts {
  /** Of `ssihv check --json`, with the titles of what is required and missing. */
  readonly verdict: string;
  readonly missing: readonly string[];
  readonly container: boolean;
  /** Device files that are here: names below /dev. */
  readonly devices: readonly string[];
  /** Devices that the host's kernel offers: names in /proc/misc, which no container hides. */
  readonly offered: readonly string[];
}

export interface Rung {
  readonly rung: RungNumber;
  readonly why: string;
  /** What to start this container with for rung 1. */
  readonly flags?: string;
}

/** Which rung, and why. */
export function chooseRung(facts: HostFacts, wanted?: RungNumber): Rung {
  if (wanted !== undefined) return { rung: wanted, why: "--rung asks for it" };
  if (facts.verdict !== "unfit") return { rung: 1, why: "KVM with TDP and userfaultfd are fit" };
  const why = `this host is unfit (${facts.missing.join(", ") || "see ssihv check"})`;
  const here = (name: string) => facts.devices.includes(name);
  if (!facts.container || (here("kvm") && here("userfaultfd"))) return { rung: 2, why };
  return { rung: 2, why, flags: containerFlags(facts.offered) };
}

/** docker run and podman run have the same flags. */
function containerFlags(offered: readonly string[]): string {
  // The device came with Linux 6.1 and, like the host's module for it, may be absent; the system
  // call needs SYS_PTRACE to be told of KVM's own faults.
  const userfaultfd = offered.includes("userfaultfd")
    ? "--device /dev/userfaultfd"
    : "--cap-add SYS_PTRACE";
  const unconfined = "--security-opt seccomp=unconfined --cap-add SYS_NICE";
  const all = `--device /dev/kvm ${userfaultfd} ${unconfined}`;
  if (offered.includes("kvm")) return all;
  return `${all} (first, on the container's host: modprobe kvm_amd or kvm_intel)`;
}

/** test/lab/guest-init.sh says it just before a shell takes the console. */
export const SHELL_MARK = "ssihv-guest: shell";

/** The nodes, then the checks across them. */
const SHOW = [
  "echo; for n in /sys/devices/system/node/node[0-9]*; do",
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is the guest's shell that expands it
  'echo "${n##*/}: cpus $(cat $n/cpulist), distances $(cat $n/distance),"',
  "$(sed -n 's/.*MemTotal: *//p' $n/meminfo); done; span_check all",
].join(" ");

export interface GuestPieces {
  readonly kernel: string;
  readonly initrd: string;
}

/** The words after `ssihv`; with `shell` the guest does not power off but gives one. */
export function runWords(pieces: GuestPieces, options: DemoOptions, shell: boolean): string[] {
  const { kernel, initrd } = pieces;
  const words = shell ? `${guestRun(SHOW)} ssihv.shell` : guestRun(SHOW);
  const cmdline = `quiet ${words}`;
  const shape = ["--nodes", `${options.nodes}`, "--cpus", "2", "--memory", "512M"];
  const boot = ["--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline];
  return ["run", ...boot, ...shape, ...options.runFlags];
}

/** Flags of the second rung, where those given do not say otherwise: emulated hosts are slow. */
export function withLabFlags(options: DemoOptions): DemoOptions {
  const standard = { "--clock-dilation": "50", "--peer-timeout": "30s" };
  const given = (name: string) =>
    options.runFlags.some((flag) => flag === name || flag.startsWith(`${name}=`));
  const missing = Object.entries(standard).filter(([name]) => !given(name));
  return { ...options, runFlags: [...missing.flat(), ...options.runFlags] };
}

/** What of the promised the guest did not show; undefined when all is there. */
export function notShown(output: string, nodes: number): string | undefined {
  if (!output.includes(`ssihv-guest: ready cpus=2 nodes=${nodes} `)) {
    return `the guest did not see 2 CPUs on ${nodes} node${nodes === 1 ? "" : "s"}`;
  }
  if (!output.includes("span-check: all ok")) return "the check across the CPUs did not pass";
  return undefined;
}

/** A word for a POSIX shell. */
export function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
