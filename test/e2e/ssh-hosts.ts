// "Hosts" on this machine that are reached by a real ssh: a real sshd each (Debian's, unpacked),
// on a loopback address of its own, with a home, a cache and a runtime folder of its own. All is
// below one folder that goes away; what hosts leave is found in it.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { unpackedClosure } from "../lab/debian.ts";
import { childrenOf, isAlive, until } from "./cluster-processes.ts";
import { run } from "./support.ts";

const MULTIARCH = "lib/x86_64-linux-gnu";

export interface SshHost {
  readonly name: string;
  readonly address: string;
  readonly home: string;
  readonly tmp: string;
  readonly runtime: string;
  readonly pid: number;
}

export class SshHosts implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "ssihv-e2e-ssh-"));
  /** For --ssh. */
  readonly ssh = `ssh -F ${join(this.folder, "config")}`;
  private readonly hosts = new Map<string, SshHost>();
  private readonly daemons: Bun.Subprocess[] = [];

  static async start(...names: string[]): Promise<SshHosts> {
    const hosts = new SshHosts();
    await hosts.keys();
    for (const [i, name] of names.entries()) await hosts.add(name, `127.0.0.${i + 2}`);
    return hosts;
  }

  host(name: string): SshHost {
    const host = this.hosts.get(name);
    if (host === undefined) throw new Error(`no host ${name}`);
    return host;
  }

  /** Processes that a connection to the host has there, its own sshd first. */
  processes(name: string): number[] {
    const below = (pid: number): number[] =>
      childrenOf(pid).flatMap((each) => [each, ...below(each)]);
    return below(this.host(name).pid);
  }

  /** What lies on the host, but for copies of ssihv. */
  files(name: string): string[] {
    const { home, tmp, runtime } = this.host(name);
    return [home, tmp, runtime].flatMap((folder) => {
      if (!existsSync(folder)) return [];
      const all = readdirSync(folder, { recursive: true, withFileTypes: true });
      return all
        .filter((entry) => !entry.isDirectory())
        .map((entry) => join(entry.parentPath, entry.name))
        .filter((path) => !path.endsWith("/.bashrc"))
        .filter((path) => !/\/\.cache\/ssihv\/[0-9a-f]{64}\/ssihv$/.test(path));
    });
  }

  /** Where copies of ssihv are. */
  copies(name: string): string[] {
    const cache = join(this.host(name).home, ".cache", "ssihv");
    const names = existsSync(cache) ? readdirSync(cache) : [];
    return names
      .filter((name) => /^[0-9a-f]{64}$/.test(name))
      .map((hash) => join(cache, hash, "ssihv"));
  }

  /** Waits until nothing that ran for a command is left on any host; throws with what is. */
  async areIdle(): Promise<void> {
    for (const name of this.hosts.keys()) {
      await until(`no process left on ${name}`, () => {
        return this.processes(name).filter(isAlive).length === 0;
      });
      await until(`no file left on ${name}: ${this.files(name)}`, () => {
        return this.files(name).length === 0;
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.daemons) daemon.kill("SIGTERM");
    await Promise.all(this.daemons.map(({ exited }) => exited));
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async keys(): Promise<void> {
    for (const name of ["user", "host"]) {
      const path = join(this.folder, `key-${name}`);
      const made = await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]);
      if (made.code !== 0) throw new Error(made.err);
    }
    // sshd drops its rights to a user that its package would have made.
    const passwd = await readFile("/etc/passwd", "utf8");
    const sshd = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n";
    const has = /^sshd:/m.test(passwd);
    writeFileSync(join(this.folder, "passwd"), has ? passwd : passwd + sshd);
    writeFileSync(
      join(this.folder, "config"),
      `Host *
  User root
  IdentityFile ${join(this.folder, "key-user")}
  IdentitiesOnly yes
  UserKnownHostsFile ${join(this.folder, "known_hosts")}
`,
    );
  }

  private async add(name: string, address: string): Promise<void> {
    const port = freePorts();
    const home = join(this.folder, name, "home");
    const tmp = join(this.folder, name, "tmp");
    const runtime = join(this.folder, name, "run");
    for (const folder of [home, tmp]) mkdirSync(folder, { recursive: true });
    // As users have it; bash reads it for sshd, too.
    writeFileSync(join(home, ".bashrc"), "echo welcome; printf 'to this host: '\n");
    const config = join(this.folder, name, "sshd_config");
    const at = { ListenAddress: `${address}:${port}`, HostKey: join(this.folder, "key-host") };
    const settings = {
      ...at,
      AuthorizedKeysFile: join(this.folder, "key-user.pub"),
      PidFile: "none",
      StrictModes: "no",
      UsePAM: "no",
      PermitRootLogin: "yes",
      SetEnv: `HOME=${home} TMPDIR=${tmp} SSIHV_RUNTIME_DIR=${runtime}`,
    };
    const lines = Object.entries(settings).map(([key, value]) => `${key} ${value}\n`);
    writeFileSync(config, lines.join(""));
    const pid = await this.daemon(name, config);
    this.hosts.set(name, { name, address, home, tmp, runtime, pid });
    const known = (await readFile(join(this.folder, "key-host.pub"), "utf8")).trim();
    await this.append("known_hosts", `[${address}]:${port} ${known}\n`);
    await this.append("config", `Host ${name}\n  HostName ${address}\n  Port ${port}\n`);
    await until(`sshd of ${name} answers`, async () => {
      return (await run([...this.ssh.split(" "), name, "true"])).code === 0;
    });
  }

  /** In a mount namespace of its own, where its user is. */
  private async daemon(name: string, config: string): Promise<number> {
    const root = await unpackedClosure("openssh-server", ["openssh-server"], {
      bareMachine: false,
    });
    const script =
      'mount --bind "$1" /etc/passwd && mkdir -p /run/sshd && exec "$2" -D -f "$3" -E "$4"';
    const log = join(this.folder, name, "sshd.log");
    const words = [join(this.folder, "passwd"), `${root}/usr/sbin/sshd`, config, log];
    const daemon = Bun.spawn(["unshare", "-m", "sh", "-c", script, "sh", ...words], {
      stdio: ["ignore", "ignore", "inherit"],
      env: { ...process.env, LD_LIBRARY_PATH: `${root}/usr/${MULTIARCH}:${root}/${MULTIARCH}` },
    });
    this.daemons.push(daemon);
    return daemon.pid;
  }

  private async append(file: string, text: string): Promise<void> {
    const path = join(this.folder, file);
    writeFileSync(path, existsSync(path) ? (await readFile(path, "utf8")) + text : text);
  }
}
