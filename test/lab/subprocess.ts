// Runs a program of the machine to its end and hands back what it said: the lab's one way to call
// apt, dpkg, modprobe and the like. A program that fails is an error that shows its last words.

import { SsihvError } from "../../src/base/errors.ts";

export interface RunOptions {
  cwd?: string;
  env?: Record<string, string | undefined>;
  stdin?: Uint8Array;
  hint?: string;
}

export function labError(message: string, hint?: string, cause?: unknown): SsihvError {
  return new SsihvError("lab_failed", message, {
    ...(hint === undefined ? {} : { hint }),
    ...(cause === undefined ? {} : { cause }),
  });
}

/** Standard output of `command`; throws with the end of standard error when it exits non-zero. */
export async function run(
  command: readonly string[],
  options: RunOptions = {},
): Promise<Uint8Array> {
  const child = Bun.spawn([...command], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: options.env ?? process.env,
    stdin: options.stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors, status] = await Promise.all([
    new Response(child.stdout).bytes(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (status !== 0) {
    const words = errors.trim().split("\n").slice(-4).join(" | ");
    throw labError(`${command.join(" ")} ended with status ${status}: ${words}`, options.hint);
  }
  return output;
}

export async function runText(
  command: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  return new TextDecoder().decode(await run(command, options));
}
