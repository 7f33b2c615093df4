// One folder per lab, `.lab/run-*`: sockets, consoles, the folder shared with the hosts, and the
// list of processes the lab started. The list is what lets `make clean` end what a killed test left
// behind without ever touching a process that is not the lab's: a line is a pid with its start
// time. A folder without that list is evidence, kept on purpose; the newest few stay.

import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { labDirectory } from "./paths.ts";

const pidFile = "pids";
const keptFolders = 8;

export function createRunDirectory(): string {
  mkdirSync(labDirectory, { recursive: true });
  // Prepared under another name: a reaper must never see a folder of ours without its owner.
  const scratch = mkdtempSync(`${labDirectory}/.new-`);
  recordProcess(scratch, process.pid, "lab");
  mkdirSync(`${scratch}/out/.lab`, { recursive: true });
  const directory = scratch.replace(/\.new-([^/]*)$/, "run-$1");
  renameSync(scratch, directory);
  return directory;
}

/** Notes a child so that a later `reap` can end it when this process could not. */
export function recordProcess(directory: string, pid: number, role: string): void {
  const started = startTime(pid);
  if (started !== undefined)
    appendFileSync(`${directory}/${pidFile}`, `${pid} ${started} ${role}\n`);
}

/** Whether the process that owns this run directory is still there. */
function ownerAlive(directory: string): boolean {
  return recorded(directory).some((entry) => entry.role === "lab" && alive(entry));
}

interface Recorded {
  pid: number;
  started: string;
  role: string;
}

function recorded(directory: string): Recorded[] {
  const path = `${directory}/${pidFile}`;
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").trim().split("\n");
  return lines.flatMap((line) => {
    const [pid, started, role] = line.split(" ");
    return pid && started && role ? [{ pid: Number(pid), started, role }] : [];
  });
}

function alive(entry: Recorded): boolean {
  return startTime(entry.pid) === entry.started;
}

// Field 22 of /proc/PID/stat, proc(5): start time in ticks since boot; pids are reused, this pair
// is not.
function startTime(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? undefined : fields[19];
  } catch {
    return undefined; // no such process: the answer, not a failure
  }
}

/** Leaves the folder of a lab that has ended in place, for its consoles and logs. */
export function keepRunDirectory(directory: string): void {
  rmSync(`${directory}/${pidFile}`, { force: true });
  const kept = runDirectories().filter((path) => !existsSync(`${path}/${pidFile}`));
  const byAge = kept.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  for (const path of byAge.slice(keptFolders)) removeRunDirectory(path);
}

export function removeRunDirectory(directory: string): void {
  rmSync(directory, { recursive: true, force: true });
}

function runDirectories(): string[] {
  if (!existsSync(labDirectory)) return [];
  const names = readdirSync(labDirectory).filter((name) => name.startsWith("run-"));
  return names.map((name) => `${labDirectory}/${name}`);
}

export interface Reaped {
  directories: number;
  processes: number;
}

/**
 * Ends what labs left behind whose own process is dead, and removes their folders.
 * `kept` removes evidence of failed labs too, `inUse` also ends labs that are running.
 */
export function reap(options: { kept?: boolean; inUse?: boolean } = {}): Reaped {
  const reaped = { directories: 0, processes: 0 };
  for (const directory of runDirectories()) {
    const evidence = !existsSync(`${directory}/${pidFile}`);
    if (evidence ? !options.kept : ownerAlive(directory) && !options.inUse) continue;
    for (const entry of recorded(directory)) {
      if (entry.pid === process.pid || !alive(entry)) continue;
      process.kill(entry.pid, "SIGKILL");
      reaped.processes += 1;
    }
    removeRunDirectory(directory);
    reaped.directories += 1;
  }
  return reaped;
}
