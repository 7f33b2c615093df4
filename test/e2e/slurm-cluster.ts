// A Slurm of two nodes on this machine (Debian's, unpacked): munged, slurmctld and a slurmd for
// each node, on ports and addresses of their own. All is below one folder that goes away.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { unpackedClosure } from "../lab/debian.ts";
import { until } from "./cluster-processes.ts";
import { type Finished, run } from "./support.ts";

const PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"];
const MULTIARCH = "lib/x86_64-linux-gnu";
const NODES = ["n1", "n2"];

export class SlurmCluster implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "ssihv-e2e-slurm-"));
  private readonly root: string;
  private readonly env: Record<string, string | undefined>;
  private readonly daemons: Bun.Subprocess[] = [];

  private constructor(root: string) {
    this.root = root;
    const libraries = [`usr/${MULTIARCH}`, MULTIARCH, `usr/${MULTIARCH}/slurm-wlm`];
    const own = (name: string) => join(this.folder, name);
    for (const name of ["munge", "state", "cache", "tmp"]) mkdirSync(own(name), { mode: 0o700 });
    for (const node of NODES) mkdirSync(own(`spool-${node}`));
    this.env = {
      ...process.env,
      LD_LIBRARY_PATH: libraries.map((path) => `${root}/${path}`).join(":"),
      PATH: `${root}/usr/bin:${process.env["PATH"]}`,
      SLURM_CONF: own("slurm.conf"),
      // What hosts of the VM have: the nodes share a home, as they do in clusters.
      XDG_CACHE_HOME: own("cache"),
      SSIHV_RUNTIME_DIR: own("run"),
      TMPDIR: own("tmp"),
    };
  }

  static async start(): Promise<SlurmCluster> {
    const root = await unpackedClosure("slurm", PACKAGES, { bareMachine: false });
    const cluster = new SlurmCluster(root);
    cluster.configure();
    await cluster.daemonsUp();
    return cluster;
  }

  command(...words: string[]): Promise<Finished> {
    return run(words, { env: this.env });
  }

  async ok(...words: string[]): Promise<string> {
    const { code, out, err } = await this.command(...words);
    if (code !== 0) throw new Error(`${words.join(" ")}: status ${code}\n${out}${err}`);
    return out.trim();
  }

  /** A job's line of `scontrol show job`. */
  job(id: string): Promise<string> {
    return this.ok("scontrol", "--oneliner", "show", "job", id);
  }

  /** Waits until no job is left, nor a process or a file of a VM; throws with what is. */
  async isIdle(): Promise<void> {
    await until("no job is left", async () => (await this.ok("squeue", "--noheader")) === "");
    await until("no process of a VM is left", () => this.processes().length === 0);
    const left = ["tmp", "run"].flatMap((name) => this.files(join(this.folder, name)));
    if (left.length > 0) throw new Error(`left: ${left}`);
  }

  /** Programs of ssihv that run in jobs. */
  processes(): number[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => {
        try {
          const environ = readFileSync(`/proc/${pid}/environ`, "latin1");
          const cmdline = readFileSync(`/proc/${pid}/cmdline`, "latin1");
          return environ.includes(this.folder) && cmdline.includes("ssihv\0");
        } catch {
          // It ended meanwhile.
          return false;
        }
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.command("scancel", "--quiet", "--user=root");
    await until("no job is left", async () => (await this.ok("squeue", "--noheader")) === "");
    for (const daemon of this.daemons.toReversed()) {
      daemon.kill("SIGTERM");
      await daemon.exited;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }

  private files(folder: string): string[] {
    try {
      return readdirSync(folder, { recursive: true }).map(String);
    } catch {
      // No VM ever made it.
      return [];
    }
  }

  private configure(): void {
    const { folder, root } = this;
    const ports = Array.from({ length: NODES.length + 1 }, () => freePorts());
    const settings = {
      ClusterName: "ssihv",
      SlurmctldHost: `${hostname()}(127.0.0.1)`,
      SlurmctldPort: ports[0],
      SlurmUser: "root",
      SlurmdUser: "root",
      AuthType: "auth/munge",
      AuthInfo: `socket=${folder}/munge/socket`,
      CredType: "cred/munge",
      PluginDir: `${root}/usr/${MULTIARCH}/slurm-wlm`,
      StateSaveLocation: `${folder}/state`,
      SlurmdSpoolDir: `${folder}/spool-%n`,
      SlurmctldPidFile: `${folder}/slurmctld.pid`,
      SlurmdPidFile: `${folder}/slurmd-%n.pid`,
      ProctrackType: "proctrack/linuxproc",
      TaskPlugin: "task/none",
      MpiDefault: "none",
      SelectType: "select/cons_tres",
      JobAcctGatherType: "jobacct_gather/none",
      AccountingStorageType: "accounting_storage/none",
      ReturnToService: 2,
      KillWait: 10,
    };
    const lines = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
    for (const [i, node] of NODES.entries()) {
      const address = `NodeHostname=${hostname()} NodeAddr=127.0.0.${i + 2}`;
      lines.push(`NodeName=${node} ${address} Port=${ports[i + 1]} CPUs=1 RealMemory=500`);
    }
    lines.push(`PartitionName=all Nodes=${NODES.join(",")} Default=YES State=UP`);
    writeFileSync(`${folder}/slurm.conf`, `${lines.join("\n")}\n`);
    writeFileSync(`${folder}/munge/key`, crypto.getRandomValues(new Uint8Array(128)), {
      mode: 0o600,
    });
  }

  private async daemonsUp(): Promise<void> {
    const { folder, root } = this;
    const munge = [
      "key-file=key",
      "socket=socket",
      "pid-file=pid",
      "log-file=log",
      "seed-file=seed",
    ];
    const files = munge.map((each) => `--${each.replace("=", `=${folder}/munge/`)}`);
    this.daemon("munged", ["--foreground", "--force", "--num-threads=2", ...files]);
    await until("munged answers", async () => {
      return (await this.command("munge", "-n", `--socket=${folder}/munge/socket`)).code === 0;
    });
    this.daemon("slurmctld-wlm", ["-D", "-c"]);
    for (const node of NODES) {
      this.daemon("slurmd-wlm", ["-D", "-N", node, "-d", `${root}/usr/sbin/slurmstepd-wlm`]);
    }
    await until("both nodes are idle", async () => {
      const { out } = await this.command("sinfo", "--noheader", "--format=%D %T");
      return out.trim() === `${NODES.length} idle`;
    });
  }

  private daemon(program: string, args: readonly string[]): void {
    const log = Bun.file(join(this.folder, `${program}-${this.daemons.length}.log`));
    const command = [`${this.root}/usr/sbin/${program}`, ...args];
    this.daemons.push(Bun.spawn(command, { stdio: ["ignore", log, log], env: this.env }));
  }
}
