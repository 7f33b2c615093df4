// Certificates of hosts while everything runs, from the built binary with real engines: the CA is
// replaced and the old one dropped under a running VM whose console is read, agents are killed in
// the moment of their renewal, and a host that was off past its certificate's end comes back.

import { describe, expect, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";

import { Cluster, until } from "./cluster-processes.ts";
import { binary, hasKvm } from "./support.ts";

/** An agent looks five times a second whether there is something to ask. */
const KILLS = 7;
const KILL_STEP_MS = 40;
/** Far more than a process of these tests is ever held up. */
const LIFE_S = 6;

async function currentAre(cluster: Cluster, ...hosts: string[]): Promise<void> {
  for (const name of hosts) {
    await until(`${name} has a certificate of the new CA`, async () => {
      const host = await cluster.hostIs(name, "up");
      return host.certificate?.current === true;
    });
  }
}

function ownFile(cluster: Cluster, host: string): string {
  return join(cluster.folder, host, "node.pem");
}

function cas(text: string): number {
  return text.split("BEGIN CERTIFICATE").length - 1;
}

describe.skipIf(!hasKvm())("certificates of hosts (needs /dev/kvm)", () => {
  test("a new CA comes and the old one goes under a VM that does not notice", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const before = await cluster.vmIs("tiny", "running");
    const engines = cluster.engines();
    const reader = Bun.spawn([binary, "vm", "console", "tiny"], {
      env: { ...process.env, SSIHV_RUNTIME_DIR: join(cluster.folder, "run") },
      ...{ stdin: "pipe", stdout: "pipe", stderr: "inherit" },
    });
    let shown = "";
    const reading = (async () => {
      for await (const chunk of reader.stdout) shown += new TextDecoder().decode(chunk);
    })();
    await until("it says hello", () => shown.includes("hello"));
    const since = (await cluster.hostIs("host-a", "up")).since;

    await cluster.ok("certs", "rotate", "--ca");
    await currentAre(cluster, "host-a", "host-b");
    expect(await cluster.ok("cluster", "status")).not.toContain("(old CA)");
    // Its certificate, the new CA under the old one, and both CAs.
    const own = ownFile(cluster, "host-a");
    expect(cas(readFileSync(own, "utf8"))).toBe(4);
    expect(statSync(own).mode & 0o777).toBe(0o600);
    // A host that is off has not changed over after the next one: the old CA must stay.
    await cluster.ok("certs", "rotate", "--drop-old");
    await currentAre(cluster, "host-a", "host-b");
    await until("the old CA is forgotten", () => cas(readFileSync(own, "utf8")) === 2);

    const after = await cluster.vmIs("tiny", "running");
    expect([after.since, cluster.engines()]).toEqual([before.since, engines]);
    expect((await cluster.hostIs("host-a", "up")).since).toBe(since);
    for (const host of ["host-a", "host-b"]) {
      expect(cluster.agent(host).text).toContain("certificate: renewed, until 20");
      expect(cluster.agent(host).text).not.toContain("trying again");
    }
    // The console that was open all the time still types and shows.
    reader.stdin.write("typed");
    await reader.stdin.flush();
    await until("what is typed is shown", () => shown.includes("typed"));
    reader.kill();
    await reading;

    // The coordinator with the new CA alone, agents with theirs: they find each other again.
    await cluster.coordinator.kill();
    await cluster.startCoordinator();
    await cluster.vmIs("tiny", "running");
    await currentAre(cluster, "host-a", "host-b");
  });

  test("the old CA stays while a host needs it; one that was locked out is told", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    await cluster.agent("host-b").end();
    await cluster.hostIs("host-b", "silent");
    await cluster.ok("certs", "rotate", "--ca");
    await currentAre(cluster, "host-a");
    expect(await cluster.ok("cluster", "status")).toMatch(
      /\nhost-b .* 20\d\d-\d\d-\d\d \(old CA\) /,
    );
    for (const flag of ["--drop-old", "--ca"]) {
      const refused = await cluster.ssihv("certs", "rotate", flag);
      expect(refused.err).toContain("of an old CA are in use yet: host-b (silent)");
      expect(refused.code).toBe(2);
    }
    cluster.agent("host-b").start();
    await currentAre(cluster, "host-b");
    await cluster.ok("certs", "rotate", "--drop-old");
    await currentAre(cluster, "host-a", "host-b");

    // Forced, with a host off: it is locked out, says why, and joins again under its name.
    await cluster.agent("host-b").end();
    const said = cluster.coordinator.text.length;
    await cluster.ok("certs", "rotate", "--ca", "--drop-old", "--force");
    // Before it has heard of that it lets the host in, which then renews its certificate.
    await cluster.coordinator.says("new certificate, valid until", said);
    const agent = cluster.agent("host-b");
    agent.start();
    await agent.says("was the CA replaced while this host was off?");
    const again = await cluster.ssihv(
      "node",
      "--state",
      join(cluster.folder, "host-b"),
      "--join",
      "x",
    );
    expect([again.code, again.err]).toEqual([2, expect.stringContaining("node.pem first")]);
  });

  test("agents killed in the moment of their renewal come back with what they have", async () => {
    await using cluster = await Cluster.start("host-a");
    const agent = cluster.agent("host-a");
    const own = ownFile(cluster, "host-a");
    let kept = 0;
    for (let i = 0; i < KILLS; i++) {
      const { text } = cluster.coordinator;
      const before = readFileSync(own, "utf8");
      await cluster.ok("certs", "rotate", "--ca");
      await cluster.coordinator.says("new certificate, valid until", text.length);
      await Bun.sleep(i * KILL_STEP_MS);
      await agent.kill();
      if (readFileSync(own, "utf8") === before) kept += 1;
      await cluster.hostIs("host-a", "silent");
      const from = agent.text.length;
      agent.start();
      await agent.says("coordinator: connected", from);
      await currentAre(cluster, "host-a");
    }
    await cluster.ok("certs", "rotate", "--drop-old");
    await currentAre(cluster, "host-a");
    console.log(`killed before the new certificate was kept: ${kept} of ${KILLS}`);
    await until("it knows the last CA only", () => cas(readFileSync(own, "utf8")) === 2);
  });

  test("short lives: renewed again and again; one that was off too long rejoins", async () => {
    await using cluster = await Cluster.start();
    await cluster.coordinator.end();
    const from = cluster.coordinator.text.length;
    cluster.coordinator.start("--cert-life", `${LIFE_S}s`);
    await cluster.coordinator.says("API on port", from);
    await cluster.join("host-a");
    await cluster.join("host-b");
    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const before = await cluster.vmIs("tiny", "running");
    const second = cluster.agent(before.places[1]?.host ?? "");
    const engines = cluster.engines();
    const times = () => second.text.split("certificate: renewed").length - 1;
    await until("it was renewed twice", () => times() >= 2);
    expect([cluster.engines(), (await cluster.vmIs("tiny", "running")).since]).toEqual([
      ...[engines, before.since],
    ]);
    await cluster.ok("vm", "destroy", "tiny", "--force");

    const b = cluster.agent("host-b");
    await b.end();
    const end = Date.parse((await cluster.hostIs("host-b", "silent")).certificate?.expiresAt ?? "");
    await until("its certificate has ended", () => Date.now() > end + 1000);
    const { why } = await cluster.hostIs("host-b", "silent");
    expect(why).toMatch(/^its certificate ended on 20/);
    const state = ["--state", join(cluster.folder, "host-b")];
    const refused = await cluster.ssihv("node", ...state);
    expect(refused.err).toMatch(/node\.pem: this certificate expired on 20.*\n/);
    expect(refused.err).toContain(
      "ssihv cluster token --rejoin host-b, where the coordinator runs",
    );
    expect(refused.code).toBe(2);
    const token = (await cluster.ok("cluster", "token", "--rejoin", "host-b")).trim();
    const renamed = await cluster.ssihv("node", ...state, "--join", token, "--name", "other");
    expect([renamed.code, renamed.err]).toEqual([
      2,
      expect.stringContaining("joins again as that"),
    ]);
    b.start("--join", token);
    await cluster.hostIs("host-b", "up");
    expect((await cluster.call<unknown[]>("GET", "/v1/hosts")).length).toBe(2);
  });
});
