// How far the copies of ssihv to other hosts have come: one line for each host as it begins, and
// again a few seconds apart, so that a slow network is seen to work.

import type { RunOutput } from "./run-output.ts";

const EVERY_MS = 2000;

export class CopyProgress {
  private readonly output: Pick<RunOutput, "copying">;
  private readonly now: () => number;
  private readonly saidAt = new Map<string, number>();

  constructor(output: Pick<RunOutput, "copying">, now = () => performance.now()) {
    this.output = output;
    this.now = now;
  }

  copying(host: string, bytes: number, total: number): void {
    const at = this.now();
    const before = this.saidAt.get(host);
    if (before !== undefined && at - before < EVERY_MS && bytes < total) return;
    this.saidAt.set(host, at);
    this.output.copying(host, bytes, total);
  }
}
