// The options of a daemon as systemd's EnvironmentFile holds them: one variable, which systemd
// splits into words as a shell would (systemd.service(5), "Command lines"). Characters that would
// need quoting twice are refused: no path or address has them.

import { SsihvError } from "../base/errors.ts";
import { type Daemon, OPTIONS_VARIABLE } from "./units.ts";

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
const UNKEPT = /["'\\$`\x00-\x1f\x7f]/;
const PLAIN = /^[\w@%+=:,./[\]-]+$/;

/** The file's text for these words. */
export function optionsText(daemon: Daemon, words: readonly string[]): string {
  const kept = words.map((word) => {
    if (UNKEPT.test(word)) {
      throw new SsihvError("flag_invalid", `${JSON.stringify(word)} cannot be kept in a unit`, {
        hint: "leave out quotes, backslashes, '$' and control characters",
      });
    }
    return PLAIN.test(word) ? word : `'${word}'`;
  });
  return `# Options of ssihv ${daemon} as a service: see ssihv ${daemon} --help.
# After a change: systemctl restart ssihv-${daemon}
${OPTIONS_VARIABLE}="${kept.join(" ")}"
`;
}

/** The words that a file of ours holds; undefined where it is written in another way. */
export function optionsIn(text: string): string[] | undefined {
  const line = new RegExp(`^${OPTIONS_VARIABLE}="([^"\\\\$\`]*)"$`, "m").exec(text)?.[1];
  if (line === undefined) return undefined;
  return [...line.matchAll(/'([^']*)'|([^\s']+)/g)].map(([, quoted, plain]) => {
    return quoted ?? plain ?? "";
  });
}

/** Folders below which a daemon with these options writes, besides those of its unit. */
export function foldersOf(words: readonly string[]): string[] {
  return words.flatMap((word, i) => {
    const flag = words[i - 1];
    if (flag === "--state") return [word];
    if (flag !== "--socket") return [];
    return [word.replace(/\/[^/]*$/, "") || "/"];
  });
}
