// What an etcd's store promises, beside what every store does: one that does not lead writes
// nothing, and each change is carried out once, whatever became of its answer.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EtcdClient } from "../../coordinator/etcd-client.ts";
import { importIntoEtcd } from "../../coordinator/etcd-import.ts";
import { Leadership, leaderKey } from "../../coordinator/etcd-leader.ts";
import { EtcdStore, recordKey } from "../../coordinator/etcd-store.ts";
import { IMPORT_ID } from "../../coordinator/import.ts";
import { SqliteStore, stateFile } from "../../coordinator/sqlite-store.ts";
import type { Store } from "../../coordinator/store.ts";
import { promisesOf } from "../../coordinator/store-promises.fixture.ts";
import { x509 } from "../../src/tls/x509.ts";
import { Etcd } from "../etcd.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-stores-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let etcd: Etcd;
beforeAll(async () => {
  etcd = await Etcd.start();
}, 60_000);
afterAll(() => etcd[Symbol.asyncDispose]());

let count = 0;
const silent = () => undefined;
const client = (endpoints: readonly string[] = [etcd.endpoint]) =>
  new EtcdClient({ endpoints, prefix: "" });
const memberOf = (id: string) => ({ api: `${id}:7780`, id });

async function leader(prefix: string, id: string, leaseSeconds = 30): Promise<Leadership> {
  const options = { client: client(), prefix, member: memberOf(id), leaseSeconds, say: silent };
  const led = await Leadership.campaign(options);
  if (led instanceof Leadership) return led;
  throw new Error(`${JSON.stringify(led)} leads`);
}

async function etcdStore(endpoints?: readonly string[]): Promise<Store> {
  const prefix = `/test-${count++}`;
  const { fence } = await leader(prefix, "one");
  return new EtcdStore(client(endpoints), prefix, fence, silent);
}

promisesOf("etcd", () => etcdStore());

test("one leads; when it is gone another does, and the first can write nothing", async () => {
  const prefix = `/test-${count++}`;
  const first = await leader(prefix, "one");
  let deposed = 0;
  const old = new EtcdStore(client(), prefix, first.fence, () => {
    deposed += 1;
  });
  expect(await old.apply([{ kind: "vm", id: "a", value: 1 }])).toBe(true);
  const options = { client: client(), prefix, member: memberOf("two"), leaseSeconds: 30 };
  const campaign = () => Leadership.campaign({ ...options, say: silent });
  expect(await campaign()).toEqual(memberOf("one"));
  // As when its lease ends: it has not noticed yet.
  await client().endLease((first as unknown as { lease: string }).lease);
  const second = await campaign();
  if (!(second instanceof Leadership)) throw new Error("nobody leads");
  const store = new EtcdStore(client(), prefix, second.fence, silent);
  expect((await store.get("vm", "a"))?.value).toBe(1);
  await expect(old.apply([{ kind: "vm", id: "a", value: 2 }])).rejects.toThrow("lead any more");
  await expect(old.apply([{ kind: "vm", id: "b", value: 2 }])).rejects.toThrow("lead any more");
  expect(deposed).toBe(2);
  expect(await store.apply([{ kind: "vm", id: "b", value: 3, ifRevision: 0 }])).toBe(true);
  expect((await store.list("vm")).map(({ value }) => value)).toEqual([1, 3]);
  // The first one's lease is gone: giving it back is no trouble.
  await first.resign();
  await second.resign();
  expect(await second.lost).toBe("it was ended");
  const third = await campaign();
  expect(third).toBeInstanceOf(Leadership);
  if (third instanceof Leadership) await third.resign();
});

test("a state is brought there whole, while nobody leads; half of it bars leaders", async () => {
  const stateFolder = join(base, "state");
  const from = new SqliteStore(stateFile(stateFolder));
  const ids = Array.from({ length: 250 }, (_, i) => `h${String(i).padStart(3, "0")}`);
  await from.apply(ids.map((id) => ({ kind: "host", id, value: { joinedAt: id } })));
  // Too much for one request of etcd's.
  const args = "x".repeat(200_000);
  const vms = Array.from({ length: 12 }, (_, i) => ({ id: `v${i}`, value: { slot: i, args } }));
  await from.apply(vms.map((vm) => ({ kind: "vm", ...vm })));
  from.close();
  const prefix = `/test-${count++}`;
  const bring = (endpoint = etcd.endpoint) =>
    importIntoEtcd({
      ...{ etcd: { endpoints: [endpoint], prefix }, leaseSeconds: 5 },
      ...{ stateFolder, say: silent },
    });

  const first = await leader(prefix, "one");
  await expect(bring()).rejects.toThrow("one:7780 leads over this etcd");
  await first.resign();
  // The key is lost behind the first batch.
  await using deposing = lossy(async (nth) => {
    if (nth === 1) await client().transact([], [{ remove: leaderKey(prefix) }]);
    return false;
  });
  const cut = bring(`http://127.0.0.1:${deposing.port}`);
  await expect(cut).rejects.toThrow("the import was cut: another one leads");
  // The next one does not hear that its first batch is written.
  await using proxy = lossy((nth) => nth >= 1);
  await expect(bring(`http://127.0.0.1:${proxy.port}`)).rejects.toThrow("etcd does not answer");
  const unless = recordKey(prefix, "import", IMPORT_ID);
  const options = { client: client(), prefix, member: memberOf("two"), leaseSeconds: 30, unless };
  expect(await Leadership.campaign({ ...options, say: silent })).toBe("barred");

  expect(await bring()).toEqual({ hosts: 250, vms: 12, tokens: 0, written: 62 });
  const second = await Leadership.campaign({ ...options, say: silent });
  if (!(second instanceof Leadership)) throw new Error("nobody leads");
  const store = new EtcdStore(client(), prefix, second.fence, silent);
  expect((await store.list("host")).map(({ id }) => id)).toEqual(ids);
  expect((await store.list("vm")).length).toBe(12);
  // Removed for good.
  await store.apply([{ kind: "host", id: "h000", value: undefined }]);
  await second.resign();
  await expect(bring()).rejects.toThrow("state of its own: host h000 is not there any more");
});

/** Forwards to the etcd, and loses what it answers to writes, as the test says. */
function lossy(lose: (nth: number) => boolean | Promise<boolean>) {
  let writes = 0;
  return Bun.serve({
    ...{ hostname: "127.0.0.1", port: 0 },
    fetch: async (request) => {
      const { pathname } = new URL(request.url);
      const answer = await fetch(`${etcd.endpoint}${pathname}`, {
        ...{ method: "POST", body: await request.text() },
      });
      const text = await answer.text();
      if (pathname !== "/v3/kv/txn" || !(await lose(writes++))) {
        return new Response(text, { status: answer.status });
      }
      return Response.json({ error: "etcdserver: request timed out" }, { status: 503 });
    },
  });
}

test("a change whose answer is lost is carried out once, and told as done", async () => {
  await using proxy = lossy((nth) => nth % 2 === 0);
  const store = await etcdStore([`http://127.0.0.1:${proxy.port}`, "http://127.0.0.1:1"]);
  let revision = 0;
  for (let n = 1; n <= 5; n++) {
    // Asked twice without more ado, the second time would find another revision.
    expect(await store.apply([{ kind: "vm", id: "a", value: n, ifRevision: revision }])).toBe(true);
    const now = await store.get("vm", "a");
    expect(now?.value).toBe(n);
    revision = now?.revision ?? 0;
  }
  expect(await store.apply([{ kind: "vm", id: "a", value: 9, ifRevision: 0 }])).toBe(false);
});

test("a change that was given up and came through later: the next one goes on top", async () => {
  await using proxy = lossy((nth) => nth < 3);
  const store = await etcdStore([`http://127.0.0.1:${proxy.port}`]);
  const lost = store.apply([{ kind: "vm", id: "a", value: 1, ifRevision: 0 }]);
  await expect(lost).rejects.toThrow("etcd does not answer (http://127.0.0.1");
  expect((await store.get("vm", "a"))?.value).toBe(1);
  expect(await store.apply([{ kind: "vm", id: "b", value: 2, ifRevision: 0 }])).toBe(true);
  expect((await store.list("vm")).map(({ value }) => value)).toEqual([1, 2]);
});

test("members that are away are gone around; where none answers it is said", async () => {
  await using own = await Etcd.start();
  const endpoints = ["http://127.0.0.1:1", own.endpoint];
  const prefix = "/away";
  const options = { client: client(endpoints), prefix, member: memberOf("one"), say: silent };
  const led = await Leadership.campaign({ ...options, leaseSeconds: 60 });
  if (!(led instanceof Leadership)) throw new Error("somebody else leads");
  const store = new EtcdStore(client(endpoints), prefix, led.fence, silent);
  await store.apply([{ kind: "vm", id: "a", value: 1 }]);
  await own.kill();
  const words = /^etcd does not answer \(.*nobody listens; .*nobody listens\)$/;
  await expect(store.get("vm", "a")).rejects.toThrow(words);
  await expect(store.apply([{ kind: "vm", id: "a", value: 2 }])).rejects.toThrow(words);
  await own.up();
  // What was told as done is there, and its leader still leads.
  expect((await store.get("vm", "a"))?.value).toBe(1);
  expect(await store.apply([{ kind: "vm", id: "a", value: 3 }])).toBe(true);
  await led.resign();
}, 60_000);

test("a leader that etcd is not heard by deposes itself within its lease", async () => {
  await using own = await Etcd.start();
  const options = { client: client([own.endpoint]), prefix: "/cut", member: memberOf("one") };
  const led = await Leadership.campaign({ ...options, leaseSeconds: 2, say: silent });
  if (!(led instanceof Leadership)) throw new Error("somebody else leads");
  own.halt();
  expect(await led.lost).toMatch(/^etcd was not heard for \d\.\d s$/);
  own.go();
  // The lease was not kept: whoever comes next leads.
  for (let next: unknown; !(next instanceof Leadership); await Bun.sleep(50)) {
    const two = { member: memberOf("two"), leaseSeconds: 2, say: silent };
    next = await Leadership.campaign({ ...options, ...two });
    if (next instanceof Leadership) await next.resign();
  }
}, 60_000);

/** A certificate for both ends, as etcd's gateway wants one: it is a client of its own server. */
async function pair(name: string, ca?: { certificate: string; keys: CryptoKeyPair }) {
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
  const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const usages = [x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth];
  const made = await x509.X509CertificateGenerator.create({
    ...{ subject: `CN=${name}`, issuer: ca ? "CN=ca" : `CN=${name}`, publicKey: keys.publicKey },
    signingKey: (ca?.keys ?? keys).privateKey,
    signingAlgorithm: algorithm,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    extensions: ca
      ? [
          new x509.SubjectAlternativeNameExtension([{ type: "ip", value: "127.0.0.1" }]),
          new x509.ExtendedKeyUsageExtension(usages),
        ]
      : [new x509.BasicConstraintsExtension(true, undefined, true)],
  });
  const pkcs8 = await crypto.subtle.exportKey("pkcs8", keys.privateKey);
  const file = (ending: string, text: string) => {
    const path = join(base, `${name}.${ending}`);
    writeFileSync(path, text);
    return path;
  };
  const certificate = made.toString("pem");
  return {
    ...{ certificate, keys, cert: file("pem", certificate) },
    key: file("key", x509.PemConverter.encode(pkcs8, "PRIVATE KEY")),
  };
}

test("an etcd that asks for certificates is shown ours, and is to be of its CA", async () => {
  const ca = await pair("ca");
  const [server, own, rogue] = [await pair("server", ca), await pair("own", ca), await pair("x")];
  await using secure = await Etcd.start({ cert: server.cert, key: server.key, ca: ca.cert });
  const endpoints = [secure.endpoint];
  const { cert, key } = own;
  const good = new EtcdClient({ endpoints, prefix: "", cert, key, cacert: ca.cert });
  expect(await good.get("/none")).toBeUndefined();
  const without = new EtcdClient({ endpoints, prefix: "", cacert: ca.cert });
  await expect(without.get("/none")).rejects.toThrow("etcd does not answer");
  const wrong = new EtcdClient({ endpoints, prefix: "", cert, key, cacert: rogue.cert });
  await expect(wrong.get("/none")).rejects.toThrow(/etcd does not answer .*certificate/i);
  const gone = () => new EtcdClient({ endpoints, prefix: "", cert: join(base, "none.pem") });
  expect(gone).toThrow("none.pem cannot be read");
}, 60_000);
