// The daemons as services: the units by systemd's own check, and a host that a real systemd runs.

import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import type { SandboxState } from "../../src/engine/messages.ts";
import { ECHO, until } from "./cluster-processes.ts";
import { binary, hasKvm, isRoot, run, temporaryFolder } from "./support.ts";
import { SystemdHost } from "./systemd-host.ts";
import { say, writeGuest } from "./tiny-guest.ts";

const INSTALLED = "/usr/local/bin/ssihv";

for (const daemon of ["node", "coordinator"] as const) {
  test(`systemd finds nothing wrong with the unit of ${daemon}`, async () => {
    using folder = temporaryFolder();
    const installed = await run([binary, "install", daemon, "--root", folder.path]);
    expect([installed.code, installed.out]).toEqual([0, ""]);
    const file = join(folder.path, "etc/systemd/system", `ssihv-${daemon}.service`);
    const unit = readFileSync(file, "utf8");
    // The executable that is checked is the one below this root.
    writeFileSync(file, unit.replace(INSTALLED, join(folder.path, INSTALLED)));
    const verified = await run(["systemd-analyze", "verify", "--man=no", file]);
    expect([verified.code, verified.out, verified.err]).toEqual([0, "", ""]);
    // The check is one: it sees what is wrong.
    writeFileSync(file, unit.replace("KillMode=mixed", "KillMode=mixt").replace("ssihv", "gone"));
    expect((await run(["systemd-analyze", "verify", "--man=no", file])).err).not.toBe("");
  });
}

test.skipIf(!isRoot || !hasKvm())(
  "on a host that systemd runs: installed, a VM, stopped, killed, upgraded, uninstalled",
  async () => {
    await using host = await SystemdHost.start();
    const early = await host.run(binary, "install", "coordinator");
    expect([early.code, early.err]).toEqual([
      2,
      expect.stringContaining("has no coordinator's certificate"),
    ]);
    const alone = await host.run(binary, "install", "node");
    expect([alone.code, alone.err]).toEqual([2, expect.stringContaining("has not joined")]);

    await host.ok(binary, "certs", "init");
    await host.ok(binary, "install", "coordinator", "--listen", "127.0.0.1:27780");
    // Ready means that it can be asked.
    const { out: token } = await host.ok(INSTALLED, "cluster", "token", "host-a");
    const flags = ["--name", "host-a", "--memory", "1G", "--accept-unfit"];
    await host.ok(binary, "install", "node", "--join", token.trim(), ...flags);

    writeGuest(host.path("/etc/ssihv/guest"), say("hello"), ECHO);
    const yaml = "name: one\nnodes:\n  - { cpus: 2, memory: 128M }\nkernel: /etc/ssihv/guest\n";
    writeFileSync(host.path("/etc/ssihv/one.yaml"), yaml);
    const listed = async () => {
      const { out } = await host.ok(INSTALLED, "vm", "list", "--json");
      return (JSON.parse(out) as { state: string }[])[0]?.state;
    };
    const connected = () =>
      until("the agent is connected", async () => {
        const { out } = await host.ok(INSTALLED, "cluster", "status", "--json");
        return (JSON.parse(out) as { hosts: { state: string }[] }).hosts[0]?.state === "up";
      });
    await connected();
    await host.ok(INSTALLED, "vm", "create", "-f", "/etc/ssihv/one.yaml", "--start");
    await until("the VM runs", async () => (await listed()) === "running");
    const shown = JSON.parse((await host.ok(INSTALLED, "vm", "show", "one", "--json")).out) as {
      engines: { nodes: { sandbox: SandboxState }[] };
    };
    const sandbox = shown.engines.nodes[0]?.sandbox;
    expect(sandbox).toMatchObject({ filter: true, user: expect.any(Number) });
    // Limits need the memory controller in version 2.
    if (host.limitsMemory) {
      expect(sandbox?.memoryBytesMax).toBeGreaterThan(128 << 20);
      expect(sandbox?.missing).toEqual([]);
    } else expect(sandbox?.missing).toEqual(["the agent's control group cannot limit memory"]);

    // In order: the agent ends its VM, and the coordinator hears it.
    await host.ok("systemctl", "stop", "ssihv-node");
    expect(await listed()).toBe("stopped");

    await host.ok("systemctl", "start", "ssihv-node");
    await connected();
    await host.ok(INSTALLED, "vm", "start", "one");
    await until("the VM runs again", async () => (await listed()) === "running");
    await host.ok("systemctl", "kill", "-s", "KILL", "--kill-who=main", "ssihv-node");
    await until("its VM is known to be gone", async () => (await listed()) === "failed");
    await until("systemd has started it again", async () => {
      return (await host.run("systemctl", "is-active", "ssihv-node")).out.trim() === "active";
    });
    const group = (await host.ok("systemctl", "status", "ssihv-node", "--no-pager")).out;
    expect(group).not.toContain("ssihv engine");

    const again = await host.ok(INSTALLED, "install", "node", "--memory", "512M");
    expect(again.err).toContain("goes on as it was");
    expect(readFileSync(host.path("/etc/default/ssihv-node"), "utf8")).toContain(
      'SSIHV_OPTIONS="--memory 512M"\n',
    );
    // As a package puts a new file in place: what runs goes on from the old one.
    const same = await host.ok(INSTALLED, "install", "coordinator");
    expect(same.err).toContain("nothing has changed");
    await host.ok("cp", INSTALLED, `${INSTALLED}.new`);
    await host.ok("mv", `${INSTALLED}.new`, INSTALLED);
    const renewed = await host.ok(INSTALLED, "install", "coordinator");
    expect(renewed.err).toContain("ssihv-coordinator.service runs, and starts with this host");
    expect((await host.ok(INSTALLED, "install", "coordinator")).err).toContain(
      "nothing has changed",
    );
    for (const daemon of ["node", "coordinator"]) {
      await host.ok(INSTALLED, "uninstall", daemon);
      const { code } = await host.run("systemctl", "cat", `ssihv-${daemon}`);
      expect(code).not.toBe(0);
    }
  },
);
