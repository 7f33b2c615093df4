// A Linux over two nodes whose lane is cut for half a minute: the whole VM freezes and its clock
// stands still, so the guest reports no soft lockup, sees next to nothing of the cut, and works on.
// Two engines on one emulated host whose lane goes over the loopback device, which goes down.
// In the guest both CPUs read their clock all the time (span_check clock). What it sees is told
// apart from the cut by half: the guest's clock runs 150 times slower, so half a minute is 0.2 s of
// it, of which the freeze leaves what passes before it begins and what the emulation adds.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spanCheck } from "../guest/build.ts";
import { guestInitrd } from "./guest-image.ts";
import { BINARY, lastLine, runCommand, TROUBLE } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
const limit = 900;
const dilation = 150;
const cutSeconds = 30;
/** Milliseconds of the guest's clock that it is watched for: 105 s of the host's. */
const watchedMs = 700;

const CONFIG = `cluster: vm
nodes:
  - {name: node-0, cpus: 1, memory: 128M, address: "127.0.0.1:7800"}
  - {name: node-1, cpus: 1, memory: 128M, address: "127.0.0.1:7801"}
`;

/** In the guest: its kernel's log is searched too, since the console shows errors only. */
const IN_GUEST = [
  `span_check clock --rounds ${watchedMs}`,
  "&& span_check counters && span_check mutex",
  '&& ! dmesg | grep -iE "lockup|rcu.*stall|hung task|clocksource.*(unstable|skew)"',
].join(" ");

/** Seconds of the host's clock when a mark appears in the run's log; nothing once that is over. */
const AWAIT = `seen() {
  while kill -0 $run 2>/dev/null; do
    grep -q "$1" /tmp/run.log && { echo "$2=$(date +%s)"; return; }
    sleep 0.2
  done
}`;

// Seven minutes on a slow machine: where boots repeat (make soak).
const soaking = Number(process.env["SSIHV_SPAN_BOOTS"] ?? 0) >= 10;
const describeIfSoaking = soaking ? describe.skipIf(reason !== undefined) : () => undefined;

describeIfSoaking("a lane that is cut for half a minute", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 3072, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  async function boot(flags: string, cut: string): Promise<string> {
    const program = await Bun.file(await spanCheck()).bytes();
    const command = await runCommand({
      ...{ kernel: "cloud", cpus: 2, memory: "256M", nodes: 2, limit },
      initrd: await guestInitrd([{ path: "bin/span_check", bytes: program }]),
      flags: `--config /tmp/vm.yaml --clock-dilation ${dilation} ${flags}`,
      script: IN_GUEST,
    });
    const script = `cat >/tmp/vm.yaml <<'END'\n${CONFIG}END
      ${AWAIT}
      ${command} </dev/null >/tmp/run.log 2>&1 & run=$!
      seen 'span-check: clock began' began; sleep 5
      ${cut}
      seen 'span-check: clock [oF]' over
      wait $run; echo "status=$?"; cat /tmp/run.log`;
    const result = await lab.host(1).run(script, { limitSeconds: limit + 60 });
    return result.log;
  }

  function number(log: string, pattern: RegExp): number {
    return Number(pattern.exec(log)?.[1] ?? Number.NaN);
  }

  test(
    "its guest sees nothing of it and works on",
    async () => {
      failed = true;
      // A lane that is silent for half of that is connected anew: when this one is back.
      const flags = `--peer-timeout ${2 * cutSeconds}s --stall-freeze 2s`;
      const cut = `ip link set lo down; sleep ${cutSeconds}; ip link set lo up`;
      const log = await boot(flags, cut);
      const gaps = [...log.matchAll(/clock side=\d gap_us=(\d+)/g)].map((found) =>
        Number(found[1]),
      );
      const hostSeconds = number(log, /^over=(\d+)/m) - number(log, /^began=(\d+)/m);
      const hiddenSeconds = hostSeconds - (watchedMs / 1000) * dilation;
      const longest = number(log, /frozen \d+ times? for [\d.]+ s \(longest ([\d.]+) s\)/);
      console.log(
        `stall: gaps ${gaps.join(" and ")} us of the guest's clock, ${hiddenSeconds} s hidden, ` +
          `longest freeze ${longest} s, ${JSON.stringify(lastLine(log))}`,
      );
      expect(log).toContain("status=0");
      expect(log).toContain("ssihv-guest: exit 0");
      expect(log).toContain("span-check: clock ok");
      expect(log).not.toMatch(TROUBLE);
      expect(log).toMatch(/node 0 frozen: node 1 (does not answer|cannot be reached) since/);
      expect(log).toMatch(/node 0 went on after \d+\.\d s/);
      expect(longest).toBeGreaterThan(cutSeconds / 2);
      expect(hiddenSeconds).toBeGreaterThan(cutSeconds / 2);
      expect(gaps.length).toBe(2);
      for (const gap of gaps) expect(gap).toBeLessThan((cutSeconds * 1e6) / dilation / 2);
      failed = false;
    },
    (limit + 120) * 1000,
  );
});
