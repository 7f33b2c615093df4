// Rare devices that TypeScript answers: the PC's ways to end or restart a machine, and the debug
// console. Pure: an access in, a value and perhaps a decision out; engine.ts acts on the decision.

import { BOARD, DEVICE, POWER } from "../vmm/board.ts";

/** One access as the io slot carries it. */
export interface DeviceAccess {
  readonly device: number;
  readonly isWrite: boolean;
  /** Bytes: 1, 2 or 4. */
  readonly size: number;
  readonly value: number;
}

export type Decision =
  | { readonly kind: "reset"; readonly by: string }
  | { readonly kind: "power_off" }
  | { readonly kind: "debug_exit"; readonly value: number };

export interface DeviceAnswer {
  readonly value: number;
  readonly decision?: Decision;
  /** A byte for the debug console. */
  readonly debugByte?: number;
}

/** What a write-only or absent register reads as. */
function ones(size: number): number {
  return size >= 4 ? 0xffff_ffff : 2 ** (size * 8) - 1;
}

const i8042 = {
  /** Output buffer empty, input buffer empty: nothing to read, always ready for a command. */
  idle: 0,
} as const;

/** The reset control register keeps its type bits (ICH9 datasheet, 13.7.5). */
export class PowerDevices {
  private resetControl = 0;

  answer(access: DeviceAccess): DeviceAnswer {
    switch (access.device) {
      case DEVICE.i8042:
        return this.i8042(access);
      case DEVICE.reset:
        return this.reset(access);
      case DEVICE.debugExit:
        if (!access.isWrite) return { value: ones(access.size) };
        return { value: 0, decision: { kind: "debug_exit", value: access.value } };
      case DEVICE.debugConsole:
        if (!access.isWrite) return { value: POWER.debugConsoleMark };
        return { value: 0, debugByte: access.value & 0xff };
      default:
        return { value: ones(access.size) };
    }
  }

  /** A written event bit of a register file. */
  registerEvent(device: number): Decision | undefined {
    // The DSDT offers one sleep state, soft off: SLP_EN means that.
    return device === DEVICE.pm1Control ? { kind: "power_off" } : undefined;
  }

  private i8042(access: DeviceAccess): DeviceAnswer {
    if (!access.isWrite) return { value: i8042.idle };
    if ((access.value & 0xff) !== POWER.i8042Reset) return { value: 0 };
    return {
      value: 0,
      decision: { kind: "reset", by: `i8042 (port 0x${BOARD.i8042CommandPort.toString(16)})` },
    };
  }

  private reset(access: DeviceAccess): DeviceAnswer {
    if (!access.isWrite) return { value: this.resetControl };
    const starts =
      (access.value & POWER.resetCpu) !== 0 && (this.resetControl & POWER.resetCpu) === 0;
    this.resetControl = access.value & 0x0e & ~POWER.resetCpu;
    if (!starts) return { value: 0 };
    return {
      value: 0,
      decision: { kind: "reset", by: `reset register (port 0x${BOARD.resetPort.toString(16)})` },
    };
  }
}
