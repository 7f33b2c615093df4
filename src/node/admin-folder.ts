// Where the admin sockets of this user's running VMs lie: a folder that nobody else can enter, one
// socket for each command that runs a VM or a node of one. The first folder that is fit is used to
// listen; all are looked at to find VMs, since not every shell has the same environment.
// A folder that others could have made or may enter is refused: who controls it controls the VMs.

import { randomBytes } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, isAbsolute, join, resolve } from "node:path";

export const ADMIN_FOLDER_HELP = `Admin sockets lie in $SSIHV_RUNTIME_DIR if it is set, else in
$XDG_RUNTIME_DIR/ssihv, else in /run/ssihv (root) or /tmp/ssihv-UID: a folder of mode 700.`;

const SUFFIX = ".sock";
/** As unnamedSocket makes them. */
const UNNAMED = /^\.[0-9a-f]{16}$/;
const NOT_OWNER = 0o077;

export interface AdminFolder {
  readonly path: string;
  /** The folder around it must be this user's, too. */
  readonly ownParent: boolean;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** In the order of preference. */
export function adminFolders(env: Environment = process.env, uid = ownUid()): AdminFolder[] {
  const forced = env["SSIHV_RUNTIME_DIR"];
  if (forced !== undefined && forced !== "") return [{ path: resolve(forced), ownParent: false }];
  const session = env["XDG_RUNTIME_DIR"] ?? "";
  const paths = [
    // XDG Base Directory Specification: a path that is not absolute is to be ignored.
    ...(isAbsolute(session) ? [{ path: join(session, "ssihv"), ownParent: true }] : []),
    ...(uid === 0 ? [{ path: "/run/ssihv", ownParent: true }] : []),
    { path: join(tmpdir(), `ssihv-${uid}`), ownParent: false },
  ];
  return paths.filter(({ path }, i) => paths.findIndex((other) => other.path === path) === i);
}

/** Of those, and where a login session of this user would have put them. */
export function foldersToSearch(env: Environment = process.env, uid = ownUid()): AdminFolder[] {
  const folders = adminFolders(env, uid);
  const forced = env["SSIHV_RUNTIME_DIR"] ?? "";
  const session = { path: `/run/user/${uid}/ssihv`, ownParent: true };
  if (forced !== "" || folders.some(({ path }) => path === session.path)) return folders;
  return [...folders, session];
}

function ownUid(): number {
  return process.getuid?.() ?? 0;
}

/** Why the folder cannot be trusted; undefined when it can. Throws where there is none. */
function flaw(folder: AdminFolder, uid: number): string | undefined {
  const parent = dirname(folder.path);
  if (folder.ownParent && lstatSync(parent).uid !== uid) return `${parent} is another user's`;
  const stat = lstatSync(folder.path);
  if (!stat.isDirectory()) return "it is no folder";
  if (stat.uid !== uid) return "it is another user's";
  if ((stat.mode & NOT_OWNER) === 0) return undefined;
  const mode = (stat.mode & 0o777).toString(8);
  return `other users may use it (mode ${mode}; chmod 700 it)`;
}

function errnoOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

/** Makes the folder if it is missing; why it cannot be used, undefined when it can. */
export function prepareFolder(folder: AdminFolder, uid = ownUid()): string | undefined {
  try {
    const parent = dirname(folder.path);
    if (folder.ownParent && lstatSync(parent).uid !== uid) return `${parent} is another user's`;
    mkdirSync(folder.path, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") return errnoOf(error);
  }
  try {
    return flaw(folder, uid);
  } catch (error) {
    return errnoOf(error);
  }
}

export interface FoundSockets {
  /** Paths, by name. */
  readonly sockets: readonly string[];
  /** Those that have no name yet: for a moment, or of a command that was killed meanwhile. */
  readonly unnamed: readonly string[];
  /** Folders that are there but not to be trusted. */
  readonly refused: readonly string[];
}

/** Every admin socket that this user's VMs may listen on; those of dead ones are among them. */
export function findSockets(folders = foldersToSearch(), uid = ownUid()): FoundSockets {
  const sockets: string[] = [];
  const unnamed: string[] = [];
  const refused: string[] = [];
  for (const folder of folders) {
    try {
      const why = flaw(folder, uid);
      if (why === undefined) {
        for (const name of readdirSync(folder.path).sort()) {
          if (name.endsWith(SUFFIX)) sockets.push(join(folder.path, name));
          if (UNNAMED.test(name)) unnamed.push(join(folder.path, name));
        }
      } else refused.push(`${folder.path}: ${why}`);
    } catch (error) {
      // No folder: no VM ever used it.
      if (errnoOf(error) !== "ENOENT") refused.push(`${folder.path}: ${errnoOf(error)}`);
    }
  }
  return { sockets, unnamed, refused };
}

/** A node's command may run on the lead's host: it has a name of its own there. */
export function socketName(vm: string, node?: number): string {
  return `${vm}${node === undefined ? "" : `.${node}`}${SUFFIX}`;
}

/** What a socket is called until it has its name. */
export function unnamedSocket(): string {
  return `.${randomBytes(8).toString("hex")}`;
}
