import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import {
  adminFolders,
  findSockets,
  foldersToSearch,
  prepareFolder,
  socketName,
} from "./admin-folder.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-folder-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const uid = process.getuid?.() ?? 0;

function paths(folders: readonly { readonly path: string }[]): string[] {
  return folders.map(({ path }) => path);
}

test("the session's folder first, then root's or a private one", () => {
  const session = { XDG_RUNTIME_DIR: "/run/user/1000" };
  const own = join(tmpdir(), "ssihv-1000");
  expect(paths(adminFolders(session, 1000))).toEqual(["/run/user/1000/ssihv", own]);
  expect(paths(adminFolders({}, 1000))).toEqual([own]);
  expect(paths(adminFolders({ XDG_RUNTIME_DIR: "relative" }, 1000))).toEqual([own]);
  expect(paths(adminFolders({}, 0))).toEqual(["/run/ssihv", join(tmpdir(), "ssihv-0")]);
  expect(paths(adminFolders({ SSIHV_RUNTIME_DIR: "/x/y" }, 0))).toEqual(["/x/y"]);
});

test("VMs of a login session are found without its environment, unless a folder is forced", () => {
  expect(paths(foldersToSearch({}, 1000))).toContain("/run/user/1000/ssihv");
  const session = { XDG_RUNTIME_DIR: "/run/user/1000" };
  expect(paths(foldersToSearch(session, 1000)).length).toBe(2);
  expect(paths(foldersToSearch({ SSIHV_RUNTIME_DIR: "/x" }, 1000))).toEqual(["/x"]);
});

test("a folder is made for its user alone, and taken again", () => {
  const path = join(base, "made");
  expect(prepareFolder({ path, ownParent: true })).toBeUndefined();
  expect(lstatSync(path).mode & 0o777).toBe(0o700);
  expect(prepareFolder({ path, ownParent: true })).toBeUndefined();
});

test("a folder that others could have made or may enter is refused", () => {
  const why = (path: string, asUid = uid, ownParent = false) =>
    prepareFolder({ path, ownParent }, asUid);
  const open = join(base, "open");
  mkdirSync(open);
  chmodSync(open, 0o755);
  expect(why(open)).toContain("mode 755");
  const real = join(base, "real");
  mkdirSync(real, { mode: 0o700 });
  const link = join(base, "link");
  symlinkSync(real, link);
  expect(why(link)).toBe("it is no folder");
  const file = join(base, "file");
  writeFileSync(file, "");
  expect(why(file)).toBe("it is no folder");
  expect(why(real, uid + 1)).toBe("it is another user's");
  expect(why(join(base, "below"), uid + 1, true)).toBe(`${base} is another user's`);
  expect(why(join(base, "none", "below"))).toBe("ENOENT");
});

test("sockets are found by name; folders not to be trusted are told, missing ones are not", () => {
  const path = join(base, "search");
  mkdirSync(path, { mode: 0o700 });
  for (const name of ["b.sock", "a.1.sock", ".12.0", "note"]) writeFileSync(join(path, name), "");
  const open = join(base, "open2");
  mkdirSync(open);
  chmodSync(open, 0o777);
  const folders = [path, open, join(base, "none")].map((each) => ({
    path: each,
    ownParent: false,
  }));
  const { sockets, refused } = findSockets(folders);
  expect(sockets).toEqual([join(path, "a.1.sock"), join(path, "b.sock")]);
  expect(refused).toEqual([`${open}: other users may use it (mode 777; chmod 700 it)`]);
});

test("a node's socket is no VM's", () => {
  expect(socketName("demo")).toBe("demo.sock");
  expect(socketName("demo", 1)).toBe("demo.1.sock");
});
