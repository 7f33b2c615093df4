import { expect, test } from "bun:test";

import { slurmNodes } from "./slurm.ts";

const ENV = { SLURM_JOB_ID: "7", SLURM_JOB_NODELIST: "n[1-2]", SLURM_LABELIO: "1" };

function answers(taskPlugin: string) {
  return async (command: readonly string[]) => {
    const words = command.join(" ");
    if (words === "scontrol show hostnames n[1-2]") return "n1\nn2\n";
    if (words === "scontrol show config") return `SwitchType = x\nTaskPlugin = ${taskPlugin}\n`;
    return `NodeName=${command.at(-1)} Arch=x NodeAddr=127.0.0.${command.at(-1)?.slice(1)} Port=1`;
  };
}

test("the allocation's nodes by srun, at the addresses that Slurm has", async () => {
  const nodes = await slurmNodes(ENV, answers("task/affinity,task/cgroup"));
  expect(nodes.map(({ name, reach }) => [name, reach.address])).toEqual([
    ["n1", "127.0.0.1"],
    ["n2", "127.0.0.2"],
  ]);
  const command = nodes[1]?.reach.command("echo on") ?? [];
  expect(command[0]).toBe("srun");
  expect(command).toContain("--overlap");
  expect(command).toContain("--cpu-bind=none");
  expect(command.slice(-4)).toEqual(["--nodelist=n2", "/bin/sh", "-c", "echo on"]);
  // A label before each line would be none of ours.
  expect(nodes[0]?.reach.env).toMatchObject({ SLURM_JOB_ID: "7", SLURM_LABELIO: undefined });
});

test("no binding is asked for where Slurm knows none", async () => {
  const [node] = await slurmNodes(ENV, answers("task/none"));
  expect(node?.reach.command("x")).not.toContain("--cpu-bind=none");
});

test("outside of an allocation: how to get one", async () => {
  const alone = slurmNodes({ SLURM_CONF: "x" }, answers("task/none"));
  expect(alone).rejects.toThrow("this is no Slurm allocation");
});
