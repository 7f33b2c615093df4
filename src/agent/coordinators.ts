// The coordinators that an agent knows, and which one it asks next. One leads, the others say so;
// whoever welcomed it last is asked first again.

import type { CoordinatorPlace } from "../control/messages.ts";

/** As many as a host keeps (Membership). */
const PLACES_MAX = 16;

const same = (a: CoordinatorPlace, b: CoordinatorPlace) => a.host === b.host && a.port === b.port;

export class Coordinators {
  private places: readonly CoordinatorPlace[];
  private at = 0;
  private tried = 0;

  /** `first`: the one that this host joined at. */
  constructor(first: CoordinatorPlace, others: readonly CoordinatorPlace[]) {
    this.places = [first, ...others.filter((place) => !same(place, first))];
  }

  get current(): CoordinatorPlace {
    return this.places[this.at] ?? { host: "", port: 0 };
  }

  /** The one that welcomed this agent tells of all; true: there is something new to keep. */
  learn(all: readonly CoordinatorPlace[]): boolean {
    const { current } = this;
    const known = (list: readonly CoordinatorPlace[]) =>
      list
        .map(({ host, port }) => `${host} ${port}`)
        .sort()
        .join("\n");
    const others = all.filter((place) => !same(place, current));
    const next = [current, ...others].slice(0, PLACES_MAX);
    const isNew = known(next) !== known(this.places);
    this.places = next;
    this.at = 0;
    return isNew;
  }

  welcomed(): void {
    this.tried = 0;
  }

  /** Goes to the next one; false: all were tried since the last welcome, it is time for a pause. */
  next(): boolean {
    this.at = (this.at + 1) % this.places.length;
    this.tried = (this.tried + 1) % this.places.length;
    return this.tried !== 0;
  }

  /** All, this one first. */
  get all(): readonly CoordinatorPlace[] {
    return this.places;
  }
}
