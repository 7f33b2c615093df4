// The command line within the test's own process, where starting one for each question would cost,
// over a host that none of it may touch.

import { main } from "./app.ts";
import type { HostAccess } from "./context.ts";

export interface Ran {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

const nothing = (): never => {
  throw new Error("the host was touched");
};
const NO_HOST: HostAccess = {
  facts: nothing,
  probe: nothing,
  sharedPages: nothing,
  kvmOpenError: nothing,
  runEngine: nothing,
};

export async function mainHere(...args: string[]): Promise<Ran> {
  const ran = { out: "", err: "" };
  const into = (where: "out" | "err") => ({
    write: (text: string) => {
      ran[where] += text;
    },
  });
  const status = await main(args, { stdout: into("out"), stderr: into("err") }, NO_HOST);
  return { status, ...ran };
}
