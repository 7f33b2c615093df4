// Tells systemd that a daemon is up (sd_notify(3)), so that `systemctl start` returns when it may
// be asked. By systemd-notify, since the runtime has no datagram Unix sockets.

/** Does nothing where no service manager waits for it. */
export function tellReady(say: (line: string) => void): void {
  const socket = process.env["NOTIFY_SOCKET"] ?? "";
  if (socket === "") return;
  try {
    const { exitCode, stderr } = Bun.spawnSync(["systemd-notify", "--ready"], { stdin: "ignore" });
    if (exitCode !== 0) say(`systemd-notify: ${String(stderr).trim()}`);
  } catch (error) {
    say(`systemd waits for a word that cannot be given: ${String(error)}`);
  }
}
