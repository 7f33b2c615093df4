// Is this host fit to run a part of a VM? Pure: the probe's answers and the host's facts in, one
// line per subject out, each with what to do when it is not good. `ssihv check` prints them;
// nothing here touches the host. How each probe measures is told in zig/kvm/probe.zig.

import { constants } from "node:os";

import { errnoName } from "../base/errors.ts";
import type { HostProbe } from "../native/engine-handle.ts";
import type { HostFacts } from "./host-facts.ts";

export type CheckState = "good" | "degraded" | "missing" | "not_run";

export interface CheckLine {
  readonly id: string;
  readonly title: string;
  readonly state: CheckState;
  readonly detail: string;
  /** What to do about it; present unless good. */
  readonly fix?: string;
  /** Missing means: no VM on this host. */
  readonly required: boolean;
}

export interface HostCheck {
  readonly lines: readonly CheckLine[];
  /** fit: all good; degraded: runs, with losses; unfit: something required is missing. */
  readonly verdict: "fit" | "degraded" | "unfit";
}

type ProbeField = keyof HostProbe;
type ProbeResult = HostProbe[ProbeField];

/** abi.zig ProbeState, by value. */
const STATES: readonly CheckState[] = ["not_run", "good", "degraded", "missing"];
const { EACCES, EBUSY, ENODEV, ENOENT, ENXIO, EPERM } = constants.errno;

const MIB = 1 << 20;

interface Subject {
  readonly id: ProbeField;
  readonly title: string;
  readonly required: boolean;
  readonly good: (result: ProbeResult) => string;
  readonly bad: (result: ProbeResult, facts: HostFacts) => string;
  readonly fix: (result: ProbeResult, facts: HostFacts) => string;
}

function kvmFix(errno: number, facts: HostFacts): string {
  if (errno === EACCES || errno === EPERM) {
    return "run as root, or join the group that owns /dev/kvm (usermod -aG kvm USER, new login)";
  }
  if (errno === EBUSY) return "another hypervisor holds the CPU's virtualisation: stop it";
  if (facts.virtualisation === undefined) {
    return (
      "the CPU shows neither SVM nor VMX: switch virtualisation on in the firmware setup, or " +
      "nested virtualisation in the hypervisor this machine runs on; " +
      "in a container add --device /dev/kvm"
    );
  }
  const module = facts.virtualisation === "svm" ? "kvm_amd" : "kvm_intel";
  if (errno === ENOENT || errno === ENODEV || errno === ENXIO) {
    return `modprobe ${module}; in a container start it with --device /dev/kvm`;
  }
  return `modprobe -r ${module} && modprobe ${module}, then look at dmesg`;
}

function pagingFix(facts: HostFacts): string {
  if (facts.kvmModules.includes("kvm_pvm")) {
    return "kvm_pvm pages in software alone: use a host with kvm_amd or kvm_intel (or make lab)";
  }
  const [module, option] =
    facts.virtualisation === "vmx" ? ["kvm_intel", "ept"] : ["kvm_amd", "npt"];
  const nested = `a nested host needs ${option?.toUpperCase()} from its own hypervisor`;
  return `modprobe -r ${module} && modprobe ${module} ${option}=1; ${nested}`;
}

function uffdFix(errno: number): string {
  if (errno === EPERM || errno === EACCES) {
    return (
      "run as root, or: sysctl vm.unprivileged_userfaultfd=1; in a container also " +
      "--cap-add SYS_PTRACE --security-opt seccomp=unconfined, or --device /dev/userfaultfd"
    );
  }
  return "use a kernel with CONFIG_USERFAULTFD=y (5.10 or newer)";
}

const NEWER_KVM = "use a host kernel with KVM from 5.10 or newer";
const REAL_KVM =
  "use hardware virtualisation (kvm_amd, kvm_intel); software KVM variants lack this behaviour";

const works = (what: string) => () => what;

const SUBJECTS: readonly Subject[] = [
  {
    id: "kvm",
    title: "KVM",
    required: true,
    good: works("/dev/kvm opens and speaks API version 12"),
    bad: works("/dev/kvm is not usable"),
    fix: (result, facts) => kvmFix(result.errno, facts),
  },
  {
    id: "tdp",
    title: "two-dimensional paging (EPT/NPT)",
    required: true,
    good: works("replaced page-table pages are seen at once"),
    bad: works("stale translations were used after a page-table page was replaced (shadow paging)"),
    fix: (_, facts) => pagingFix(facts),
  },
  {
    id: "walks_write",
    title: "page walks leave page tables alone",
    required: false,
    good: works("page tables can be shared read-only: strict mode works"),
    bad: (result) =>
      `the hardware's walk wrote to ${result.value} write-protected page-table page(s)`,
    fix: (_, facts) =>
      facts.virtualisation === "vmx"
        ? "replicated page tables will be used; kvm_intel.eptad=0 removes the cause on Intel"
        : "replicated page tables will be used (--page-tables auto): nothing to do on AMD",
  },
  {
    id: "x2apic_exits",
    title: "x2APIC register accesses exit",
    required: false,
    good: works("RDMSR and WRMSR of 0x800-0x8ff reach ssihv"),
    bad: works("the guest will be limited to xAPIC"),
    fix: works(NEWER_KVM),
  },
  {
    id: "xapic_exits",
    title: "xAPIC page accesses exit",
    required: true,
    good: works("accesses to 0xfee00000 reach ssihv"),
    bad: works("the local APIC cannot be kept by ssihv"),
    fix: works(REAL_KVM),
  },
  {
    id: "hlt_exits",
    title: "HLT exits",
    required: true,
    good: works("a halted vCPU returns to ssihv"),
    bad: works("a halted vCPU could not be woken by an interrupt"),
    fix: works(REAL_KVM),
  },
  {
    id: "irq_window",
    title: "interrupt injection",
    required: true,
    good: works("KVM_INTERRUPT and the interrupt window work"),
    bad: works("an interrupt did not reach the guest when it could take one"),
    fix: works(REAL_KVM),
  },
  {
    id: "nmi",
    title: "NMI injection",
    required: false,
    good: works("KVM_NMI reaches the guest"),
    bad: works("NMIs (watchdogs, backtraces of all CPUs) will not reach the guest"),
    fix: works(NEWER_KVM),
  },
  {
    id: "msr_filter",
    title: "MSR filter",
    required: true,
    good: works("the TSC-deadline MSR and unknown MSRs reach ssihv"),
    bad: works("MSR accesses cannot be taken over"),
    fix: works(NEWER_KVM),
  },
  {
    id: "immediate_exit",
    title: "kicks",
    required: true,
    good: works("a signal gets a vCPU out of the guest"),
    bad: works("a running vCPU cannot be stopped in time"),
    fix: works(NEWER_KVM),
  },
  {
    id: "uffd",
    title: "userfaultfd",
    required: true,
    good: (result) => `features 0x${result.value.toString(16)}`,
    bad: works("userfaultfd is not usable"),
    fix: (result) => uffdFix(result.errno),
  },
  {
    id: "uffd_kernel_mode",
    title: "userfaultfd for kernel-mode faults",
    required: true,
    good: works("faults of KVM itself are reported too"),
    bad: works("only user-mode faults are reported: KVM's accesses would fail"),
    fix: (result) => uffdFix(result.errno === 0 ? EPERM : result.errno),
  },
  {
    id: "uffd_write_protect",
    title: "userfaultfd write protection",
    required: true,
    good: works("writes to shared pages are caught"),
    bad: works("pages cannot be shared read-only between nodes"),
    fix: works("use a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_WP (5.7 or newer, x86-64)"),
  },
  {
    id: "uffd_thread_id",
    title: "userfaultfd thread ids",
    required: false,
    good: works("faults name the vCPU that waits"),
    bad: works("faults cannot be ordered by the age of their vCPU's wait"),
    fix: works("use a kernel from 4.14 or newer that offers UFFD_FEATURE_THREAD_ID"),
  },
  {
    id: "tsc_offset",
    title: "TSC offset",
    required: false,
    good: works("KVM_VCPU_TSC_OFFSET is honoured"),
    bad: works("guest clocks of several hosts cannot be lined up: use this host alone"),
    fix: works("use a host kernel from 5.16 or newer with hardware virtualisation"),
  },
  {
    id: "tsc_khz",
    title: "TSC frequency",
    required: true,
    good: (result) => `${(Number(result.value) / 1e6).toFixed(3)} GHz`,
    bad: works("KVM does not tell the TSC's frequency"),
    fix: works("use a host with a constant, non-stop TSC"),
  },
  {
    id: "tsc_scaling",
    title: "TSC scaling",
    required: false,
    good: works("there, and not used: all hosts of a VM must have this host's TSC rate"),
    bad: works("all hosts of a VM must have this host's TSC rate"),
    fix: works("nothing to do while the hosts are alike"),
  },
  {
    id: "vcpus_limit",
    title: "vCPUs per VM",
    required: true,
    good: (result) => `up to ${result.value}`,
    bad: (result) => `only ${result.value} recommended`,
    fix: works("give this node no more vCPUs than that"),
  },
  {
    id: "memory_lock",
    title: "locked memory",
    required: false,
    good: works("the engine can keep its own memory from being swapped out"),
    bad: works("the engine's own memory may be swapped out, which stalls the whole VM"),
    fix: works("run as root, or raise the limit: ulimit -l unlimited (LimitMEMLOCK=infinity)"),
  },
];

function probeLine(subject: Subject, probe: HostProbe, facts: HostFacts): CheckLine {
  const { id, title, required } = subject;
  const result = probe[id];
  const state = STATES[result.state] ?? "missing";
  if (state === "good") return { id, title, required, state, detail: subject.good(result) };
  if (state === "not_run") {
    const fix = "it is tested once the missing things above are there";
    return { id, title, required, state, detail: "not tested", fix };
  }
  const errno = result.errno === 0 ? "" : ` (${errnoName(result.errno)})`;
  const detail = `${subject.bad(result, facts)}${errno}`;
  return { id, title, required, state, detail, fix: subject.fix(result, facts) };
}

function line(
  id: string,
  title: string,
  detail: string,
  problem?: { state: "degraded" | "missing"; fix: string },
): CheckLine {
  const state = problem?.state ?? "good";
  return { id, title, required: true, state, detail, ...(problem && { fix: problem.fix }) };
}

/** KVM_CAP_X86_USER_SPACE_MSR came with 5.10. */
const KERNEL_LEAST = [5, 10] as const;

function kernelLine(facts: HostFacts): CheckLine {
  const [major = 0, minor = 0] = facts.kernel.split(/[.-]/).map(Number);
  const old = major < KERNEL_LEAST[0] || (major === KERNEL_LEAST[0] && minor < KERNEL_LEAST[1]);
  const problem = { state: "missing", fix: "use a host kernel from 5.10 or newer" } as const;
  return line("kernel", "host kernel", facts.kernel, old ? problem : undefined);
}

function memoryLine(facts: HostFacts): CheckLine {
  const mib = (bytes: number) => `${Math.floor(bytes / MIB)} MiB`;
  const detail = `${mib(facts.memoryAvailable)} of ${mib(facts.memoryTotal)} available`;
  const fix = "stop other programs or lift the control group's limit; guests get at most this much";
  const low = facts.memoryAvailable < 512 * MIB;
  return line("memory", "memory", detail, low ? { state: "degraded", fix } : undefined);
}

function limitLines(facts: HostFacts): CheckLine[] {
  const bounded = facts.addressSpace < 1e15;
  return [
    line(
      "overcommit",
      "memory overcommit",
      `vm.overcommit_memory=${facts.overcommit}`,
      facts.overcommit === 2
        ? {
            state: "degraded",
            fix: "sysctl vm.overcommit_memory=0: guest RAM is mapped unreserved",
          }
        : undefined,
    ),
    line(
      "address_space",
      "address space limit",
      bounded ? `${Math.floor(facts.addressSpace / MIB)} MiB` : "unlimited",
      bounded ? { state: "degraded", fix: "ulimit -v unlimited" } : undefined,
    ),
    line(
      "open_files",
      "open files limit",
      `${facts.openFiles}`,
      facts.openFiles < 256 ? { state: "degraded", fix: "ulimit -n 1024" } : undefined,
    ),
    line(
      "memfd",
      "executable memfds",
      `vm.memfd_noexec=${facts.memfdNoexec}`,
      facts.memfdNoexec === 2
        ? {
            state: "degraded",
            fix: "sysctl vm.memfd_noexec=0, or a temp folder on a file system without noexec",
          }
        : undefined,
    ),
  ];
}

function cpusLine(facts: HostFacts): CheckLine {
  const fix = "give it a second CPU: the thread that fetches pages shares one with the vCPU";
  const problem = facts.cpus < 2 ? ({ state: "degraded", fix } as const) : undefined;
  return line("cpus", "CPUs", `${facts.cpus} online`, problem);
}

export function checkHost(probe: HostProbe, facts: HostFacts): HostCheck {
  const lines = [
    kernelLine(facts),
    cpusLine(facts),
    memoryLine(facts),
    ...limitLines(facts),
    ...SUBJECTS.map((subject) => probeLine(subject, probe, facts)),
  ];
  // A required thing that could not be tested is not known to work.
  const lacking = lines.some(
    ({ state, required }) => required && (state === "missing" || state === "not_run"),
  );
  const worse = lines.some(({ state }) => state !== "good");
  return { lines, verdict: lacking ? "unfit" : worse ? "degraded" : "fit" };
}
