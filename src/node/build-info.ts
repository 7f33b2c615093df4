// Which build this is: package version, commit, and the hash that library and bindings must share.
// The build passes the commit by --define; from source it is "source".

import manifest from "../../package.json" with { type: "json" };
import { ABI_HASH, ABI_VERSION } from "../native/abi.gen.ts";

/** Replaced at build time: bun build --define SSIHV_COMMIT='"abc1234"'. */
declare const SSIHV_COMMIT: string | undefined;

export interface BuildInfo {
  readonly version: string;
  readonly commit: string;
  /** ABI version and hash. */
  readonly abi: string;
}

export function buildInfo(): BuildInfo {
  return {
    version: manifest.version,
    commit: typeof SSIHV_COMMIT === "string" ? SSIHV_COMMIT : "source",
    abi: `${ABI_VERSION}/${ABI_HASH.toString(16).padStart(16, "0")}`,
  };
}

export function versionLine(): string {
  const { version, commit, abi } = buildInfo();
  return `ssihv ${version} (commit ${commit}, ABI ${abi})`;
}
