/** What a conversion of memory can go wrong in, and what of it a person who designs one must rule out. */
export const HAZARDS = {
  'stale-translation': 'memory is accessed through a translation of the kind that it no longer is',
  'rmp-fault-loop': 'an RMP fault is handled without anything being changed, and the access faults again',
  'fatal-rmp-fault': 'the host writes through its direct map where a guest’s page lies',
  'direct-map-hole': 'the host touches a page that its direct map leaves out',
  'poisoned-memory': 'a TDX guest uses a page of its own to which the host has written',
  'mixed-huge-page': 'a large page maps private and shared memory alike',
  'lost-update': 'all conversions have ended, and the RMP is not as the attributes say',
  'sleep-in-atomic': 'a task that holds a spinning lock calls what may sleep',
  'no-progress': 'nothing that can still happen brings the tasks to their end',
} as const;
export type Hazard = keyof typeof HAZARDS;
export const HAZARD_NAMES = Object.keys(HAZARDS) as Hazard[];
