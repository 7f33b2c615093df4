// One Linux on one node: Debian's unmodified kernels boot in `dist/ssihv` on an emulated host with
// nested paging, answer on the serial console, take a CPU down and up, reboot and power off.
// One-CPU hosts: the emulation of SVM under several host CPUs is not reliable (see
// ARCHITECTURE.md).

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { assertHealthy, BINARY, type GuestRun, lastLine, runCommand } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
const limit = 120;

describe.skipIf(reason !== undefined)("one Linux on one node", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 3072, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  const run = async (guest: Omit<GuestRun, "limit" | "memory">, before = "") => {
    const command = await runCommand({ memory: "256M", limit, ...guest });
    return lab.host(1).run(`${before} ${command} 2>&1`, { limitSeconds: limit + 20 });
  };

  for (const kernel of ["cloud", "generic"] as const) {
    for (const cpus of [1, 2, 4]) {
      test(
        `${kernel} kernel, ${cpus} vCPUs: all come up, power-off ends it`,
        async () => {
          const result = await run({ kernel, cpus, script: "nproc" }, "</dev/null");
          expect(result.log).toContain(`ssihv-guest: ready cpus=${cpus} nodes=1`);
          assertHealthy(result);
          expect(lastLine(result.log)?.typescript).toBeLessThanOrEqual(300);
        },
        (limit + 30) * 1000,
      );
    }
  }

  test(
    "CPU 1 goes offline and online ten times",
    async () => {
      const script =
        "c=/sys/devices/system/cpu/cpu1/online; for i in 1 2 3 4 5 6 7 8 9 10; do " +
        "echo 0 >$c && echo 1 >$c || exit 9; done; " +
        "echo online=$(cat /sys/devices/system/cpu/online)";
      const result = await run({ kernel: "cloud", cpus: 2, script }, "</dev/null");
      expect(result.log).toContain("online=0-1");
      assertHealthy(result);
    },
    (limit + 30) * 1000,
  );

  test(
    "commands typed on the console are answered; a reboot starts again; then power-off",
    async () => {
      const command = await runCommand({ kernel: "cloud", cpus: 1, memory: "256M", limit });
      // Types when the guest has said what it waits for, never at a time.
      const script = `
        mkfifo /tmp/typed; exec 3<>/tmp/typed; : >/tmp/console
        says() { for i in $(seq 900); do grep -qa "$1" /tmp/console && return; sleep 0.1; done; }
        ( says 'guest# '; echo 'echo six-times-seven-$((6*7))'; says 'seven-42'
          echo 'reboot -f'; says 'guest reset by'; : >/tmp/console; says 'guest# '
          echo 'echo second-boot; poweroff -f' ) >&3 &
        ${command} <&3 2>&1 | tee -a /tmp/console /tmp/all >/dev/null
        status=\${PIPESTATUS[0]}; cat /tmp/all; exit $status`;
      const result = await lab.host(1).run(script, { limitSeconds: limit + 20 });
      expect(result.log).toContain("seven-42");
      expect(result.log).toContain("guest reset by");
      expect(result.log).toContain("second-boot");
      expect(result.exitCode).toBe(0);
    },
    (limit + 30) * 1000,
  );

  test(
    "with --no-reboot a guest reset ends the run with its own status",
    async () => {
      const guest = { kernel: "cloud", cpus: 1, script: "reboot -f" } as const;
      const result = await run({ ...guest, flags: "--no-reboot" }, "</dev/null");
      expect(result.exitCode).toBe(6);
    },
    (limit + 30) * 1000,
  );

  test("`ssihv check` finds the host fit, with page walks that write", async () => {
    const result = await lab.host(1).run("/out/ssihv check --json", { limitSeconds: 60 });
    expect(result.exitCode).toBe(0);
    expect(result.log).toMatch(/"verdict":\s*"(fit|degraded)"/);
    failed = false;
  }, 80_000);
});
