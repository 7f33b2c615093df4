// One folder per lab, `.lab/run-*`: sockets, consoles, the folder shared with the hosts, and the list
// of processes the lab started. The list is what lets `make clean` end what a killed test left behind
// without ever touching a process that is not the lab's: a line is a pid with its start time.

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { labDirectory } from "./paths.ts";

const pidFile = "pids";

export async function createRunDirectory(): Promise<string> {
  await mkdir(labDirectory, { recursive: true });
  const directory = await mkdtemp(`${labDirectory}/run-`);
  recordProcess(directory, process.pid, "lab");
  await mkdir(`${directory}/out/.lab`, { recursive: true });
  return directory;
}

/** Notes a child so that a later `reap` can end it when this process could not. */
export function recordProcess(directory: string, pid: number, role: string): void {
  const started = startTime(pid);
  if (started !== undefined) appendFileSync(`${directory}/${pidFile}`, `${pid} ${started} ${role}\n`);
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

// Field 22 of /proc/PID/stat, proc(5): start time in ticks since boot; pids are reused, this pair is not.
function startTime(pid: number): string | undefined {
  const path = `/proc/${pid}/stat`;
  try {
    const text = readFileSync(path, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

export interface Reaped {
  directories: number;
  processes: number;
}

/** Ends recorded processes of labs and removes their folders; `all` also ends labs in use. */
export async function reap(options: { all: boolean }): Promise<Reaped> {
  const reaped = { directories: 0, processes: 0 };
  if (!existsSync(labDirectory)) return reaped;
  for (const name of await readdir(labDirectory)) {
    const directory = `${labDirectory}/${name}`;
    if (!name.startsWith("run-") || (!options.all && ownerAlive(directory))) continue;
    for (const entry of recorded(directory)) {
      if (entry.pid === process.pid || !alive(entry)) continue;
      process.kill(entry.pid, "SIGKILL");
      reaped.processes += 1;
    }
    await rm(directory, { recursive: true, force: true });
    reaped.directories += 1;
  }
  return reaped;
}
