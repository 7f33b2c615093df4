// A coordinator that does not lead: whoever comes, by whichever way, is told who does.

import { rmSync } from "node:fs";
import { dirname } from "node:path";

import { SsihvError } from "../src/base/errors.ts";
import { faultOf } from "../src/control/messages.ts";
import { MetricsServer } from "../src/telemetry/metrics-server.ts";
import { type MtlsConnection, MtlsListener } from "../src/tls/mtls.ts";
import { PkiFolder, secretFolder } from "../src/tls/pki-folder.ts";
import type { CoordinatorOptions } from "./coordinator.ts";
import { Gateway, type HttpServer, serveUnix } from "./gateway.ts";
import { bodyOf, statusOf } from "./http-errors.ts";
import { JoinDoor } from "./join-door.ts";
import { standbyMetrics } from "./metrics.ts";
import { ownCredentials, watchCertificate } from "./own-certificate.ts";

const STAY_MS = 5000;

export class Standby {
  private readonly closings: (() => unknown)[] = [];
  private readonly options: CoordinatorOptions;
  private readonly why: () => Error;

  private constructor(options: CoordinatorOptions, why: () => Error) {
    this.options = options;
    this.why = why;
  }

  /** `why`: what everybody is told. */
  static async open(options: CoordinatorOptions, why: () => Error): Promise<Standby> {
    const standby = new Standby(options, why);
    try {
      await standby.listen();
    } catch (error) {
      await standby.close();
      throw error;
    }
    return standby;
  }

  async close(): Promise<void> {
    for (const close of this.closings.splice(0).toReversed()) await close();
  }

  private async listen(): Promise<void> {
    const { host, port, adminSocket, say, metrics } = this.options;
    const pki = PkiFolder.open(this.options.certs);
    const credentials = ownCredentials(pki);
    const agents = await MtlsListener.open({
      ...{ hostname: host, port: port + 1, credentials, roles: ["node"] },
      onConnection: (connection) => this.turnAway(connection),
    });
    this.closings.push(() => agents.close());
    const door = new JoinDoor(host, port + 2, credentials, () => Promise.reject(this.notHere()));
    this.closings.push(() => door.close());
    const answer = async () => {
      const error = this.why();
      return Response.json(bodyOf(error), { status: statusOf(error) });
    };
    secretFolder(dirname(adminSocket));
    const gateway = new Gateway(adminSocket, { operator: answer, "read-only": answer });
    this.closings.push(() => gateway.close());
    const api = await MtlsListener.open({
      ...{ hostname: host, port, credentials, roles: ["operator", "read-only"] },
      onConnection: (connection) => gateway.pass(connection),
    });
    this.closings.push(() => api.close());
    const local: HttpServer = serveUnix(adminSocket, answer);
    this.closings.push(async () => {
      await local.stop(true);
      rmSync(adminSocket, { force: true });
    });
    if (metrics !== undefined) {
      const server = MetricsServer.open(metrics, async () => standbyMetrics());
      this.closings.push(() => server.close());
    }
    const renew = () => {
      const renewed = ownCredentials(pki);
      for (const listener of [api, agents]) listener.replaceCredentials(renewed);
    };
    const timer = watchCertificate(pki, renew, say);
    this.closings.push(() => clearInterval(timer));
  }

  /** A token names the coordinator that made it. */
  private notHere(): SsihvError {
    const { message } = this.why();
    return new SsihvError("leader_elsewhere", message, {
      hint: "make another token with ssihv cluster token: it names the one that leads",
    });
  }

  private turnAway({ socket }: MtlsConnection): void {
    // What it greets with is not looked at, and it has no business to stay.
    socket.resume();
    socket.setTimeout(STAY_MS, () => socket.destroy());
    socket.end(`${JSON.stringify({ type: "refused", fault: faultOf(this.why()) })}\n`);
  }
}
