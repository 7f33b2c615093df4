// From one coordinator with its state in a file to one over an etcd, with the built binary: hosts,
// join tokens and a VM that runs come along, and engines and guests notice nothing.

import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { EtcdClient } from "../../coordinator/etcd-client.ts";
import { leaderKey } from "../../coordinator/etcd-leader.ts";
import { recordKey } from "../../coordinator/etcd-store.ts";
import { IMPORT_ID, IMPORTER } from "../../coordinator/import.ts";
import { joinCluster } from "../../src/control/join-client.ts";
import { Etcd } from "../etcd.ts";
import { Cluster } from "./cluster-processes.ts";
import { hasKvm } from "./support.ts";

const PREFIX = "/moved";

describe.skipIf(!hasKvm())("a state brought into an etcd (needs /dev/kvm)", () => {
  test("hosts are up again, the VM runs on, and an old state does no harm", async () => {
    await using etcd = await Etcd.start();
    await using cluster = await Cluster.start("host-a", "host-b");
    const { coordinator } = cluster;
    const store = ["--store", `etcd=${etcd.endpoint}`, "--store-prefix", PREFIX];
    const state = join(cluster.folder, "coordinator");
    const bringing = () => cluster.ssihv("cluster", "import", ...store, "--state", state);
    const refused = async (...words: string[]) => {
      const { code, out, err } = await bringing();
      expect([code, out]).toEqual([10, ""]);
      for (const each of words) expect(err).toContain(each);
    };

    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const before = await cluster.vmIs("tiny", "running");
    const engines = cluster.engines();
    expect(engines.length).toBe(2);
    const token = (await cluster.ok("cluster", "token", "late")).trim();
    await refused("state.sqlite is in use", "end the coordinator that runs with");
    expect(await coordinator.end()).toBe(0);
    const file = readFileSync(join(state, "state.sqlite"));

    const first = await bringing();
    expect([first.code, first.err]).toEqual([0, ""]);
    expect(first.out).toContain("2 hosts, 1 VM, 1 join token: in this etcd now");
    expect((await bringing()).out).toContain("2 hosts, 1 VM, 1 join token: in this etcd already");
    expect(readdirSync(state)).toEqual(["state.sqlite"]);
    expect(readFileSync(join(state, "state.sqlite")).equals(file)).toBe(true);

    // As one that was cut leaves it: nobody leads with what might be half of it.
    const client = new EtcdClient({ endpoints: [etcd.endpoint], prefix: PREFIX });
    const leads = JSON.stringify({ api: IMPORTER, id: "1" });
    await client.transact([], [{ put: leaderKey(PREFIX), value: leads }]);
    await client.transact([], [{ put: recordKey(PREFIX, "import", IMPORT_ID), value: "{}" }]);
    coordinator.start(...store);
    await coordinator.says("stands by; an import leads");
    expect((await cluster.ssihv("vm", "list")).err).toContain("stands by: an import leads");
    await refused("an import leads over this etcd", "ends within 5 s");
    await client.transact([], [{ remove: leaderKey(PREFIX) }]);
    await coordinator.says("stands by; an import into this etcd was cut");
    const asked = await cluster.ssihv("vm", "list");
    expect([asked.code, asked.err]).toEqual([10, expect.stringContaining("goes on where it was")]);
    expect((await bringing()).code).toBe(0);
    await coordinator.says("coordinator: leads");

    const unharmed = async () => {
      for (const host of ["host-a", "host-b"]) await cluster.hostIs(host, "up");
      const { since, places } = await cluster.vmIs("tiny", "running");
      expect([since, places, cluster.engines()]).toEqual([before.since, before.places, engines]);
    };
    await unharmed();
    // A token from before names this coordinator's address.
    expect((await joinCluster(token, "late")).name).toBe("late");

    await refused(`:${cluster.apiPort} leads over this etcd`, "end all coordinators");
    expect(await coordinator.end()).toBe(0);
    await refused(
      "this etcd has a state of its own: host late is only there",
      "not there any more",
    );
    const from = coordinator.text.length;
    coordinator.start(...store);
    await coordinator.says("coordinator: leads", from);
    await unharmed();
    await cluster.ok("vm", "stop", "tiny");
    await cluster.vmIs("tiny", "stopped");
  });
});
