// Who gets through to a listener and who gets nothing, a thousand times each; rotation while
// clients come and go. Refused peers are asked for what they received, the listener for what it let
// in: both must be nothing.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { issueLeaf, type KeyPair, makeCa } from "./certificate.ts";
import { type Credentials, loadCredentials } from "./credentials.ts";
import type { Role } from "./identity.ts";
import { clientTls, connectMtls, type MtlsConnection, MtlsListener } from "./mtls.ts";
import { PkiFolder } from "./pki-folder.ts";

const TRIES = 1000;
/** Connections at a time: enough to mix, few enough for the limit of open files. */
const AT_ONCE = 50;

const folder = mkdtempSync(join(tmpdir(), "ssihv-mtls-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let pki: PkiFolder;
const own = (name: string) => loadCredentials(pki.fileOf(name), pki.caFile);

beforeAll(async () => {
  pki = await PkiFolder.create(join(folder, "pki"));
  const make = (name: string, role: Role) => pki.issue({ name, role, hosts: [], days: 10 });
  await make("coordinator", "coordinator");
  await make("alice", "operator");
  await make("bob", "read-only");
  await make("host-a", "node");
});

interface Counted {
  readonly listener: MtlsListener;
  readonly served: MtlsConnection[];
  bytes: number;
  refused: number;
}

/** Says "hello" to whoever is let in, and counts what comes. */
async function listen(roles: readonly Role[]): Promise<Counted> {
  const counted: Counted = {
    served: [],
    bytes: 0,
    refused: 0,
    listener: await MtlsListener.open({
      hostname: "127.0.0.1",
      port: 0,
      credentials: own("coordinator"),
      roles,
      onConnection: (connection) => {
        counted.served.push(connection);
        connection.socket.on("data", (bytes) => {
          counted.bytes += bytes.length;
        });
        connection.socket.write("hello");
      },
      onRefused: () => {
        counted.refused += 1;
      },
    }),
  };
  return counted;
}

interface Client {
  readonly certificate?: string;
  readonly key?: string;
}

/** A client without manners: connects, speaks at once, and tells how many bytes it was given. */
function intrude(port: number, { certificate, key }: Client): Promise<number> {
  const done = Promise.withResolvers<number>();
  let got = 0;
  const socket = Bun.connect({
    hostname: "127.0.0.1",
    port,
    tls: {
      rejectUnauthorized: false,
      ...(certificate !== undefined && key !== undefined && { cert: certificate, key }),
    },
    socket: {
      handshake: (socket) => {
        socket.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
      },
      data: (_, bytes) => {
        got += bytes.length;
      },
      close: () => done.resolve(got),
      error: () => done.resolve(got),
    },
  });
  socket.catch(() => done.resolve(got));
  return done.promise;
}

async function intrudeOften(port: number, client: Client): Promise<number> {
  let got = 0;
  for (let i = 0; i < TRIES; i += AT_ONCE) {
    const batch = Array.from({ length: AT_ONCE }, () => intrude(port, client));
    for (const bytes of await Promise.all(batch)) got += bytes;
  }
  return got;
}

const operator = { name: "mallory", role: "operator", hosts: [], days: 10 } as const;

async function strangers(): Promise<Record<string, Client>> {
  const rogue = await makeCa(10);
  const ours: KeyPair = {
    certificate: pki.bundle(),
    key: await Bun.file(join(pki.path, "ca.key")).text(),
  };
  const yesterday = Date.now() - 10 * 86_400_000 - 60_000;
  return {
    "without a certificate": {},
    "of a rogue CA": await issueLeaf(rogue, operator),
    "that has expired": await issueLeaf(ours, operator, "", yesterday),
    "of a server": own("coordinator"),
    "of the wrong role": own("host-a"),
  };
}

describe("a peer gets nothing", () => {
  for (const name of [
    "without a certificate",
    "of a rogue CA",
    "that has expired",
    "of a server",
    "of the wrong role",
  ]) {
    test(`${name}, in ${TRIES} tries`, async () => {
      const client = (await strangers())[name];
      if (client === undefined) throw new RangeError(name);
      const door = await listen(["operator", "read-only"]);
      const got = await intrudeOften(door.listener.port, client);
      expect({ got, served: door.served.length, bytes: door.bytes, refused: door.refused }).toEqual(
        { got: 0, served: 0, bytes: 0, refused: TRIES },
      );
      // The same door opens for one who may.
      expect(await greeting(door.listener.port, own("alice"))).toBe("hello");
      door.listener.close();
    });
  }
});

async function greeting(port: number, credentials: Credentials): Promise<string> {
  const { socket } = await connectMtls({ host: "127.0.0.1", port, credentials });
  const heard = Promise.withResolvers<string>();
  socket.on("data", (bytes) => heard.resolve(bytes.toString()));
  socket.on("close", () => heard.resolve("closed"));
  const text = await heard.promise;
  socket.destroy();
  return text;
}

async function greetOften(port: number, credentials: Credentials): Promise<number> {
  let greeted = 0;
  for (let i = 0; i < TRIES; i += AT_ONCE) {
    const batch = Array.from({ length: AT_ONCE }, () => greeting(port, credentials));
    for (const text of await Promise.all(batch)) if (text === "hello") greeted += 1;
  }
  return greeted;
}

test(`each role that may comes in, ${TRIES} times, and the listener knows who it is`, async () => {
  const door = await listen(["operator", "read-only"]);
  expect(await greetOften(door.listener.port, own("alice"))).toBe(TRIES);
  expect(await greeting(door.listener.port, own("bob"))).toBe("hello");
  const peers = new Set(door.served.map(({ peer }) => `${peer.role} ${peer.name}`));
  expect([...peers]).toEqual(["operator alice", "read-only bob"]);
  door.listener.close();
});

test(`a client says nothing to an impostor, in ${TRIES} tries each`, async () => {
  const rogue = await makeCa(10);
  const alike = await issueLeaf(rogue, { ...operator, name: "coordinator", role: "coordinator" });
  const credentials = own("alice");
  // Another CA's coordinator, and a node of ours that poses as one.
  for (const { certificate, key } of [alike, own("host-a")]) {
    let heard = 0;
    const impostor = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { cert: certificate, key },
      socket: {
        data: () => {
          heard += 1;
        },
      },
    });
    let refused = 0;
    for (let i = 0; i < TRIES; i += AT_ONCE) {
      const batch = Array.from({ length: AT_ONCE }, () =>
        connectMtls({ host: "127.0.0.1", port: impostor.port, credentials }),
      );
      for (const { status } of await Promise.allSettled(batch)) {
        if (status === "rejected") refused += 1;
      }
    }
    impostor.stop(true);
    expect({ refused, heard }).toEqual({ refused: TRIES, heard: 0 });
  }
});

test("fetch knows the coordinator by its certificate, not by its address", async () => {
  const { certificate, key, ca } = own("coordinator");
  const web = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    tls: { cert: certificate, key, ca },
    fetch: () => new Response("web"),
  });
  const url = `https://127.0.0.1:${web.port}/`;
  expect(await (await fetch(url, { tls: clientTls(own("alice")) })).text()).toBe("web");
  const foreign = { ...clientTls(own("alice")), ca: (await makeCa(1)).certificate };
  expect(fetch(url, { tls: foreign })).rejects.toThrow();
  await web.stop(true);
});

describe("rotation without an outage", () => {
  test("a listener takes new certificates while clients come; old connections stay", async () => {
    const door = await listen(["operator"]);
    const { port } = door.listener;
    const stays = await connectMtls({ host: "127.0.0.1", port, credentials: own("alice") });
    let answered = 0;
    let stop = false;
    const clients = (async () => {
      while (!stop) {
        expect(await greeting(port, own("alice"))).toBe("hello");
        answered += 1;
      }
    })();
    for (let round = 0; round < 5; round++) {
      const before = answered;
      await pki.rotate();
      door.listener.replaceCredentials(own("coordinator"));
      while (answered < before + 5) await Bun.sleep(1);
    }
    stop = true;
    await clients;
    const echo = Promise.withResolvers<number>();
    door.served[0]?.socket.on("data", (bytes) => echo.resolve(bytes.length));
    stays.socket.write(new Uint8Array(7));
    expect(await echo.promise).toBe(7);
    door.listener.close();
  });

  test("a new CA is believed by those who know only the old one; then that one goes", async () => {
    const before = own("alice");
    await pki.rotateCa();
    await pki.rotate();
    const door = await listen(["operator"]);
    // Old bundle and old certificate, new ones, and either mixed.
    const after = own("alice");
    const mixed = { ...after, ca: before.ca };
    for (const credentials of [before, after, mixed, { ...before, ca: after.ca }]) {
      expect(await greeting(door.listener.port, credentials)).toBe("hello");
    }
    pki.dropOldCas();
    await pki.rotate();
    door.listener.replaceCredentials(own("coordinator"));
    expect(await greeting(door.listener.port, own("alice"))).toBe("hello");
    const served = door.served.length;
    expect(await intrude(door.listener.port, before)).toBe(0);
    expect(await intrude(door.listener.port, {})).toBe(0);
    expect(door.served.length).toBe(served);
    expect(
      connectMtls({ host: "127.0.0.1", port: door.listener.port, credentials: before }),
    ).rejects.toThrow("not this cluster's coordinator");
    door.listener.close();
  });
});
