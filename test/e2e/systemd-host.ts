// A host that systemd runs, as far as services go: Debian's own systemd as the first process of
// namespaces of its own, with nothing but its basic targets; with /run, /etc/systemd/system,
// /etc/default, /usr/local/bin, /etc/ssihv and /var/lib/ssihv of its own, and a control group
// (version 2) that goes away.

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

import { childrenOf, until } from "./cluster-processes.ts";
import { type Finished, run, temporaryFolder } from "./support.ts";

const UNITS = "/lib/systemd/system";
const BASICS = [
  ...["sysinit", "basic", "multi-user", "shutdown", "network-online", "network", "umount"],
  ...["slices", "sockets", "paths", "timers", "local-fs", "final", "poweroff", "rescue"],
].map((name) => `${name}.target`);
const OWN = ["/etc/systemd/system", "/etc/default", "/usr/local/bin", "/etc/ssihv"].concat(
  "/var/lib/ssihv",
);

/** Bind mounts need a place, which is made in here alone where it is missing. */
function script(folder: string): string {
  const binds = OWN.map((path) => `mkdir -p ${path}; mount --bind ${folder}${path} ${path}`);
  return `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
umount -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs ${folder}/layer
mkdir ${folder}/layer/up ${folder}/layer/work
mount -t overlay -o lowerdir=/etc,upperdir=${folder}/layer/up,workdir=${folder}/layer/work none /etc
mount -t tmpfs tmpfs /var/lib
${binds.join("\n")}
mount -t proc proc /proc
export container=lxc SYSTEMD_UNIT_PATH=/etc/systemd/system:${folder}/units
exec /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
`;
}

/** Where control groups of version 2 are mounted here. */
function groupRoot(): string {
  const mounts = readFileSync("/proc/mounts", "utf8");
  const root = / (\S+) cgroup2 /.exec(mounts)?.[1];
  if (root === undefined) throw new Error("no cgroup2 is mounted here");
  return root;
}

function removeGroup(path: string): void {
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    if (entry.isDirectory()) removeGroup(join(path, entry.name));
  }
  rmdirSync(path);
}

export class SystemdHost implements AsyncDisposable {
  private readonly temporary = temporaryFolder("/tmp");
  private readonly group = join(groupRoot(), `ssihv-e2e-${process.pid}`);
  private readonly child: Bun.Subprocess<"ignore", "ignore", "pipe">;
  /** Its services' control groups can have limits of memory. */
  readonly limitsMemory: boolean;
  private pid = 0;

  private constructor() {
    const { path } = this.temporary;
    for (const own of [...OWN, "/units", "/layer"]) {
      mkdirSync(path + own, { recursive: true });
    }
    for (const unit of BASICS) copyFileSync(join(UNITS, unit), join(path, "units", unit));
    writeFileSync(join(path, "start.sh"), script(path));
    mkdirSync(this.group);
    // On a host with version 2 alone, the limits of its services are real.
    const enabled = `${this.group}/cgroup.subtree_control`;
    const controllers = readFileSync(`${this.group}/cgroup.controllers`, "utf8");
    this.limitsMemory = controllers.split(/\s+/).includes("memory");
    if (this.limitsMemory) writeFileSync(enabled, "+memory +pids");
    const namespaces = ["--pid", "--mount", "--cgroup", "--ipc", "--uts", "--mount-proc"];
    const enter = `mkdir ${this.group}/all && echo $$ >${this.group}/all/cgroup.procs`;
    this.child = Bun.spawn(
      [
        ...["sh", "-c", `${enter} && exec "$@"`, "sh"],
        ...["unshare", "--fork", "--kill-child", ...namespaces, "sh", join(path, "start.sh")],
      ],
      { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
    );
  }

  static async start(): Promise<SystemdHost> {
    const host = new SystemdHost();
    await until("systemd is the first process", () => {
      if (host.child.exitCode !== null) throw new Error("systemd did not start");
      host.pid = childrenOf(host.child.pid)[0] ?? 0;
      return host.pid !== 0 && readFileSync(`/proc/${host.pid}/comm`, "utf8") === "systemd\n";
    });
    let state = "";
    await until("systemd has started", async () => {
      state = (await host.run("systemctl", "is-system-running")).out.trim();
      return state === "running" || state === "degraded";
    });
    if (state === "degraded") throw new Error((await host.run("systemctl", "--failed")).out);
    return host;
  }

  run(...command: string[]): Promise<Finished> {
    const enter = ["nsenter", "-t", String(this.pid), "-m", "-p", "-i", "-u", "-C"];
    // As a login shell of root has it.
    const clean = { SSIHV_RUNTIME_DIR: undefined, SSIHV_CERTS: undefined, TMPDIR: undefined };
    return run([...enter, ...command], { env: { ...clean, XDG_RUNTIME_DIR: undefined } });
  }

  async ok(...command: string[]): Promise<Finished> {
    const finished = await this.run(...command);
    if (finished.code === 0) return finished;
    throw new Error(`${command.join(" ")}: status ${finished.code}\n${finished.err}`);
  }

  /** One of the folders that are its own. */
  path(name: string): string {
    return this.temporary.path + name;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill("SIGKILL");
    await this.child.exited;
    await until("its processes are gone", () => {
      return !existsSync(this.group) || this.isEmpty();
    });
    removeGroup(this.group);
    this.temporary[Symbol.dispose]();
  }

  private isEmpty(): boolean {
    return /^populated 0$/m.test(readFileSync(join(this.group, "cgroup.events"), "utf8"));
  }
}
