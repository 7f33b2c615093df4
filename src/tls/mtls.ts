// Connections on which both sides have shown a certificate of the cluster's CA: the listener that
// the coordinator opens, and the clients of agents and of the command line.
// Invariants: a peer without a certificate, with one of another CA, an expired one, or one of a
// role that this listener does not serve is closed without a byte of ours and without its bytes
// being looked at; nothing a peer does throws into its owner.
// node:tls and not Bun.listen, because its server takes new certificates while it listens: two
// listeners on one port lose the connections that wait at the one which closes.

import { connect, createServer, type PeerCertificate, type Server, type TLSSocket } from "node:tls";

import { SsihvError } from "../base/errors.ts";
import { type CertificateFacts, factsOfEncoded } from "./certificate.ts";
import type { Credentials } from "./credentials.ts";
import { COORDINATOR_DNS, type Identity, identityOf, type Role } from "./identity.ts";

/** How long a peer may take over the handshake. */
const HANDSHAKE_MS = 10_000;
/** Connections at a time, served or not. */
const CONNECTIONS_MAX = 4096;
const ATTEMPT_MS = 5000;

/** Both ends are known to each other; the socket is its taker's, errors included. */
export interface MtlsConnection {
  readonly peer: Identity;
  /** That the other side showed. */
  readonly certificate: CertificateFacts;
  /** The IP address of the other side, IPv4 also where the socket is IPv6. */
  readonly remoteHost: string;
  /** Of this side, as the other one reached it or was reached from. */
  readonly localHost: string;
  readonly socket: TLSSocket;
}

function bare(address: string | undefined): string {
  return (address ?? "").replace(/^::ffff:(?=\d+\.)/i, "");
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

/** Who is at the other end; in words why nobody is. */
function peerOf(socket: TLSSocket): Identity | string {
  if (!socket.authorized) return codeOf(socket.authorizationError);
  const certificate = socket.getPeerCertificate() as PeerCertificate | undefined;
  return identityOf(certificate?.subject) ?? "its certificate names no role";
}

function connectionOf(socket: TLSSocket, peer: Identity): MtlsConnection {
  const { remoteAddress, localAddress } = socket;
  const certificate = factsOfEncoded(socket.getPeerCertificate().raw);
  const hosts = { remoteHost: bare(remoteAddress), localHost: bare(localAddress) };
  return { peer, certificate, socket, ...hosts };
}

function serverTls({ ca, certificate, key }: Credentials) {
  return { ca, cert: certificate, key, requestCert: true, rejectUnauthorized: true };
}

export interface MtlsListenerOptions {
  readonly hostname: string;
  /** 0: any that is free. */
  readonly port: number;
  readonly credentials: Credentials;
  /** Who may connect. */
  readonly roles: readonly Role[];
  onConnection(connection: MtlsConnection): void;
  onRefused?(from: string, why: string): void;
}

export class MtlsListener {
  private readonly options: MtlsListenerOptions;
  private readonly server: Server;

  private constructor(options: MtlsListenerOptions) {
    this.options = options;
    this.server = createServer(
      { ...serverTls(options.credentials), handshakeTimeout: HANDSHAKE_MS },
      (socket) => this.admit(socket),
    );
    this.server.maxConnections = CONNECTIONS_MAX;
    this.server.on("tlsClientError", (error, socket) => {
      this.options.onRefused?.(bare(socket.remoteAddress), codeOf(error));
      socket.destroy();
    });
  }

  /** Throws `address_invalid` where it cannot listen. */
  static async open(options: MtlsListenerOptions): Promise<MtlsListener> {
    const listener = new MtlsListener(options);
    const { hostname, port } = options;
    const opened = Promise.withResolvers<void>();
    listener.server.once("error", opened.reject);
    listener.server.listen(port, hostname, () => opened.resolve());
    try {
      await opened.promise;
    } catch (cause) {
      const message = `cannot listen on ${hostname}:${port} (${codeOf(cause)})`;
      throw new SsihvError("address_invalid", message, {
        hint: "name an address of this host and a free port",
        cause,
      });
    }
    listener.server.off("error", opened.reject);
    return listener;
  }

  get port(): number {
    const address = this.server.address();
    return typeof address === "object" && address !== null ? address.port : 0;
  }

  /** New connections see these; those that are there stay. */
  replaceCredentials(credentials: Credentials): void {
    this.server.setSecureContext(serverTls(credentials));
  }

  /** No new connections; those that are there are their takers'. */
  close(): void {
    this.server.close();
  }

  private admit(socket: TLSSocket): void {
    // Whoever takes the socket listens, too; until then a reset is nobody's business.
    socket.on("error", () => socket.destroy());
    const peer = peerOf(socket);
    if (typeof peer === "string") return this.refuse(socket, peer);
    if (!this.options.roles.includes(peer.role)) {
      return this.refuse(socket, `${peer.name} is of role ${peer.role}`);
    }
    socket.setNoDelay(true);
    this.options.onConnection(connectionOf(socket, peer));
  }

  private refuse(socket: TLSSocket, why: string): void {
    const from = bare(socket.remoteAddress);
    socket.destroy();
    this.options.onRefused?.(from, why);
  }
}

export interface MtlsTarget {
  readonly host: string;
  readonly port: number;
  readonly credentials: Credentials;
}

/** A connection to the coordinator; rejects with words why there is none, or `peer_refused`. */
export async function connectMtls(target: MtlsTarget): Promise<MtlsConnection> {
  const { ca, cert, key, serverName } = clientTls(target.credentials);
  const { host, port } = target;
  const socket = connect({ host, port, ca, cert, key, servername: serverName });
  const secured = Promise.withResolvers<void>();
  const timer = setTimeout(() => secured.reject(new Error("no answer")), ATTEMPT_MS);
  socket.once("secureConnect", () => secured.resolve());
  socket.once("close", () => secured.reject(new Error("it closed the connection")));
  socket.on("error", (error) => {
    secured.reject(unconnected(error));
    socket.destroy();
  });
  try {
    await secured.promise;
    const peer = peerOf(socket);
    if (typeof peer === "string") throw impostor(peer);
    socket.setNoDelay(true);
    return connectionOf(socket, peer);
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

const ERRNO_WORDS: Record<string, string> = {
  ECONNREFUSED: "nobody listens there",
  ECONNRESET: "it closed the connection",
  EHOSTUNREACH: "that host cannot be reached",
  ENETUNREACH: "there is no route to that host",
  ENOTFOUND: "that name is not known",
};

function unconnected(error: unknown): Error {
  const code = codeOf(error);
  if (ERRNO_WORDS[code] !== undefined) return new Error(ERRNO_WORDS[code]);
  const network = /^E[A-Z]+$/.test(code);
  return network ? new Error(`it cannot be reached (${code})`) : impostor(code);
}

/** Of a CA that we do not know, or with a certificate that is none of a coordinator. */
function impostor(code: string): SsihvError {
  return new SsihvError("peer_refused", `it is not this cluster's coordinator (${code})`);
}

/** What `fetch` takes to show who we are and to know the coordinator. */
export function clientTls(credentials: Credentials) {
  return {
    ca: credentials.ca,
    cert: credentials.certificate,
    key: credentials.key,
    serverName: COORDINATOR_DNS,
  };
}
