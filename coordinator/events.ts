// What happens in the cluster, as a stream: the newest events are kept, so that a reader who was
// away for a moment misses none, and each has an id that says where it left off.

export interface ClusterEvent {
  /** "START-N": N counts from 1 since the coordinator started at START. */
  readonly id: string;
  readonly at: string;
  /** host_joined, host_up, host_silent, host_removed, vm_created, vm_state, vm_ended, ... */
  readonly event: string;
  readonly host?: string;
  readonly vm?: string;
  readonly text?: string;
}

const KEPT = 1000;

export class Events {
  private readonly start = Date.now().toString(36);
  private readonly kept: ClusterEvent[] = [];
  private readonly readers = new Set<(event: ClusterEvent) => void>();
  private count = 0;

  tell(event: string, about: Pick<ClusterEvent, "host" | "vm" | "text"> = {}): void {
    this.count += 1;
    const told = {
      id: `${this.start}-${this.count}`,
      at: new Date().toISOString(),
      event,
      ...about,
    };
    this.kept.push(told);
    if (this.kept.length > KEPT) this.kept.shift();
    for (const reader of this.readers) reader(told);
  }

  /** Those after `id`; all that are kept where it is of another life of the coordinator. */
  since(id: string | undefined): ClusterEvent[] {
    const at = this.kept.findIndex((event) => event.id === id);
    return this.kept.slice(at + 1);
  }

  /** Until the returned function is called. */
  subscribe(reader: (event: ClusterEvent) => void): () => void {
    this.readers.add(reader);
    return () => this.readers.delete(reader);
  }
}
