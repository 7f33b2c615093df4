// Where certificates lie unless a flag says so.

import { homedir } from "node:os";
import { join, resolve } from "node:path";

export function certsFolder(env: Readonly<Record<string, string | undefined>>, uid: number) {
  const forced = env["SSIHV_CERTS"] ?? "";
  if (forced !== "") return resolve(forced);
  if (uid === 0) return "/etc/ssihv/certs";
  const config = env["XDG_CONFIG_HOME"] ?? "";
  return join(config === "" ? join(homedir(), ".config") : config, "ssihv", "certs");
}

export function defaultCertsFolder(): string {
  return certsFolder(process.env, process.getuid?.() ?? 0);
}
