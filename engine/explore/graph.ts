/** A column of numbers that grows. */
class Column {
  #values = new Int32Array(1 << 12);
  length = 0;

  push(value: number): void {
    if (this.length === this.#values.length) {
      const grown = new Int32Array(2 * this.#values.length);
      grown.set(this.#values);
      this.#values = grown;
    }
    this.#values[this.length++] = value;
  }

  at(index: number): number {
    return this.#values[index]!;
  }
}

/** The states that were found and the transitions between them, in columns. State 0 is where all begins. */
export class Graph {
  readonly tasks: number;
  readonly from = new Column();
  readonly to = new Column();
  readonly task = new Column();
  /** Steps of the machine that a transition stands for. */
  readonly count = new Column();
  /** What happens on a transition, and after how many of its steps. */
  readonly edgeEvents = new Map<number, { readonly event: number; readonly after: number }[]>();
  /** Numbers of what is so in a state. */
  readonly stateEvents = new Map<number, number[]>();
  readonly #terminal = new Set<number>();
  #states = 0;
  #outgoing: { readonly starts: Int32Array; readonly edges: Int32Array } | undefined;

  constructor(tasks: number) {
    this.tasks = tasks;
  }

  get states(): number {
    return this.#states;
  }

  get edges(): number {
    return this.from.length;
  }

  addState(): number {
    return this.#states++;
  }

  addEdge(from: number, to: number, task: number, count: number): number {
    this.from.push(from);
    this.to.push(to);
    this.task.push(task);
    this.count.push(count);
    return this.edges - 1;
  }

  /** A state from which nothing need follow: every task has ended, or the exploration stopped here. */
  setTerminal(state: number): void {
    this.#terminal.add(state);
  }

  addEvent(edge: number, event: number, after: number): void {
    const known = this.edgeEvents.get(edge);
    if (!known) this.edgeEvents.set(edge, [{ event, after }]);
    else if (!known.some((each) => each.event === event)) known.push({ event, after });
  }

  addStateEvent(state: number, event: number): void {
    const known = this.stateEvents.get(state);
    if (!known) this.stateEvents.set(state, [event]);
    else if (!known.includes(event)) known.push(event);
  }

  /** Transitions out of a state: positions [start, end) of `edges`. */
  outgoing(): { readonly starts: Int32Array; readonly edges: Int32Array } {
    this.#outgoing ??= sortedBy(this.from, this.#states);
    return this.#outgoing;
  }

  /** States from which neither an end can be reached nor one that is stuck: one that stands for each such region, the first that was found. */
  withoutEnd(): number[] {
    const { starts, edges } = sortedBy(this.to, this.#states);
    const reaches = new Uint8Array(this.#states);
    const queue = [...new Set([...this.#terminal, ...this.stateEvents.keys()])];
    for (const state of queue) reaches[state] = 1;
    while (queue.length > 0) {
      const state = queue.pop()!;
      for (let at = starts[state]!; at < starts[state + 1]!; at++) {
        const before = this.from.at(edges[at]!);
        if (reaches[before] === 1) continue;
        reaches[before] = 1;
        queue.push(before);
      }
    }
    const found: number[] = [];
    for (let state = 0; state < this.#states; state++) if (reaches[state] === 0) found.push(state);
    return found;
  }

  /** Steps of the shortest way by the same task from behind a transition on which something happens to before it. */
  roundOf(event: number): number | undefined {
    const { starts, edges } = this.outgoing();
    let best: number | undefined;
    for (const [edge, events] of this.edgeEvents) {
      if (!events.some((each) => each.event === event)) continue;
      const task = this.task.at(edge);
      // One task alone has one way to go: it comes back, or it does not.
      let state = this.to.at(edge);
      let steps = this.count.at(edge);
      const seen = new Set<number>();
      while (state !== this.from.at(edge) && !seen.has(state)) {
        seen.add(state);
        let next = -1;
        for (let at = starts[state]!; at < starts[state + 1]!; at++)
          if (this.task.at(edges[at]!) === task) next = edges[at]!;
        if (next < 0) break;
        state = this.to.at(next);
        steps += this.count.at(next);
      }
      if (state === this.from.at(edge) && (best === undefined || steps < best)) best = steps;
    }
    return best;
  }
}

function sortedBy(column: Column, states: number): { readonly starts: Int32Array; readonly edges: Int32Array } {
  const starts = new Int32Array(states + 1);
  for (let edge = 0; edge < column.length; edge++) starts[column.at(edge) + 1]!++;
  for (let state = 0; state < states; state++) starts[state + 1]! += starts[state]!;
  const next = starts.slice(0, states);
  const edges = new Int32Array(column.length);
  for (let edge = 0; edge < column.length; edge++) edges[next[column.at(edge)]!++] = edge;
  return { starts, edges };
}
