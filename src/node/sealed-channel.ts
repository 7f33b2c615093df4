// JSON messages between two `ssihv` processes on different hosts, sealed with the VM's key: before
// the coordinator's mTLS exists this is how a host joins a VM. Both sides send a greeting with a
// random nonce; from the key and both nonces each direction gets its own AES-256-GCM key, and every
// frame its counter as nonce. So a side without the key, a replayed, reordered or reflected frame,
// and a changed byte all fail the same way: the channel ends. Pure: bytes in, bytes out; no socket
// here.

import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { SsihvError } from "../base/errors.ts";

const MAGIC = Buffer.from("ssihv-join-1\n");
const NONCE_BYTES = 32;
const GREETING_BYTES = MAGIC.length + NONCE_BYTES;
const TAG_BYTES = 16;
const LENGTH_BYTES = 4;
/** A plan with a CPU model is about 20 KiB; nothing legitimate comes near this. */
export const FRAME_MAX = 1 << 20;

export type Role = "lead" | "join";

export interface ChannelHooks {
  write(bytes: Uint8Array): void;
  onMessage(message: unknown): void;
}

class Direction {
  private readonly key: Buffer;
  private counter = 0n;

  constructor(key: Uint8Array, salt: Uint8Array, label: string) {
    this.key = Buffer.from(hkdfSync("sha256", key, salt, `ssihv join ${label}`, 32));
  }

  private nonce(): Buffer {
    const nonce = Buffer.alloc(12);
    nonce.writeBigUInt64LE(this.counter++, 0);
    return nonce;
  }

  seal(plain: Uint8Array): Buffer {
    const cipher = createCipheriv("aes-256-gcm", this.key, this.nonce());
    return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
  }

  /** Throws when the bytes are not exactly what the peer sealed next. */
  open(sealed: Buffer): Buffer {
    const decipher = createDecipheriv("aes-256-gcm", this.key, this.nonce());
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
    const body = sealed.subarray(0, sealed.length - TAG_BYTES);
    return Buffer.concat([decipher.update(body), decipher.final()]);
  }
}

export class SealedChannel {
  private readonly role: Role;
  private readonly key: Uint8Array;
  private readonly hooks: ChannelHooks;
  private readonly nonce = randomBytes(NONCE_BYTES);
  private received = Buffer.alloc(0);
  private sealing: Direction | undefined;
  private opening: Direction | undefined;
  private readonly waiting: unknown[] = [];

  /** `key`: 32 bytes, the VM's. */
  constructor(role: Role, key: Uint8Array, hooks: ChannelHooks) {
    this.role = role;
    this.key = key;
    this.hooks = hooks;
    hooks.write(Buffer.concat([MAGIC, this.nonce]));
  }

  /** Sends once the peer's greeting is there; JSON values only. */
  send(message: unknown): void {
    if (this.sealing === undefined) {
      this.waiting.push(message);
      return;
    }
    const sealed = this.sealing.seal(Buffer.from(JSON.stringify(message)));
    const length = Buffer.alloc(LENGTH_BYTES);
    length.writeUInt32LE(sealed.length);
    this.hooks.write(Buffer.concat([length, sealed]));
  }

  /** Bytes from the peer, in any pieces; throws `peer_refused` when they are not a peer's. */
  feed(bytes: Uint8Array): void {
    this.received = Buffer.concat([this.received, bytes]);
    if (this.opening === undefined && !this.greeted()) return;
    while (this.received.length >= LENGTH_BYTES) {
      const length = this.received.readUInt32LE();
      if (length < TAG_BYTES || length > FRAME_MAX)
        throw refused("a frame has an impossible length");
      if (this.received.length < LENGTH_BYTES + length) return;
      const sealed = this.received.subarray(LENGTH_BYTES, LENGTH_BYTES + length);
      this.received = this.received.subarray(LENGTH_BYTES + length);
      this.hooks.onMessage(this.openFrame(sealed));
    }
  }

  private greeted(): boolean {
    const seen = Math.min(this.received.length, MAGIC.length);
    if (!this.received.subarray(0, seen).equals(MAGIC.subarray(0, seen))) {
      throw refused("the other side does not speak the join protocol of this version");
    }
    if (this.received.length < GREETING_BYTES) return false;
    const theirs = this.received.subarray(MAGIC.length, GREETING_BYTES);
    this.received = this.received.subarray(GREETING_BYTES);
    const salt = Buffer.concat(this.role === "lead" ? [this.nonce, theirs] : [theirs, this.nonce]);
    const other: Role = this.role === "lead" ? "join" : "lead";
    this.sealing = new Direction(this.key, salt, this.role);
    this.opening = new Direction(this.key, salt, other);
    for (const message of this.waiting.splice(0)) this.send(message);
    return true;
  }

  private openFrame(sealed: Buffer): unknown {
    let plain: Buffer | undefined;
    try {
      plain = this.opening?.open(sealed);
    } catch (cause) {
      throw refused("a frame is not sealed with this VM's key", cause);
    }
    try {
      return JSON.parse((plain ?? Buffer.alloc(0)).toString());
    } catch (cause) {
      throw refused("a sealed frame is not JSON", cause);
    }
  }
}

function refused(why: string, cause?: unknown): SsihvError {
  return new SsihvError("peer_refused", why, {
    hint: "do both hosts run the same ssihv and name the same key file?",
    cause,
  });
}
