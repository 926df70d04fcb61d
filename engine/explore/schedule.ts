import type { Graph } from './graph.ts';

/** Who makes how many steps, one after the other. */
export interface Schedule {
  readonly runs: readonly { readonly task: number; readonly steps: number }[];
  readonly switches: number;
  readonly steps: number;
}

/** A way to a state, made by a task last. */
interface Arrival {
  readonly node: number;
  readonly switches: number;
  readonly steps: number;
}

const isBefore = (a: Arrival, b: Arrival): boolean =>
  a.switches !== b.switches ? a.switches < b.switches : a.steps < b.steps;

/** The arrivals that were not looked at yet, the best first: a binary heap. */
class Heap {
  readonly #items: Arrival[] = [];

  get size(): number {
    return this.#items.length;
  }

  push(item: Arrival): void {
    const items = this.#items;
    let at = items.push(item) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!isBefore(item, items[above]!)) break;
      items[at] = items[above]!;
      at = above;
    }
    items[at] = item;
  }

  pop(): Arrival {
    const items = this.#items;
    const first = items[0]!;
    const last = items.pop()!;
    if (items.length === 0) return first;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= items.length) break;
      if (below + 1 < items.length && isBefore(items[below + 1]!, items[below]!)) below++;
      if (!isBefore(items[below]!, last)) break;
      items[at] = items[below]!;
      at = below;
    }
    items[at] = last;
    return first;
  }
}

/** For each event the way to it with the fewest switches between tasks, and of those with the fewest steps; undefined for one that no way leads to. */
export function schedulesTo(graph: Graph, events: number): (Schedule | undefined)[] {
  const { tasks } = graph;
  const { starts, edges } = graph.outgoing();
  const lastEdge = new Int32Array(graph.states * tasks).fill(-1);
  /** Who ran before the last edge of a node. */
  const lastTask = new Int32Array(graph.states * tasks).fill(-1);
  const done = new Uint8Array(graph.states * tasks);
  const best = new Float64Array(graph.states * tasks).fill(Number.POSITIVE_INFINITY);
  const found: (Schedule | undefined)[] = new Array(events).fill(undefined);
  const heap = new Heap();
  const arrive = (state: number, ran: number, arrival: Omit<Arrival, 'node'>): void => {
    for (let at = starts[state]!; at < starts[state + 1]!; at++) {
      const edge = edges[at]!;
      const task = graph.task.at(edge);
      const node = graph.to.at(edge) * tasks + task;
      const switches = arrival.switches + (ran >= 0 && ran !== task ? 1 : 0);
      const steps = arrival.steps + graph.count.at(edge);
      for (const { event, after } of graph.edgeEvents.get(edge) ?? [])
        note(event, edge, ran, { switches, steps: arrival.steps + after });
      const cost = switches * 2 ** 32 + steps;
      if (done[node] === 1 || cost >= best[node]!) continue;
      best[node] = cost;
      lastEdge[node] = edge;
      lastTask[node] = ran;
      heap.push({ node, switches, steps });
    }
  };
  const note = (event: number, edge: number, ran: number, { switches, steps }: Omit<Arrival, 'node'>): void => {
    const known = found[event];
    if (known && !isBefore({ node: 0, switches, steps }, { node: 0, ...known })) return;
    const path = edge < 0 ? [] : [edge];
    let at = edge < 0 ? -1 : graph.from.at(edge) * tasks + ran;
    if (ran < 0) at = -1;
    while (at >= 0) {
      path.push(lastEdge[at]!);
      const before = lastTask[at]!;
      at = before < 0 ? -1 : graph.from.at(lastEdge[at]!) * tasks + before;
    }
    const runs = runsOf(graph, path.reverse());
    // What is behind the event, in the last transition, is not needed.
    const beyond = runs.reduce((sum, run) => sum + run.steps, 0) - steps;
    if (beyond > 0) runs.at(-1)!.steps -= beyond;
    found[event] = { runs, switches, steps };
  };
  const noteState = (state: number, node: number, arrival: Omit<Arrival, 'node'>): void => {
    for (const event of graph.stateEvents.get(state) ?? [])
      if (node < 0) note(event, -1, -1, arrival);
      else note(event, lastEdge[node]!, lastTask[node]!, arrival);
  };
  noteState(0, -1, { switches: 0, steps: 0 });
  arrive(0, -1, { switches: 0, steps: 0 });
  while (heap.size > 0) {
    const { node, switches, steps } = heap.pop();
    if (done[node] === 1) continue;
    done[node] = 1;
    const state = Math.floor(node / tasks);
    noteState(state, node, { switches, steps });
    arrive(state, node % tasks, { switches, steps });
  }
  return found;
}

function runsOf(graph: Graph, path: readonly number[]): { readonly task: number; steps: number }[] {
  const runs: { task: number; steps: number }[] = [];
  for (const edge of path) {
    const task = graph.task.at(edge);
    const last = runs.at(-1);
    if (last?.task === task) last.steps += graph.count.at(edge);
    else runs.push({ task, steps: graph.count.at(edge) });
  }
  return runs;
}
