// The agent's side of a renewal by a clock of the test's: when it asks, what it keeps, and that
// nothing the coordinator answers, and no death in the middle, takes a usable certificate from it.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { FromAgent, Trust } from "../control/messages.ts";
import { certificatesIn, DAY_MS, factsOf, requestLeaf } from "../tls/certificate.ts";
import { PkiFolder } from "../tls/pki-folder.ts";
import { CertificateRenewal } from "./certificate-renewal.ts";
import { NodeState } from "./node-state.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-renewal-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const LEAF = { name: "host-a", role: "node", hosts: [], days: 30 } as const;

let pki: PkiFolder;
beforeAll(async () => {
  pki = await PkiFolder.create(join(base, "pki"));
});

const trust = (): Trust => ({ ca: pki.bundle(), issuer: pki.issuer().fingerprint });

/** A host that has joined, its agent's renewal, and a coordinator that answers as the test says. */
class Fixture {
  readonly state: NodeState;
  readonly requests: string[] = [];
  readonly said: string[] = [];
  readonly renewal: CertificateRenewal;
  now = Date.now();
  connected = true;
  moves = 0;

  private constructor(state: NodeState) {
    this.state = state;
    this.renewal = new CertificateRenewal({
      state,
      now: () => this.now,
      chance: () => 0.5,
      connected: () => this.connected,
      send: (message: FromAgent) => {
        if (message.type === "renew") this.requests.push(message.request);
      },
      say: (text) => this.said.push(text),
      onRenewed: () => {
        this.moves += 1;
      },
    });
    this.renewal.use(state.credentials());
  }

  static async make(name: string): Promise<Fixture> {
    const state = new NodeState(join(base, name));
    state.prepare();
    const { request, key } = await requestLeaf(LEAF);
    const certificate = await pki.sign(request, LEAF);
    const where = { coordinatorHost: "127.0.0.1", agentPort: 1 };
    state.save({ name: LEAF.name, certificate, key, ca: pki.bundle(), ...where });
    return new Fixture(state);
  }

  get fingerprint(): string {
    return factsOf(this.state.credentials().certificate).fingerprint;
  }

  /** Looks as often as a timer would; the request that it leads to is made aside. */
  async look(): Promise<void> {
    const before = this.requests.length;
    this.renewal.look();
    for (let i = 0; i < 200 && this.requests.length === before; i++) await Bun.sleep(1);
  }

  /** Looks; nothing is asked. */
  async rests(): Promise<void> {
    const before = this.requests.length;
    for (let i = 0; i < 3; i++) this.renewal.look();
    await Bun.sleep(20);
    expect(this.requests.length).toBe(before);
  }

  async answer(change: (certificate: string) => string = (same) => same): Promise<void> {
    const certificate = await pki.sign(this.requests.at(-1) ?? "", LEAF);
    this.renewal.onAnswer({
      ...{ type: "renewed", certificate: change(certificate), ca: pki.bundle() },
    });
  }
}

test("asks once when two thirds are over, keeps what comes, and then rests again", async () => {
  const host = await Fixture.make("due");
  const start = host.now;
  const before = host.fingerprint;
  await host.rests();
  host.now = start + 19.9 * DAY_MS;
  await host.rests();
  host.now = start + 21.1 * DAY_MS;
  host.connected = false;
  await host.rests();
  host.connected = true;
  await host.look();
  await host.rests();
  expect(host.requests.length).toBe(1);
  await host.answer();
  expect([host.moves, host.said.length]).toEqual([1, 1]);
  expect(host.said[0]).toMatch(/^certificate: renewed, until \d{4}-/);
  expect(host.fingerprint).not.toBe(before);
  expect(host.renewal.expires).toEqual(host.state.credentials().expires);
  const { mode } = statSync(join(base, "due", "node.pem"));
  expect([(mode & 0o777).toString(8), readdirSync(join(base, "due")).sort()]).toEqual([
    ...["600", ["node.json", "node.pem"]],
  ]);
  // The new one's life is counted by its own dates.
  host.now = start + 19 * DAY_MS;
  await host.rests();
});

test("other CAs are asked for at once; the same ones are not", async () => {
  const host = await Fixture.make("trust");
  host.renewal.onTrust(trust());
  await host.rests();
  await pki.rotateCa();
  host.renewal.onTrust(trust());
  await host.look();
  await host.answer();
  const both = host.state.credentials();
  expect(both.ca).toBe(pki.bundle());
  // It leads to the CA that others may still know alone.
  expect(certificatesIn(both.certificate).length).toBe(2);
  host.renewal.onTrust(trust());
  await host.rests();
  pki.dropOldCas();
  host.renewal.onTrust(trust());
  // Not faster than once a second, whatever it is told.
  await host.rests();
  host.now += 1001;
  await host.look();
  await host.answer();
  expect(host.state.credentials().ca).toBe(pki.bundle());
  expect(host.moves).toBe(2);
});

test("what is refused, wrong or never answered costs nothing but a later try", async () => {
  const host = await Fixture.make("wrong");
  const before = host.fingerprint;
  host.now += 25 * DAY_MS;
  const day = factsOf(host.state.credentials().certificate).notAfter.toISOString().slice(0, 10);
  const words = [`certificate: not renewed, it ends on ${day}: `, "; trying again"];
  const tries: [string, () => Promise<void> | void][] = [
    [
      "no room (less)",
      () => {
        const fault = { code: "x", message: "no room", hint: "less" };
        host.renewal.onAnswer({ type: "not_renewed", fault });
      },
    ],
    [
      "the new certificate has another key",
      async () => {
        const { request } = await requestLeaf(LEAF);
        const certificate = await pki.sign(request, LEAF);
        host.renewal.onAnswer({ type: "renewed", certificate, ca: pki.bundle() });
      },
    ],
    ["there is no certificate", () => host.answer(() => "")],
    [
      "the coordinator does not answer",
      () => {
        host.now += 15_001;
        host.renewal.look();
      },
    ],
  ];
  for (const [why, happens] of tries) {
    await host.look();
    await happens();
    expect(host.said.at(-1)).toBe(words.join(why));
    await host.rests();
    host.now += 3_600_001;
  }
  // The same again is not said again.
  const said = host.said.length;
  await host.look();
  host.now += 15_001;
  await host.rests();
  expect([host.said.length, host.requests.length, host.moves]).toEqual([said, 5, 0]);
  // An answer to a request that was given up, or to none.
  await host.answer();
  expect(host.fingerprint).toBe(before);
  host.now += 3_600_001;
  await host.look();
  await host.answer();
  expect(host.fingerprint).not.toBe(before);
});

test("a connection that is lost with a request under way: the next one asks again", async () => {
  const host = await Fixture.make("lost");
  host.now += 25 * DAY_MS;
  await host.look();
  host.renewal.use(host.state.credentials());
  await host.look();
  expect(host.requests.length).toBe(2);
  await host.answer();
  expect(host.moves).toBe(1);
});

test("killed at any moment of it, a host has a certificate that can be used", async () => {
  const host = await Fixture.make("killed");
  const folder = join(base, "killed");
  const modules = ["./node-state.ts", "../tls/pki-folder.ts", "../tls/certificate.ts"];
  const [node, folders, certificates] = modules.map((name) => {
    return JSON.stringify(join(import.meta.dir, name));
  });
  const script = `
    const { NodeState } = await import(${node});
    const { PkiFolder } = await import(${folders});
    const { requestLeaf } = await import(${certificates});
    const pki = PkiFolder.open(${JSON.stringify(pki.path)});
    const state = new NodeState(${JSON.stringify(folder)});
    const leaf = ${JSON.stringify(LEAF)};
    const made = [];
    for (let i = 0; i < 4; i++) {
      const { request, key } = await requestLeaf(leaf);
      made.push([key, { certificate: await pki.sign(request, leaf), ca: pki.bundle() }]);
    }
    for (let n = 0; ; n++) {
      state.keep(...made[n % made.length]);
      if (n % 10 === 9) console.log(n);
    }`;
  const seen = new Set<string>();
  let leftOver = 0;
  for (let round = 0; round < 6; round++) {
    const child = Bun.spawn([process.execPath, "-e", script], {
      ...{ stdout: "pipe", stderr: "inherit" },
    });
    let text = "";
    for await (const chunk of child.stdout) {
      text += new TextDecoder().decode(chunk);
      if (text.split("\n").length > 3 + round) child.kill("SIGKILL");
    }
    await child.exited;
    expect(text).not.toBe("");
    leftOver += readdirSync(folder).length - 2;
    seen.add(host.fingerprint);
    host.state.sweep();
    expect(readdirSync(folder).sort()).toEqual(["node.json", "node.pem"]);
  }
  expect(seen.size).toBeGreaterThan(1);
  expect(leftOver).toBeLessThanOrEqual(6);
});

test("a host that joined an older ssihv has its CAs beside it until a renewal", async () => {
  const host = await Fixture.make("older");
  const { key, certificate } = host.state.credentials();
  const folder = join(base, "older");
  writeFileSync(join(folder, "node.pem"), key + certificate, { mode: 0o600 });
  writeFileSync(join(folder, "ca.pem"), pki.bundle());
  const { ca } = host.state.credentials();
  expect(ca).toBe(pki.bundle());
  host.now += 25 * DAY_MS;
  await host.look();
  await host.answer();
  expect(host.state.credentials().ca).toBe(pki.bundle());
  expect(readdirSync(folder).sort()).toEqual(["node.json", "node.pem"]);
});

test("joining again: where the certificate is of no use, under the same name", async () => {
  const { state } = await Fixture.make("again");
  const folder = join(base, "again");
  expect(() => state.prepare()).toThrow("has joined a cluster already");
  rmSync(join(folder, "node.pem"));
  expect(state.prepare()).toBe("host-a");
  const hint = expect.stringContaining("ssihv cluster token --rejoin host-a");
  expect(() => state.credentials()).toThrow(expect.objectContaining({ hint }));
  // A folder of nobody.
  mkdirSync(join(base, "fresh"), { mode: 0o700 });
  expect(new NodeState(join(base, "fresh")).prepare()).toBeUndefined();
});
