// Asks the coordinator, where there is one, whether all hosts have a certificate of the newest CA:
// only then can an older CA be dropped, or the next one come, without locking a host out.

import { messageOf, SsihvError } from "../base/errors.ts";
import { ApiClient, type Host } from "./api-client.ts";

/** Throws `certificate_needed` with hosts that are not over; says where none could be asked. */
export async function refuseWhileNeeded(
  drops: boolean,
  say: (text: string) => void,
): Promise<void> {
  let hosts: Host[];
  try {
    const api = await ApiClient.find({});
    if (api === undefined) {
      // Where the first hosts have not joined yet there is none: a new CA harms nobody.
      if (drops) say("no coordinator is here that could tell of hosts");
      return;
    }
    hosts = await api.hosts();
  } catch (error) {
    return say(`hosts were not asked: ${messageOf(error)}`);
  }
  const behind = hosts.filter(({ certificate }) => certificate !== null && !certificate.current);
  if (behind.length === 0) return;
  const names = behind.map(({ name, state }) => (state === "up" ? name : `${name} (${state})`));
  const message = `certificates of an old CA are in use yet: ${names.join(", ")}`;
  throw new SsihvError("certificate_needed", message, {
    hint:
      "hosts change over within seconds while they are connected (ssihv cluster status tells); " +
      "--force goes on, and hosts that are not over must join again",
  });
}
