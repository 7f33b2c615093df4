// FADT, signature "FACP" (ACPI 6.3, 5.2.9): the fixed hardware: PM1 registers, PM timer, reset,
// and what legacy the machine has. Not hardware-reduced: power-off, SCI and PM timer are those of
// an ICH9. It says nothing that is not there: no SMI, no GPE blocks, no buttons, no i8042, no VGA.

import { type AcpiHardware, HARDWARE } from "./board.ts";
import { Encoder, encodeTable } from "./encoder.ts";
import {
  address,
  ascii,
  encode,
  type Flag,
  type GenericAddress,
  layout,
  NO_ADDRESS,
  reserved,
  u8,
  u16,
  u32,
  u64,
} from "./layout.ts";

/** 6.3: the newest that the iasl of Debian 12 checks. The minor version is a field of its own. */
export const FADT_REVISION = 6;
const FADT_MINOR = 3;

const PROFILES = [
  "unspecified",
  "desktop",
  "mobile",
  "workstation",
  "enterprise server",
  "SOHO server",
  "appliance PC",
  "performance server",
  "tablet",
];
const PROFILE_ENTERPRISE_SERVER = 4;

/** Fixed feature flags (ACPI 6.3, table 5-35). */
const FLAGS: readonly Flag[] = [
  [0, "WBINVD", "WBINVD works as documented"],
  [1, "WBINVD_FLUSH", "WBINVD flushes but does not invalidate"],
  [2, "PROC_C1", "C1 is supported on all processors"],
  [3, "P_LVL2_UP", "C2 works only with one processor"],
  [4, "PWR_BUTTON", "the power button, if any, is a device of the namespace"],
  [5, "SLP_BUTTON", "the sleep button, if any, is a device of the namespace"],
  [6, "FIX_RTC", "RTC wake status is not in the PM1 registers"],
  [7, "RTC_S4", "the RTC can wake the machine from S4"],
  [8, "TMR_VAL_EXT", "the PM timer counts 32 bits, not 24"],
  [9, "DCK_CAP", "the machine can be docked"],
  [10, "RESET_REG_SUP", "the reset register may be used"],
  [11, "SEALED_CASE", "the case has no expansion"],
  [12, "HEADLESS", "no monitor, keyboard or mouse"],
  [13, "CPU_SW_SLP", "a processor instruction must follow the sleep register"],
  [14, "PCI_EXP_WAK", "PM1 has the PCI Express wake bits"],
  [15, "USE_PLATFORM_CLOCK", "the OS should take PM timer or HPET for its clock"],
  [16, "S4_RTC_STS_VALID", "RTC_STS is valid after waking from S4"],
  [17, "REMOTE_POWER_ON_CAPABLE", "the machine can be turned on from afar"],
  [18, "FORCE_APIC_CLUSTER_MODEL", "local APICs must use the cluster model"],
  [19, "FORCE_APIC_PHYSICAL_DESTINATION_MODE", "local APICs must be addressed physically"],
  [20, "HW_REDUCED_ACPI", "the fixed hardware is absent"],
  [21, "LOW_POWER_S0_IDLE_CAPABLE", "S0 idle saves as much as S3"],
];
const FLAG = {
  wbinvd: 1 << 0,
  procC1: 1 << 2,
  powerButton: 1 << 4,
  sleepButton: 1 << 5,
  fixedRtc: 1 << 6,
  timerExtended: 1 << 8,
  resetRegister: 1 << 10,
  headless: 1 << 12,
} as const;

/** IA-PC boot architecture flags (ACPI 6.3, table 5-36). */
const BOOT_FLAGS: readonly Flag[] = [
  [0, "LEGACY_DEVICES", "there are devices on ISA that a user can see (a serial port)"],
  [1, "8042", "there is a keyboard controller at 0x60 and 0x64"],
  [2, "VGA_NOT_PRESENT", "there is no VGA: do not probe its memory"],
  [3, "MSI_NOT_SUPPORTED", "message signalled interrupts must not be enabled"],
  [4, "PCIE_ASPM_CONTROLS", "the OS must not touch PCIe power saving"],
  [5, "CMOS_RTC_NOT_PRESENT", "there is no CMOS clock"],
];
// MSIs work: they are messages to our local APICs. 0x64 answers only the reset command.
const BOOT = { legacyDevices: 1 << 0, vgaNotPresent: 1 << 2 } as const;

const port = (what: string): string => `I/O port of ${what}, 0: none`;
const decimal = (unit: string) => (value: bigint) => `${value} ${unit}`;

export const FADT = layout("Fixed ACPI description", [
  u32("firmwareCtrl", "physical address of the FACS"),
  u32("dsdt", "physical address of the DSDT"),
  reserved(1),
  u8("preferredPmProfile", "what kind of machine this is", {
    show: (value) => PROFILES[Number(value)] ?? "unknown",
  }),
  u16("sciInterrupt", "GSI of the system control interrupt"),
  u32("smiCommand", "I/O port to talk to SMM, 0: no SMM, always in ACPI mode"),
  u8("acpiEnable", "value for the SMI port that turns ACPI on"),
  u8("acpiDisable", "value for the SMI port that turns ACPI off"),
  u8("s4BiosRequest", "value for the SMI port that enters S4BIOS"),
  u8("pstateControl", "value for the SMI port that hands over P-states"),
  u32("pm1aEventBlock", port("PM1a status and enable")),
  u32("pm1bEventBlock", port("PM1b status and enable")),
  u32("pm1aControlBlock", port("PM1a control")),
  u32("pm1bControlBlock", port("PM1b control")),
  u32("pm2ControlBlock", port("PM2 control")),
  u32("pmTimerBlock", port("the PM timer")),
  u32("gpe0Block", port("general purpose event block 0")),
  u32("gpe1Block", port("general purpose event block 1")),
  u8("pm1EventLength", "bytes of a PM1 event block"),
  u8("pm1ControlLength", "bytes of a PM1 control block"),
  u8("pm2ControlLength", "bytes of the PM2 control block"),
  u8("pmTimerLength", "bytes of the PM timer"),
  u8("gpe0BlockLength", "bytes of GPE block 0"),
  u8("gpe1BlockLength", "bytes of GPE block 1"),
  u8("gpe1Base", "first event of GPE block 1"),
  u8("cstControl", "value for the SMI port that hands over C-states"),
  u16("cstate2Latency", "latency of C2", {
    show: (value) => (value > 100n ? `${value} us: no C2` : `${value} us`),
  }),
  u16("cstate3Latency", "latency of C3", {
    show: (value) => (value > 1000n ? `${value} us: no C3` : `${value} us`),
  }),
  u16("flushSize", "lines to read to flush caches, where WBINVD does not work"),
  u16("flushStride", "cache line size for that", { show: decimal("bytes") }),
  u8("dutyOffset", "bit of the throttling duty cycle in P_CNT"),
  u8("dutyWidth", "bits of the throttling duty cycle, 0: no throttling"),
  u8("dayAlarm", "CMOS index of the alarm's day of month, 0: none"),
  u8("monthAlarm", "CMOS index of the alarm's month, 0: none"),
  u8("century", "CMOS index of the century, 0: none"),
  u16("bootArchitecture", "legacy of the PC", { flags: BOOT_FLAGS }),
  reserved(1),
  u32("flags", "fixed features", { flags: FLAGS }),
  address("resetRegister", "writing the reset value here resets the machine"),
  u8("resetValue", "what to write there"),
  u16("armBootArchitecture", "ARM only"),
  u8("minorVersion", "bits 3:0 minor version, bits 7:4 errata", {
    show: (value) => `6.${value & 0xfn}`,
  }),
  u64("xFirmwareCtrl", "64-bit address of the FACS, 0: the 32-bit one counts"),
  u64("xDsdt", "64-bit address of the DSDT"),
  address("xPm1aEventBlock", "PM1a status and enable"),
  address("xPm1bEventBlock", "PM1b status and enable"),
  address("xPm1aControlBlock", "PM1a control"),
  address("xPm1bControlBlock", "PM1b control"),
  address("xPm2ControlBlock", "PM2 control"),
  address("xPmTimerBlock", "PM timer"),
  address("xGpe0Block", "general purpose event block 0"),
  address("xGpe1Block", "general purpose event block 1"),
  address("sleepControl", "sleep control of hardware-reduced machines"),
  address("sleepStatus", "sleep status of hardware-reduced machines"),
  ascii("hypervisorVendor", 8, "who made the hypervisor, empty: none"),
]);

/** Bytes of the blocks, and the access sizes their registers take (1 byte, 2 word, 3 dword). */
const PM1_EVENT = { bytes: 4, access: 2 };
const PM1_CONTROL = { bytes: 2, access: 2 };
const PM_TIMER = { bytes: 4, access: 3 };
const RESET = { bytes: 1, access: 1 };
/** Latencies above 100 and 1000 us mean that C2 and C3 do not exist. */
const NO_C2 = 0x65;
const NO_C3 = 0x3e9;

function io(at: number, block: { bytes: number; access: number }): GenericAddress {
  return {
    space: 1,
    bitWidth: block.bytes * 8,
    bitOffset: 0,
    accessSize: block.access,
    address: BigInt(at),
  };
}

const NOTHING = {
  smiCommand: 0,
  acpiEnable: 0,
  acpiDisable: 0,
  s4BiosRequest: 0,
  pstateControl: 0,
  pm1bEventBlock: 0,
  pm1bControlBlock: 0,
  pm2ControlBlock: 0,
  gpe0Block: 0,
  gpe1Block: 0,
  pm2ControlLength: 0,
  gpe0BlockLength: 0,
  gpe1BlockLength: 0,
  gpe1Base: 0,
  cstControl: 0,
  flushSize: 0,
  flushStride: 0,
  dutyOffset: 0,
  dutyWidth: 0,
  dayAlarm: 0,
  monthAlarm: 0,
  armBootArchitecture: 0,
  xPm1bEventBlock: NO_ADDRESS,
  xPm1bControlBlock: NO_ADDRESS,
  xPm2ControlBlock: NO_ADDRESS,
  xGpe0Block: NO_ADDRESS,
  xGpe1Block: NO_ADDRESS,
  sleepControl: NO_ADDRESS,
  sleepStatus: NO_ADDRESS,
} as const;

/** `facs` and `dsdt` are guest-physical and below 4 GiB. */
export function buildFadt(
  facs: bigint,
  dsdt: bigint,
  hardware: AcpiHardware = HARDWARE,
): Uint8Array {
  const body = new Encoder();
  encode(body, FADT, {
    ...NOTHING,
    firmwareCtrl: facs,
    dsdt,
    preferredPmProfile: PROFILE_ENTERPRISE_SERVER,
    sciInterrupt: hardware.sciGsi,
    pm1aEventBlock: hardware.pm1EventPort,
    pm1aControlBlock: hardware.pm1ControlPort,
    pmTimerBlock: hardware.pmTimerPort,
    pm1EventLength: PM1_EVENT.bytes,
    pm1ControlLength: PM1_CONTROL.bytes,
    pmTimerLength: PM_TIMER.bytes,
    cstate2Latency: NO_C2,
    cstate3Latency: NO_C3,
    century: hardware.rtcCenturyIndex,
    bootArchitecture: BOOT.legacyDevices | BOOT.vgaNotPresent,
    // Neither APIC flag: physical and cluster destinations both work on our local APICs.
    flags: Object.values(FLAG).reduce((all, flag) => all | flag, 0),
    resetRegister: io(hardware.resetPort, RESET),
    resetValue: hardware.resetValue,
    minorVersion: FADT_MINOR,
    // One address for the FACS: a guest that finds two takes them for two structures.
    xFirmwareCtrl: 0n,
    xDsdt: dsdt,
    xPm1aEventBlock: io(hardware.pm1EventPort, PM1_EVENT),
    xPm1aControlBlock: io(hardware.pm1ControlPort, PM1_CONTROL),
    xPmTimerBlock: io(hardware.pmTimerPort, PM_TIMER),
    hypervisorVendor: "SSIHV",
  });
  return encodeTable("FACP", FADT_REVISION, body.finish());
}
