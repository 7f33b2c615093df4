// One Linux on two nodes: two engines on one emulated host (one boot, SSIHV_SPAN_BOOTS for more;
// `make soak` does ten), and one VM over two emulated hosts joined by address and key. In the guest
// a program of ours (test/guest) pins threads on both sides: counters, mutex, futex ping-pong, and
// 4 MiB filled and verified across: most of the RAM is not filled here. The guest's clock runs 50
// times slower (100 over two hosts): a page transfer costs a millisecond of emulation, and a tick
// costs page transfers. The cloud kernel and small VMs, because every page is dear.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spanCheck } from "../guest/build.ts";
import { guestInitrd } from "./guest-image.ts";
import { BINARY, lastLine, runCommand, TROUBLE } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
const limit = 420;
// Two emulated hosts: a page transfer crosses the emulated segment, at 2 to 5 ms each.
const limitTwoHosts = 700;
// These hosts stand still for seconds when the machine under them does.
const patience = "--peer-timeout 30s";
const options = "nohz=off skew_tick=1";
const boots = Number(process.env["SSIHV_SPAN_BOOTS"] ?? 1);

const nodes =
  "for n in 0 1; do d=/sys/devices/system/node/node$n; " +
  'echo "node$n cpus=$(cat $d/cpulist) distance=$(cat $d/distance)"; done; ';

async function initrd(): Promise<string> {
  const program = await Bun.file(await spanCheck()).bytes();
  return guestInitrd([{ path: "bin/span_check", bytes: program }]);
}

function expectTwoNodes(log: string): void {
  expect(log).toContain("ssihv-guest: ready cpus=2 nodes=2");
  expect(log).toContain("node0 cpus=0 distance=10 20");
  expect(log).toContain("node1 cpus=1 distance=20 10");
  expect(log).toContain("ssihv-guest: exit 0");
  expect(log).not.toMatch(TROUBLE);
  expect(log).not.toContain("FAILED");
}

describe.skipIf(reason !== undefined)("two engines on one host", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 3072, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  for (let boot = 1; boot <= boots; boot++) {
    const checks = boot === 1 ? "span_check all" : "span_check counters && span_check mutex";
    test(
      `boot ${boot} of ${boots}: both nodes are there, ${checks}`,
      async () => {
        failed = true;
        const command = await runCommand({
          ...{ kernel: "cloud", cpus: 2, memory: "256M", nodes: 2, limit },
          ...{ cmdline: options, initrd: await initrd() },
          flags: `--clock-dilation 50 ${patience}`,
          script: `${nodes}${checks}`,
        });
        const run = `${command} </dev/null 2>&1`;
        const result = await lab.host(1).run(run, { limitSeconds: limit + 20 });
        expectTwoNodes(result.log);
        expect(result.exitCode).toBe(0);
        const line = lastLine(result.log);
        expect(line?.mismatches).toBe(0);
        expect(line?.remoteFaults).toBeGreaterThan(1000);
        expect(line?.typescript).toBeLessThanOrEqual(300);
        console.log(`span, one host: ${JSON.stringify(line)}`);
        failed = false;
      },
      (limit + 40) * 1000,
    );
  }

  test("a killed engine ends the VM with its words, and nothing keeps running", async () => {
    failed = true;
    const command = await runCommand({
      ...{ kernel: "cloud", cpus: 2, memory: "256M", nodes: 2, limit: 120 },
      ...{ cmdline: options, flags: "--clock-dilation 50" },
    });
    // Brackets keep the patterns from matching this script's own command line.
    const script = `${command} </dev/null >/tmp/run.log 2>&1 & run=$!
      for i in $(seq 300); do pgrep -f '[e]ngine vm/1' >/dev/null && break; sleep 0.1; done
      sleep 5; pkill -KILL -f '[e]ngine vm/1'; wait $run; echo "status=$?"; sleep 1
      echo "left=$(pgrep -fc '[s]sihv engine')"; cat /tmp/run.log`;
    const result = await lab.host(1).run(script, { limitSeconds: 150 });
    expect(result.log).toContain("status=10");
    expect(result.log).toContain("left=0");
    failed = false;
  }, 200_000);
});

describe.skipIf(reason !== undefined)("one VM over two hosts", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ hosts: 2, memoryMiB: 2048, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  test(
    "joined by address and key, it boots, counts exactly and powers off on both",
    async () => {
      const key = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'";
      await lab.host(1).run(`${key} >/out/vm.key; chmod 600 /out/vm.key`, { limitSeconds: 20 });
      const lead = await runCommand({
        ...{ kernel: "cloud", cpus: 2, memory: "256M", nodes: 2, limit: limitTwoHosts },
        ...{ cmdline: options, initrd: await initrd() },
        flags: `--clock-dilation 100 ${patience} --listen 10.9.0.1:7700 --key-file /tmp/vm.key`,
        script: `${nodes}span_check counters`,
      });
      const own = "cp /out/vm.key /tmp/vm.key; chmod 600 /tmp/vm.key";
      const join = "/out/ssihv join 10.9.0.1:7700 --key-file /tmp/vm.key";
      const scripts = [
        `${own}; ${lead} </dev/null 2>&1`,
        `${own}; timeout ${limitTwoHosts} ${join} 2>&1`,
      ];
      const [first, second] = await lab.run(scripts, { limitSeconds: limitTwoHosts + 20 });
      expectTwoNodes(first?.log ?? "");
      expect(first?.exitCode).toBe(0);
      expect(second?.exitCode).toBe(0);
      console.log(`span, two hosts: ${JSON.stringify(lastLine(first?.log ?? ""))}`);
      failed = false;
    },
    (limitTwoHosts + 60) * 1000,
  );
});
