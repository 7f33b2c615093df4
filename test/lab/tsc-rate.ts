// This machine's TSC rate. An emulated host's TSC is this machine's; its kernel would measure the
// rate against emulated timers, and is wrong by any factor when it gets no CPU meanwhile.

import { buildProgram } from "../guest/build.ts";
import { checkout } from "./paths.ts";
import { labError, runText } from "./subprocess.ts";

export async function tscKhz(): Promise<number> {
  const parts = ["engine/clock.zig", "base/sys.zig"].map((part) => `${checkout}/zig/${part}`);
  const program = await buildProgram(`${checkout}/zig/tsc_rate.zig`, parts);
  const text = await runText([program]);
  const khz = Number(text);
  if (Number.isInteger(khz) && khz > 0) return khz;
  throw labError(`${program} told no rate: ${text}`);
}
