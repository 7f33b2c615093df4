// The systemd units of the two daemons, for systemd 252 (Debian 12) and later. Pure: text out.
// Options are not in the unit but in a file under /etc/default, so that an administrator may change
// them, and a later version of the unit takes nothing away.

export type Daemon = "node" | "coordinator";

export interface UnitRequest {
  readonly daemon: Daemon;
  /** The executable that it runs. */
  readonly binary: string;
  /** Folders that its options name besides those it makes itself. */
  readonly writable: readonly string[];
}

/** The variable that holds the options, in the file of optionsPath(). */
export const OPTIONS_VARIABLE = "SSIHV_OPTIONS";

export function unitName(daemon: Daemon): string {
  return `ssihv-${daemon}.service`;
}

export function unitPath(daemon: Daemon): string {
  return `/etc/systemd/system/${unitName(daemon)}`;
}

export function optionsPath(daemon: Daemon): string {
  return `/etc/default/ssihv-${daemon}`;
}

/** What both may do without; the JIT of their runtime rules out MemoryDenyWriteExecute. */
const HARDENING = `NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
UMask=0077`;

/**
 * The agent stays root: it gives each VM's engines a user of their own, and takes page faults of
 * KVM. A stop asks the agent alone, which ends its VMs in order; whatever is left, or was left by
 * an agent that was killed, is killed by systemd (mixed). One engine that ran out of memory is that
 * VM's matter (OOMPolicy). CAP_KILL also lets the kernel end engines of other users with the agent.
 */
const NODE = `# Asks the agent alone to end; what then still runs, or outlives it, is killed.
KillMode=mixed
TimeoutStopSec=30
OOMPolicy=continue
# A control group of its own for each engine, with the memory that its node may take.
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536
LimitMEMLOCK=infinity
LimitCORE=0
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL CAP_CHOWN CAP_FOWNER
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_SYS_PTRACE CAP_SYS_NICE
CapabilityBoundingSet=CAP_SYS_RESOURCE CAP_IPC_LOCK CAP_NET_BIND_SERVICE
# /dev/kvm and /dev/userfaultfd, which may come after this service started, are of this class.
DevicePolicy=closed
DeviceAllow=char-misc rw
ProtectSystem=full
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallFilter=~@mount @module @reboot @swap @raw-io @obsolete @cpu-emulation`;

const COORDINATOR = `TimeoutStopSec=15
LimitNOFILE=65536
LimitCORE=0
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH
PrivateDevices=yes
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectProc=invisible
ProtectSystem=strict
ProtectHome=read-only
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallFilter=@system-service`;

const DESCRIPTIONS: Record<Daemon, string> = {
  node: "SSI-HV agent: runs this host's parts of virtual machines",
  coordinator: "SSI-HV coordinator: the control plane of a cluster",
};

const NOTES: Record<Daemon, string> = {
  node: "# Stopping or restarting it ends the VMs on this host.\n",
  coordinator: "# It may be stopped and restarted at any time: VMs go on meanwhile.\n",
};

export function unitText({ daemon, binary, writable }: UnitRequest): string {
  const paths = writable.map((path) => `ReadWritePaths=-${specifierSafe(path)}\n`).join("");
  return `# Written by ssihv install ${daemon}. Options are in ${optionsPath(daemon)};
# for other changes: systemctl edit ${unitName(daemon)}.
${NOTES[daemon]}
[Unit]
Description=${DESCRIPTIONS[daemon]}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=all
EnvironmentFile=-${optionsPath(daemon)}
ExecStart=${binary} ${daemon} $${OPTIONS_VARIABLE}
Restart=on-failure
RestartSec=2
# Wrong options, no membership, an unfit host: trying again does not help.
RestartPreventExitStatus=2 4
StateDirectory=ssihv/${daemon}
StateDirectoryMode=0700
# The sockets that ssihv commands on this host ask; both daemons' lie there.
RuntimeDirectory=ssihv
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
${daemon === "node" ? NODE : COORDINATOR}
${HARDENING}
${paths}
[Install]
WantedBy=multi-user.target
`;
}

function specifierSafe(path: string): string {
  return `"${path.replaceAll("%", "%%")}"`;
}
