import { expect, test } from "bun:test";
import { chooseRung, obstacle, shown } from "./demo.ts";

const roomy = { arch: "x64", memoryAvailableKib: 8 << 20, diskFreeBytes: 2 ** 34 };
const unfit = { verdict: "unfit", missing: ["TDP"], kvm: true, uffd: true, container: false };

test("a machine that cannot run it is told why", () => {
  expect(obstacle(roomy)).toBeUndefined();
  expect(obstacle({ ...roomy, arch: "arm64" })).toContain("arm64");
  expect(obstacle({ ...roomy, memoryAvailableKib: 1 << 20 })).toContain("1024 MiB of memory");
  expect(obstacle({ ...roomy, diskFreeBytes: 2 ** 20 })).toContain("1 MiB of disk");
});

test("a fit host runs it itself, an unfit one emulates, a bare container is told its flags", () => {
  expect(chooseRung({ ...unfit, verdict: "fit" }).rung).toBe(1);
  expect(chooseRung({ ...unfit, verdict: "degraded" }).rung).toBe(1);
  expect(chooseRung(unfit)).toEqual({ rung: 2, why: "this host is unfit (TDP)" });
  const bare = chooseRung({ ...unfit, container: true, kvm: false });
  expect(bare.rung).toBe(2);
  expect(bare.flags).toContain("--device /dev/kvm");
});

test("only a guest of two nodes with passed checks counts", () => {
  const good = "ssihv-guest: ready cpus=2 nodes=2 uptime=1\nspan-check: all ok\n";
  expect(shown(good)).toBeUndefined();
  expect(shown(good.replace("nodes=2", "nodes=1"))).toContain("two nodes");
  expect(shown(good.replace("all ok", "x FAILED"))).toContain("did not pass");
});
