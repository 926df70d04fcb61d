import type { Answer, Query, StopAnswer, TableQuery } from '../../engine/queries/answers.ts';
import type { ShowTable, ViewRequest } from '../../engine/queries/protocol.ts';
import { parseEvent } from './messages.ts';

interface VsCodeApi {
  postMessage(message: ViewRequest | ShowTable): void;
  getState(): unknown;
  setState(state: unknown): void;
}

declare function acquireVsCodeApi(): VsCodeApi;

/** Where the session is. While it runs, `stop` is the one before: what a view shows, dimmed. */
export type SessionState =
  | { readonly kind: 'none' }
  | { readonly kind: 'stopped'; readonly stop: StopAnswer }
  | { readonly kind: 'running'; readonly stop: StopAnswer | undefined }
  | { readonly kind: 'ended'; readonly stop: StopAnswer | undefined };

const api = acquireVsCodeApi();
const callbacks = new Map<string, (answer: Answer) => void>();
const stateListeners: ((state: SessionState) => void)[] = [];
const tableListeners: ((table: TableQuery) => void)[] = [];
let state: SessionState = { kind: 'none' };

/** Keeps the answer to a question current; a second `watch` with the same id replaces the first. */
export function watch(id: string, query: Query, callback: (answer: Answer) => void): void {
  callbacks.set(id, callback);
  api.postMessage({ type: 'watch', id, query });
}

export function unwatch(id: string): void {
  if (callbacks.delete(id)) api.postMessage({ type: 'unwatch', id });
}

/** Goes to a moment of a recording: after so many events. */
export function seek(position: number): void {
  api.postMessage({ type: 'seek', position });
}

/** Leads to a table in the Page Tables view. */
export function showTable(table: TableQuery): void {
  api.postMessage({ type: 'show-table', table });
}

/** Calls back when another view leads to a table here. */
export function onShowTable(listener: (table: TableQuery) => void): void {
  tableListeners.push(listener);
}

/** Calls back now and whenever the session stops, runs or ends. */
export function onSession(listener: (state: SessionState) => void): void {
  stateListeners.push(listener);
  listener(state);
}

export function session(): SessionState {
  return state;
}

/** The stop that a view shows: the current one, or the last. */
export function lastStop(): StopAnswer | undefined {
  return state.kind === 'none' ? undefined : state.stop;
}

/** What the view kept with `keep`, if it passes the check; VS Code keeps it while the panel is hidden or moved. */
export function kept<T>(check: (value: unknown) => value is T): T | undefined {
  const value = api.getState();
  return check(value) ? value : undefined;
}

export function keep(value: unknown): void {
  api.setState(value);
}

function enter(next: SessionState): void {
  state = next;
  for (const listener of stateListeners) listener(state);
}

window.addEventListener('message', ({ data }: MessageEvent<unknown>) => {
  const event = parseEvent(data);
  if (!event) return;
  switch (event.type) {
    case 'stopped':
      // Every reply to a `watch` carries the stop again.
      if (state.kind === 'stopped' && JSON.stringify(state.stop) === JSON.stringify(event.stop)) return;
      enter({ kind: 'stopped', stop: event.stop });
      return;
    case 'running':
      enter({ kind: 'running', stop: lastStop() });
      return;
    case 'ended':
      enter({ kind: 'ended', stop: lastStop() });
      return;
    case 'show-table':
      for (const listener of tableListeners) listener(event.table);
      return;
    case 'changed':
      for (const { id, answer } of event.answers) callbacks.get(id)?.(answer);
  }
});
