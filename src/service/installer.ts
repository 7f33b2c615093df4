// Makes a daemon of this executable a systemd service, and takes it away again. Doing it twice
// changes nothing the second time. A running agent is never restarted here, since that would end
// its VMs; a coordinator is, since VMs do not need it.
// Invariants: each file is replaced by a rename, so no reader sees half of one; below another root
// nothing but files is touched.

import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { foldersOf, optionsIn, optionsText } from "./options-file.ts";
import { type Daemon, optionsPath, unitName, unitPath, unitText } from "./units.ts";

/** Where the executable is put. */
export const BINARY_PATH = "/usr/local/bin/ssihv";
/** One that lies here was put there by a package or an administrator, and stays. */
const SYSTEM_FOLDERS = ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin"];
/** What systemd makes when it is what runs this host: sd_booted(3). */
const BOOTED = "/run/systemd/system";

export interface Systemctl {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

export interface InstallHost {
  /** Where its files are: / but in tests. */
  readonly base: string;
  /** This executable; undefined where the program runs from its source. */
  readonly executable: string | undefined;
  readonly root: boolean;
  readonly booted: boolean;
  readonly systemctl: (...args: string[]) => Systemctl;
  readonly say: (line: string) => void;
}

export interface InstallRequest {
  readonly daemon: Daemon;
  /** Options of the daemon; none: those that are there already stay. */
  readonly words: readonly string[];
  /** Another root, for packages and images: nothing is started. */
  readonly root?: string;
  /** Enable and start it. */
  readonly start: boolean;
}

interface Content {
  readonly path: string;
  readonly bytes: string | Uint8Array;
  readonly mode: number;
}

export function installHost(
  executable: string | undefined,
  say: (line: string) => void,
): InstallHost {
  return {
    base: "/",
    executable,
    root: process.geteuid?.() === 0,
    booted: existsSync(BOOTED),
    systemctl: (...args) => {
      const { exitCode, stdout, stderr } = Bun.spawnSync(["systemctl", ...args], {
        stdin: "ignore",
      });
      return { status: exitCode, out: String(stdout).trim(), err: String(stderr).trim() };
    },
    say,
  };
}

/** Whether an executable at this path is to be used where it is. */
function liesWell(executable: string): boolean {
  return SYSTEM_FOLDERS.includes(dirname(executable));
}

/** What the service runs. */
function binaryOf({ executable }: InstallHost): string {
  return executable !== undefined && liesWell(executable) ? executable : BINARY_PATH;
}

/** The unit and the options as they are to be; the executable is not among them. */
export function serviceFiles(request: InstallRequest, host: InstallHost): Content[] {
  const { daemon } = request;
  const at = (path: string) => join(request.root ?? host.base, path);
  const kept = keptOptions(at(optionsPath(daemon)), request.words);
  const words = kept ?? request.words;
  const unit = unitText({ daemon, binary: binaryOf(host), writable: foldersOf(words) });
  const options = optionsText(daemon, words);
  return [
    { path: at(unitPath(daemon)), bytes: unit, mode: 0o644 },
    // What an administrator wrote there stays as it is, comments too.
    ...(kept === undefined ? [{ path: at(optionsPath(daemon)), bytes: options, mode: 0o644 }] : []),
  ];
}

/** The options of an earlier installation, where none are given now. */
function keptOptions(path: string, words: readonly string[]): readonly string[] | undefined {
  if (words.length > 0 || !existsSync(path)) return undefined;
  return optionsIn(readFileSync(path, "utf8")) ?? [];
}

/** Refuses what could not be finished, before anything is changed. */
export function requireService(what: string, host: InstallHost): void {
  if (!host.root) {
    throw new SsihvError("request_invalid", `ssihv ${what} needs root`, {
      hint: `sudo ssihv ${what}; --print shows what it would write`,
    });
  }
  if (host.booted) return;
  throw new SsihvError("host_unfit", "systemd does not run this host", {
    hint:
      "--root FOLDER writes the files for a package or an image; " +
      "or let another supervisor run ssihv node and ssihv coordinator",
  });
}

export function install(request: InstallRequest, host: InstallHost): void {
  const { daemon, root } = request;
  const unit = unitName(daemon);
  const executable = binaryContent(request, host);
  const changed = [...executable, ...serviceFiles(request, host)].filter((content) => {
    return put(content, host);
  });
  if (root !== undefined) return;
  systemctl(host, "daemon-reload");
  if (!request.start) {
    host.say(`${unit} is not started: systemctl enable --now ${unit}`);
    return;
  }
  const ran = host.systemctl("is-active", unit).out === "active";
  systemctl(host, "enable", unit);
  if (!ran) start(host, "start", unit);
  else if (changed.length === 0 && !runsOldFile(unit, binaryOf(host), host)) {
    host.say(`${unit} runs already, and nothing has changed`);
  } else if (daemon === "coordinator") start(host, "restart", unit);
  else host.say(`${unit} goes on as it was; systemctl restart ${unit} ends its VMs and renews it`);
}

/** Whether it was started from another file than the one that is in its place by now. */
function runsOldFile(unit: string, binary: string, host: InstallHost): boolean {
  const pid = host.systemctl("show", "--property=MainPID", "--value", unit).out;
  try {
    const running = statSync(join(host.base, "proc", pid, "exe"));
    const placed = statSync(join(host.base, binary));
    return running.dev !== placed.dev || running.ino !== placed.ino;
  } catch {
    // It has ended meanwhile: systemd starts the new one, or has given it up.
    return false;
  }
}

function start(host: InstallHost, verb: "start" | "restart", unit: string): void {
  systemctl(host, verb, unit);
  host.say(`${unit} runs, and starts with this host (journalctl -u ${unit})`);
}

/** Nothing where the executable lies where it is to be, else what is to be put there. */
function binaryContent({ root }: InstallRequest, host: InstallHost): Content[] {
  const { executable } = host;
  if (executable === undefined) {
    throw new SsihvError("request_invalid", "this ssihv runs from its source", {
      hint: "build it (make), and let dist/ssihv install itself",
    });
  }
  if (root === undefined && liesWell(executable)) return [];
  const path = join(root ?? host.base, binaryOf(host));
  return [{ path, bytes: readFileSync(executable), mode: 0o755 }];
}

/** Whether it is new. */
function put({ path, bytes, mode }: Content, host: InstallHost): boolean {
  const wanted = Buffer.from(bytes);
  try {
    if (existsSync(path) && readFileSync(path).equals(wanted)) {
      host.say(`${path} is as it should be`);
      return false;
    }
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    const temporary = `${path}.new`;
    writeFileSync(temporary, wanted);
    chmodSync(temporary, mode);
    renameSync(temporary, path);
  } catch (cause) {
    const code = cause instanceof Error && "code" in cause ? String(cause.code) : String(cause);
    throw new SsihvError("service_failed", `${path} cannot be written (${code})`, { cause });
  }
  host.say(`${path} written`);
  return true;
}

export function uninstall(daemon: Daemon, host: InstallHost, root?: string): void {
  const unit = unitName(daemon);
  const at = (path: string) => join(root ?? host.base, path);
  const there = [unitPath(daemon), optionsPath(daemon)].map(at).filter((path) => existsSync(path));
  if (root === undefined && existsSync(at(unitPath(daemon)))) {
    systemctl(host, "disable", "--now", unit);
    host.say(`${unit} has ended`);
  }
  for (const path of there) {
    rmSync(path);
    host.say(`${path} removed`);
  }
  if (root === undefined) {
    systemctl(host, "daemon-reload");
    // A failed unit stays listed without its file.
    host.systemctl("reset-failed", unit);
  }
  if (there.length === 0) host.say(`${unit} is not installed`);
  const left = [BINARY_PATH, `/var/lib/ssihv/${daemon}`].map(at).filter((path) => existsSync(path));
  if (left.length > 0) host.say(`left as they are: ${left.join(", ")}`);
}

function systemctl(host: InstallHost, ...args: string[]): void {
  const { status, err } = host.systemctl(...args);
  if (status === 0) return;
  const unit = args.at(-1) ?? "";
  const words = err === "" ? `status ${status}` : err;
  throw new SsihvError("service_failed", `systemctl ${args.join(" ")}: ${words}`, {
    hint: unit.endsWith(".service") ? `journalctl -u ${unit} -n 20` : "systemctl status",
  });
}
