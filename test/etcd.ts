// An etcd of Debian's package, unpacked and not installed, as a process of its own for tests: one
// member that can be killed, stopped and started again, with or without TLS.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { unpackedPackage } from "./lab/debian.ts";

/** Two ports that were free a moment ago. */
function freePorts(): [number, number] {
  const probes = [0, 0].map(() =>
    Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } }),
  );
  for (const probe of probes) probe.stop(true);
  return [probes[0]?.port ?? 0, probes[1]?.port ?? 0];
}

export interface EtcdFiles {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

export class Etcd implements AsyncDisposable {
  readonly endpoint: string;
  private readonly folder = mkdtempSync(join(tmpdir(), "ssihv-etcd-"));
  private readonly command: readonly string[];
  private readonly files: EtcdFiles | undefined;
  private child: Bun.Subprocess | undefined;

  private constructor(root: string, files: EtcdFiles | undefined) {
    const [clients, peers] = freePorts();
    this.files = files;
    const scheme = files === undefined ? "http" : "https";
    this.endpoint = `${scheme}://127.0.0.1:${clients}`;
    const peer = `http://127.0.0.1:${peers}`;
    this.command = [
      `${root}/usr/bin/etcd`,
      ...["--name", "test", "--data-dir", join(this.folder, "data")],
      ...["--listen-client-urls", this.endpoint, "--advertise-client-urls", this.endpoint],
      ...["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer],
      ...["--initial-cluster", `test=${peer}`, "--logger", "zap", "--log-level", "error"],
      ...(files === undefined
        ? []
        : ["--cert-file", files.cert, "--key-file", files.key, "--trusted-ca-file", files.ca]),
      ...(files === undefined ? [] : ["--client-cert-auth"]),
    ];
  }

  static async start(files?: EtcdFiles): Promise<Etcd> {
    const etcd = new Etcd(await unpackedPackage("etcd-server"), files);
    await etcd.up();
    return etcd;
  }

  /** Until it answers. */
  async up(): Promise<void> {
    const log = Bun.file(join(this.folder, "log"));
    this.child = Bun.spawn([...this.command], { stdout: log, stderr: log });
    const { endpoint, files } = this;
    const tls = files && {
      ca: await Bun.file(files.ca).text(),
      cert: await Bun.file(files.cert).text(),
      key: await Bun.file(files.key).text(),
    };
    const body = JSON.stringify({ key: Buffer.from("/").toString("base64") });
    for (const end = Date.now() + 30_000; Date.now() < end; await Bun.sleep(50)) {
      const asked = fetch(`${endpoint}/v3/kv/range`, { method: "POST", body, ...(tls && { tls }) });
      if (await asked.then(({ ok }) => ok).catch(() => false)) return;
    }
    throw new Error(`etcd does not answer:\n${await log.text()}`);
  }

  /** Answers nobody, and holds all connections, until `go`. */
  halt(): void {
    this.child?.kill("SIGSTOP");
  }

  go(): void {
    this.child?.kill("SIGCONT");
  }

  async kill(): Promise<void> {
    this.child?.kill("SIGKILL");
    await this.child?.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.go();
    await this.kill();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
