// `ssihv certs` from the built binary: the X.509 library is in it, and what it makes is what
// OpenSSL takes it for.

import { expect, test } from "bun:test";
import { binary, run, temporaryFolder } from "./support.ts";

const openssl = Bun.which("openssl");

test("makes certificates from one file, on a machine without Bun", async () => {
  using folder = temporaryFolder();
  const dir = `${folder.path}/pki`;
  const { code, err, out } = await run([binary, "certs", "init", "--dir", dir], {
    env: { PATH: "" },
  });
  expect([err, code]).toEqual(["", 0]);
  expect(out).toContain("coordinator");
});

test.skipIf(openssl === null)("OpenSSL verifies them for their purpose only", async () => {
  using folder = temporaryFolder();
  const dir = `${folder.path}/pki`;
  const certs = async (...args: string[]) => {
    const { code, err } = await run([binary, "certs", ...args, "--dir", dir]);
    expect([err, code]).toEqual(["", 0]);
  };
  await certs("init");
  await certs("rotate", "--ca");
  const verify = (file: string, purpose: string, ...more: string[]) => {
    const command = [openssl ?? "", "verify", "-x509_strict", "-purpose", purpose];
    return run([...command, "-CAfile", `${dir}/ca.pem`, ...more, `${dir}/${file}`]);
  };
  expect((await verify("coordinator.pem", "sslserver")).out).toEndWith(": OK\n");
  expect((await verify("coordinator.pem", "sslclient")).code).not.toBe(0);
  expect((await verify("admin.pem", "sslclient")).out).toEndWith(": OK\n");
  expect((await verify("admin.pem", "sslserver")).code).not.toBe(0);
});
