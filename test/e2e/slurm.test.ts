// `ssihv run --hosts slurm` in a real Slurm: one VM over an allocation of two nodes, which ends
// with its guest, or with the allocation.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { until } from "./cluster-processes.ts";
import { powerOff, REMOTE } from "./running-vm.ts";
import { SlurmCluster } from "./slurm-cluster.ts";
import { binary, hasKvm, isRoot } from "./support.ts";
import { asm, increment, say, writeGuest } from "./tiny-guest.ts";

/** Slurm's daemons are root's. */
const able = isRoot && hasKvm();

let slurm: SlurmCluster;

beforeAll(async () => {
  if (able) slurm = await SlurmCluster.start();
}, 120_000);

afterAll(() => slurm?.[Symbol.asyncDispose]());

/** These guests run where a Linux would not, hence --accept-unfit. */
function vm(name: string, ...code: readonly (readonly number[])[]): string[] {
  const kernel = `${slurm.folder}/${name}`;
  writeGuest(kernel, ...code);
  const shape = ["--kernel", kernel, "--memory", "256M", "--name", name, "--accept-unfit"];
  return [binary, "run", "--hosts", "slurm", ...shape];
}

/** Submits a job of two nodes; its id, and what it has written. */
async function submit(words: readonly string[]): Promise<{ id: string; text: () => string }> {
  const script = `${slurm.folder}/job.sh`;
  const output = `${slurm.folder}/job.out`;
  writeFileSync(output, "");
  writeFileSync(
    script,
    `#!/bin/sh\n#SBATCH --nodes=2 --output=${output}\nexec ${words.join(" ")}\n`,
  );
  const id = await slurm.ok("sbatch", "--parsable", script);
  return { id, text: () => readFileSync(output, "utf8") };
}

describe.skipIf(!able)("one VM over a Slurm allocation (needs root and /dev/kvm)", () => {
  test("salloc: the console is here, and the guest's power-off ends it", async () => {
    const guest = vm("off", increment(REMOTE), say("hello"), powerOff);
    const { code, out, err } = await slurm.command("salloc", "--quiet", "--nodes=2", ...guest);
    expect(err).toContain("host n2 joined as node 1");
    expect(err).toMatch(/[1-9]\d* remote faults? .* 0 mismatches/);
    expect([code, out]).toEqual([0, "hello"]);
    await slurm.isIdle();
  });

  test("sbatch: the guest's debug exit is the status of the job", async () => {
    const { id, text } = await submit(vm("debug", increment(REMOTE), asm.outb(0xf4, 0x10)));
    await slurm.isIdle();
    expect(text()).toContain("the guest wrote to isa-debug-exit (value 16)");
    expect(await slurm.job(id)).toContain("ExitCode=33:0");
  });

  test("scancel ends the VM on all nodes", async () => {
    const forever = asm.waitFor(0x3fd, 0x80);
    const { id, text } = await submit(vm("canceled", increment(REMOTE), say("hello"), forever));
    await until("the guest says hello", () => text().includes("hello"));
    // The command, its parts on two nodes, and an engine of each.
    expect(slurm.processes().length).toBeGreaterThanOrEqual(5);
    await slurm.ok("scancel", id);
    await slurm.isIdle();
    expect(text()).toContain("ssihv was ended there by SIGTERM");
    expect(await slurm.job(id)).toContain("JobState=CANCELLED");
  });
});
