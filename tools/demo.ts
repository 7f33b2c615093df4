// `make demo`: one Debian kernel over two nodes, in front of the user's eyes. Three rungs, always
// said which one and why: two engines on this host where KVM is fit; else the same inside an
// emulated host of the lab; in a container without the devices, first the flags that would give it
// the first rung.

import { existsSync, readFileSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { spanCheck } from "../test/guest/build.ts";
import { guestInitrd, guestKernel, guestRun } from "../test/lab/guest-image.ts";
import { startLab } from "../test/lab/lab.ts";
import { labMissing } from "../test/lab/tools.ts";

const checkout = join(import.meta.dir, "..");
const binary = `${checkout}/dist/ssihv`;
const MEMORY_MIN_KIB = 4 << 20;
const DISK_MIN_BYTES = 3 * 2 ** 30;

/** What the guest runs: both nodes, then the checks across them. */
const SHOW = [
  "echo; for n in /sys/devices/system/node/node[0-9]*; do",
  'echo "${n##*/}: cpus $(cat $n/cpulist), distances $(cat $n/distance),"',
  "$(sed -n 's/.*MemTotal: *//p' $n/meminfo); done; span_check all",
].join(" ");

function say(text: string): void {
  console.log(`demo: ${text}`);
}

/** Why the demo cannot run here at all; undefined when it can. */
export function obstacle(facts: {
  arch: string;
  memoryAvailableKib: number;
  diskFreeBytes: number;
}): string | undefined {
  const { arch, memoryAvailableKib, diskFreeBytes } = facts;
  if (arch !== "x64") return `this machine is ${arch}; SSI-HV runs on x86-64`;
  if (memoryAvailableKib < MEMORY_MIN_KIB) {
    return `${Math.round(memoryAvailableKib / 1024)} MiB of memory available, 4096 needed`;
  }
  if (diskFreeBytes < DISK_MIN_BYTES) {
    return `${Math.round(diskFreeBytes / 2 ** 20)} MiB of disk free here, 3072 needed`;
  }
  return undefined;
}

export type Rung = { readonly rung: 1 | 2; readonly why: string; readonly flags?: string };

/** Which rung, from `ssihv check --json` and what devices there are. */
export function chooseRung(facts: {
  verdict: string;
  missing: readonly string[];
  kvm: boolean;
  uffd: boolean;
  container: boolean;
}): Rung {
  if (facts.verdict !== "unfit") return { rung: 1, why: "KVM with TDP and userfaultfd are fit" };
  const why = `this host is unfit (${facts.missing.join(", ") || "see ssihv check"})`;
  if (!facts.container || (facts.kvm && facts.uffd)) return { rung: 2, why };
  const flags =
    "--device /dev/kvm --device /dev/userfaultfd " +
    "--security-opt seccomp=unconfined --cap-add SYS_NICE";
  return { rung: 2, why, flags };
}

function memoryAvailableKib(): number {
  const found = /^MemAvailable: *(\d+)/m.exec(readFileSync("/proc/meminfo", "utf8"));
  return Number(found?.[1] ?? 0);
}

function hostFacts() {
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
  const kvm = existsSync("/dev/kvm");
  return { verdict, missing, kvm, uffd: existsSync("/dev/userfaultfd"), container };
}

/** Whether what the guest printed shows everything that was promised. */
export function shown(output: string): string | undefined {
  if (!output.includes("ssihv-guest: ready cpus=2 nodes=2")) return "the guest saw no two nodes";
  if (!output.includes("span-check: all ok")) return "the check across the nodes did not pass";
  return undefined;
}

async function pieces(): Promise<{ kernel: string; initrd: string }> {
  say("getting Debian's kernel and building the guest's initramfs");
  const program = await Bun.file(await spanCheck()).bytes();
  const initrd = await guestInitrd([{ path: "bin/span_check", bytes: program }]);
  return { kernel: await guestKernel("cloud"), initrd };
}

function runFlags(kernel: string, initrd: string, script: string): string[] {
  const cmdline = `quiet nohz=off skew_tick=1 ${guestRun(script)}`;
  const shape = ["--nodes", "2", "--cpus", "2", "--memory", "512M"];
  return ["run", "--kernel", kernel, "--initrd", initrd, ...shape, "--cmdline", cmdline];
}

/** Two engines on this host, the guest's shell left to the user on a terminal. */
async function onThisHost(): Promise<string | undefined> {
  const { kernel, initrd } = await pieces();
  const tty = process.stdin.isTTY;
  const script = tty ? `${SHOW}; exec setsid cttyhack sh </dev/console` : SHOW;
  if (tty) say("the shell is yours afterwards: poweroff -f, or Ctrl-A X, ends it");
  const child = Bun.spawn([binary, ...runFlags(kernel, initrd, script)], {
    stdio: [tty ? "inherit" : "ignore", "pipe", "inherit"],
  });
  let output = "";
  for await (const chunk of child.stdout) {
    process.stdout.write(chunk);
    output += new TextDecoder().decode(chunk);
  }
  const status = await child.exited;
  return status === 0 ? shown(output) : `ssihv ended with status ${status}`;
}

/** The same inside an emulated host; the guest powers off by itself. */
async function inTheLab(): Promise<string | undefined> {
  const lacking = labMissing();
  if (lacking !== undefined) return lacking;
  const { kernel, initrd } = await pieces();
  say("starting an emulated host; the whole takes about five minutes on two cores");
  if (process.stdin.isTTY) say("(no shell at the end: that is only on the first rung)");
  const lab = await startLab({ hosts: 1, memoryMiB: 3072, files: [binary] });
  const began = performance.now();
  const flags = [...runFlags(kernel, initrd, SHOW), "--clock-dilation", "50"];
  const command = flags.map((flag) => `'${flag}'`).join(" ");
  const bar = setInterval(() => {
    const seconds = Math.round((performance.now() - began) / 1000);
    const part = Math.min(29, Math.round((seconds / 300) * 30));
    say(`[${"#".repeat(part)}${".".repeat(30 - part)}] ${seconds} s of about 300`);
  }, 15_000);
  let failed: string | undefined = "the run was cut off";
  try {
    const result = await lab.host(1).run(`/out/ssihv ${command} </dev/null 2>&1`, {
      limitSeconds: 900,
      onOutput: (text) => void process.stdout.write(text),
    });
    failed = result.exitCode === 0 ? shown(result.log) : `ssihv ended with ${result.exitCode}`;
  } finally {
    clearInterval(bar);
    await lab.close({ keep: failed !== undefined });
    if (failed !== undefined) say(`consoles and logs are in ${lab.directory}`);
  }
  return failed;
}

async function main(): Promise<number> {
  const disk = statfsSync(checkout);
  const stop = obstacle({
    arch: process.arch,
    memoryAvailableKib: memoryAvailableKib(),
    diskFreeBytes: disk.bavail * disk.bsize,
  });
  if (stop !== undefined) {
    say(`failed: ${stop}`);
    return 2;
  }
  const rung = chooseRung(hostFacts());
  if (rung.flags !== undefined) {
    say(`rung 3: a container without the devices; start it with: ${rung.flags}`);
  }
  const where = rung.rung === 1 ? "two engines on this host" : "two engines in an emulated host";
  say(`rung ${rung.rung}: ${where}, because ${rung.why}`);
  const failed = rung.rung === 1 ? await onThisHost() : await inTheLab();
  say(failed === undefined ? "ok: one Linux over two nodes, checked" : `failed: ${failed}`);
  return failed === undefined ? 0 : 1;
}

if (import.meta.main) process.exit(await main());
