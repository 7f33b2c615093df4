// `ssihv dashboard`: the cluster's web page for a browser on this host, until a signal ends it.

import { buildCommand } from "@stricli/core";

import { ApiClient, type ApiFlags } from "./api-client.ts";
import { API_FLAGS, API_HELP } from "./api-flags.ts";
import type { CliContext } from "./context.ts";
import { wholeNumber } from "./run-options.ts";

interface DashboardFlags extends ApiFlags {
  readonly port: number;
}

const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

async function dashboard(this: CliContext, flags: DashboardFlags): Promise<void> {
  const { stdout, stderr } = this.process;
  const api = await ApiClient.open(flags);
  // One that nobody answers to is told now, not on an empty page.
  await api.status();
  const { DashboardProxy } = await import("./dashboard-proxy.ts");
  const proxy = DashboardProxy.open(api, flags.port);
  stdout.write(`${proxy.link()}\n`);
  stderr.write("ssihv: the link opens the dashboard in one browser, once; Ctrl-C ends it\n");
  const ended = Promise.withResolvers<NodeJS.Signals>();
  for (const signal of ENDING) process.on(signal, ended.resolve);
  const signal = await ended.promise;
  for (const each of ENDING) process.off(each, ended.resolve);
  proxy.close();
  stderr.write(`ssihv: dashboard: ended by ${signal}\n`);
}

export const dashboardCommand = buildCommand<DashboardFlags, [], CliContext>({
  func: dashboard,
  docs: {
    brief: "the cluster in a web browser: hosts, VMs, faults, heat, events, live",
    fullDescription: `Serves the cluster's dashboard on 127.0.0.1 and prints a link to it. It shows
what the certificate it is called with may see, and can change nothing. The link holds a key that
works once; the browser that used it goes on with a cookie of its own.

From a workstation, with the browser there: call it there with --coordinator and a certificate, or
on a host of the cluster behind ssh -L 8780:127.0.0.1:8780, with --port 8780.

The coordinator serves the same page at https://HOST:7780/ to a browser that has a certificate:
  ssihv certs init --host HOST                    HOST is in the coordinator's certificate
  ssihv certs issue alice --role read-only
  openssl pkcs12 -export -in alice.pem -out alice.p12
and import alice.p12 as a certificate of yours, ca.pem as an authority for web sites.

Examples:
  ssihv dashboard
  ssihv dashboard --coordinator 10.0.0.1:7780 --cert alice.pem --port 8780

${API_HELP}

Exit status: 0 ended by a signal, 2 wrong flags or a port in use, 10 the coordinator did not
answer.`,
  },
  parameters: {
    flags: {
      ...API_FLAGS,
      port: {
        kind: "parsed",
        parse: wholeNumber("--port", 0, 65_535),
        default: "0",
        brief: "port of 127.0.0.1; 0: any that is free",
        placeholder: "PORT",
      },
    },
  },
});
