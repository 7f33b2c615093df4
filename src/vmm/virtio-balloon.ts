// The virtio balloon (virtio 1.2, 5.5) as data: what its registers say. What it does with pages is
// zig/engine/balloon.zig's.

import { BOARD, DEVICE } from "./board.ts";
import { VIRTIO_CONFIG_MAX, VIRTIO_QUEUES_MAX, type VirtioDevice } from "./records.ts";

/** 5.5.1. */
const BALLOON_ID = 5;
/** "SSIV", little endian: nobody's number yet, and drivers do not look at it. */
const VENDOR = 0x56495353;

/**
 * Feature bits (5.5.3, 6). Not offered: MUST_TELL_HOST, since a page given up comes back when it is
 * touched; statistics; page poison, since a reported page may read as it was or as zeroes.
 */
const FEATURES = {
  /** The guest takes pages back when it runs out of memory. */
  deflateOnOom: 1n << 2n,
  /** It tells which of its memory is free. */
  reporting: 1n << 5n,
  version1: 1n << 32n,
} as const;

/** Linux reports 32 ranges at a time, and puts 256 pages into one buffer. */
const QUEUE_SIZE = 64;
/** Inflate, deflate, and reporting under both of its numbers (zig/devices/balloon.zig). */
const QUEUES: readonly number[] = [0, 1, 2, 4];

/** num_pages and actual (5.5.4), 32 bits each; the second is the driver's. */
const CONFIG_BYTES = 8;
const ACTUAL_OFFSET = 4;

/** Pages that the guest is to give are the engine's to change later. */
export function virtioBalloon(targetPages: number): VirtioDevice {
  const config = new Uint8Array(VIRTIO_CONFIG_MAX);
  new DataView(config.buffer).setUint32(0, targetPages, true);
  const mask = new Uint8Array(VIRTIO_CONFIG_MAX);
  mask.fill(0xff, ACTUAL_OFFSET, CONFIG_BYTES);
  return {
    device: DEVICE.balloon,
    id: BALLOON_ID,
    vendor: VENDOR,
    pin: BOARD.virtioGsi,
    features: FEATURES.deflateOnOom | FEATURES.reporting | FEATURES.version1,
    queue_sizes: Array.from({ length: VIRTIO_QUEUES_MAX }, (_, queue) => {
      return QUEUES.includes(queue) ? QUEUE_SIZE : 0;
    }),
    config_len: CONFIG_BYTES,
    config,
    config_write_mask: mask,
  };
}
