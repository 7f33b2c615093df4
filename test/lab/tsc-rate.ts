// This machine's TSC rate. An emulated host's TSC is this machine's; its kernel would measure the
// rate against emulated timers, and is wrong by any factor when it gets no CPU meanwhile.

import { buildProgram } from "../guest/build.ts";
import { labError, runText } from "./subprocess.ts";

export async function tscKhz(): Promise<number> {
  const program = await buildProgram(`${import.meta.dir}/tsc_rate.zig`);
  const text = await runText([program]);
  const khz = Number(text);
  if (Number.isInteger(khz) && khz > 0) return khz;
  throw labError(`${program} told no rate: ${text}`);
}
