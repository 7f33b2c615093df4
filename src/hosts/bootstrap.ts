// What a host runs before it has our binary: a script that tells what the host is, takes the binary
// where it is absent or another, and becomes `ssihv part`. It goes there as one argument, so that
// nothing lies there but the binary, in a folder that is named by its hash.
// Invariants: the file under that name is whole, because it appears by rename after its hash was
// compared; what came in part is removed, however the conversation ends.

import { createHash } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

import { SsihvError } from "../base/errors.ts";

/** Before each of the script's words: a login shell may print lines of its own first. */
export const MARK = "ssihv-host:";

/** uname's words for what the binary is made for. */
const FIT = "Linux x86_64";

export interface Payload {
  readonly path: string;
  readonly bytes: number;
  /** SHA-256 in hex. */
  readonly hash: string;
}

const CHUNK = 1 << 20;

/** Pieces of a file, in order. */
export function* fileChunks(path: string, chunk = CHUNK): Generator<Uint8Array> {
  const fd = openSync(path, "r");
  try {
    const buffer = new Uint8Array(chunk);
    for (;;) {
      const got = readSync(fd, buffer, 0, buffer.length, null);
      if (got === 0) return;
      yield buffer.subarray(0, got);
    }
  } finally {
    closeSync(fd);
  }
}

export function payloadOf(path: string): Payload {
  const fd = openSync(path, "r");
  const bytes = fstatSync(fd).size;
  closeSync(fd);
  const hash = createHash("sha256");
  for (const chunk of fileChunks(path)) hash.update(chunk);
  return { path, bytes, hash: hash.digest("hex") };
}

/**
 * One line for sh, without single quotes (reach.ts). A folder from which nothing may be run
 * (noexec) is found by an empty file: to run it succeeds, or the kernel does not permit it. Hosts
 * may share a home: a whole copy that another one took meanwhile stays, since what already runs
 * from it starts its engines by that name. Copies unused for a month go when another comes.
 */
export function bootstrapScript({ hash, bytes }: Payload): string {
  const script = `
    umask 077;
    say() { echo "${MARK} $*"; };
    m="$(uname -s) $(uname -m)";
    say on "$m";
    [ "$m" = "${FIT}" ] || exit 0;
    c=""; why="";
    for d in "\${XDG_CACHE_HOME:-\${HOME:-/nowhere}/.cache}/ssihv" "/var/tmp/ssihv-$(id -u)"; do
      mkdir -p "$d" 2>/dev/null; t="$d/.try.$$";
      if [ -O "$d" ] && [ ! -h "$d" ] && true 2>/dev/null >"$t"; then
        chmod 700 "$t";
        if "$t" 2>/dev/null; then c="$d"; else why="$why $d (noexec)"; fi;
        rm -f "$t";
      else why="$why $d (not writable)"; fi;
      [ -z "$c" ] || break;
    done;
    if [ -z "$c" ]; then say nowhere "$why"; exit 0; fi;
    f="$c/${hash}/ssihv";
    same() { s=$(sha256sum 2>/dev/null <"$1") && [ "\${s%% *}" = ${hash} ]; };
    if [ -x "$f" ] && same "$f"; then
      say have; touch "$c/${hash}";
    else
      say need;
      t=$(mktemp "$c/part.XXXXXX") || exit 1;
      trap "rm -f \\"$t\\"" EXIT; trap "exit 1" HUP INT TERM PIPE;
      head -c ${bytes} >"$t";
      if same "$t"; then
        chmod 700 "$t"; mkdir -p "$c/${hash}";
        ln "$t" "$f" 2>/dev/null || same "$f" || mv -f "$t" "$f";
        rm -f "$t";
      else say damaged; exit 1; fi;
      find "$c" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +;
    fi;
    say run;
    exec "$f" part`;
  return script.trim().replaceAll(/\s*\n\s*/g, " ");
}

/** What the script says, in its order; `need` asks for the payload's bytes. */
export type Said = "have" | "need" | "run";

/** One of the script's lines; throws what is wrong with the host. Undefined: nothing to do. */
export function heard(line: string): Said | undefined {
  const [word = "", ...rest] = line.slice(MARK.length).trim().split(" ");
  const words = rest.join(" ");
  switch (word) {
    case "have":
    case "need":
    case "run":
      return word;
    case "on":
      if (words === FIT) return undefined;
      throw new SsihvError("host_unfit", `it is ${words}; ssihv runs on ${FIT}`, {
        hint: "name hosts that are x86-64 Linux",
      });
    case "nowhere":
      throw new SsihvError("host_unfit", `no folder there can keep and run ssihv: ${words}`, {
        hint: "set XDG_CACHE_HOME there to one of its user's that is not mounted noexec",
      });
    case "damaged":
      throw new SsihvError("host_unfit", "ssihv did not arrive whole there", {
        hint: "is there room for it (df ~/.cache), and has the host sha256sum?",
      });
    default:
      return undefined;
  }
}
