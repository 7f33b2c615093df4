// Helpers of the end-to-end tests: run a command to its end, and folders that go away again.

import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

export const checkout: string = resolve(import.meta.dir, "../..");
export const binary: string = `${checkout}/dist/ssihv`;

// VMs of tests are nobody else's to see, nor may they meet others of their name. What is started
// with process.env has it; the first VM makes the folder.
const runtime = join(tmpdir(), `ssihv-e2e-run-${process.pid}`);
process.env["SSIHV_RUNTIME_DIR"] = runtime;

/** After all tests of a file that runs VMs. */
export function removeRuntimeFolder(): void {
  rmSync(runtime, { recursive: true, force: true });
}

export interface Finished {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface RunOptions {
  readonly cwd?: string;
  /** Added to this process's environment; undefined removes. */
  readonly env?: Record<string, string | undefined>;
  readonly stdin?: Uint8Array;
}

export async function run(command: readonly string[], options: RunOptions = {}): Promise<Finished> {
  const child = Bun.spawn([...command], {
    cwd: options.cwd ?? checkout,
    env: { ...process.env, ...options.env },
    stdin: options.stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

/** A folder that is removed at the end of the block: `using folder = temporaryFolder()`. */
export function temporaryFolder(parent: string = tmpdir()): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(parent, "ssihv-e2e-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

export const isRoot: boolean = process.getuid?.() === 0;

export function hasKvm(): boolean {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
